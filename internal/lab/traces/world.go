package traces

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/lab/resource"
)

const (
	portalPort = 8081
	token      = "traces"
	longAccess = time.Hour
	domain     = "app.traces.test"
	stopGrace  = 15 * time.Second
	// patience bounds each thing that is waited for.
	patience = 30 * time.Second
)

// nameServer is where the site's name server is in the resource's network.
var nameServer = netip.MustParseAddr("10.20.0.53")

// world is a deployment with a Collector next to the daemon.
type world struct {
	net       *labnet.Deployment
	sink      *Sink
	collector *collector
	portal    *portal.Server
	relay     *relay.Server
	daemon    *gateway.Gateway
	client    *client.Client
	app, host portal.Resource // by name and by address
	closers   []func() error  // in the order of their making
}

func newWorld(ctx context.Context, o Options) (*world, error) {
	w := &world{sink: &Sink{}}
	if err := w.build(ctx, o); err != nil {
		if w.daemon != nil {
			err = fmt.Errorf("%w\n%s", err, strings.Join(w.daemon.Tail(20), "\n"))
		}
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}

func (w *world) build(ctx context.Context, o Options) (err error) {
	if w.net, err = labnet.NewDeployment(labnet.Options{ClientNAT: labnet.PortRestricted}); err != nil {
		return err
	}
	w.closers = append(w.closers, w.net.Close)
	if err := w.startCollector(ctx, o.Collector); err != nil {
		return err
	}
	if err := w.startPortal(); err != nil {
		return err
	}
	if err := w.startRelay(); err != nil {
		return err
	}
	if err := w.startResources(); err != nil {
		return err
	}
	if err := w.startDaemon(ctx, o); err != nil {
		return err
	}
	host := w.net.Clients[0].Host
	w.client, err = client.Connect(ctx, client.Config{
		Portal: w.portal.URL(), Token: token, ID: "traces-client", Name: "traces-client",
		Namespace: host.Namespace, Addresses: []netip.Addr{host.IPv4, host.IPv6}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	w.closers = append(w.closers, w.client.Close)
	return nil
}

func (w *world) startCollector(ctx context.Context, binary string) error {
	ns := w.net.Gateway.Host.Namespace
	listener, err := ns.Listen("tcp", sinkAddress)
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	w.closers = append(w.closers, w.sink.Serve(listener).Close)
	if w.collector, err = startCollector(ctx, ns, binary); err != nil {
		return err
	}
	w.closers = append(w.closers, w.collector.close)
	return nil
}

func (w *world) startPortal() error {
	listener, err := w.net.Portal.Listen("tcp", netip.AddrPortFrom(w.net.Portal.IPv4, portalPort).String())
	if err != nil {
		return fmt.Errorf("portal: %w", err)
	}
	w.portal, err = portal.New(portal.Config{Listener: listener})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	w.closers = append(w.closers, w.portal.Close)
	return nil
}

func (w *world) startRelay() (err error) {
	host, secret := w.net.Relays[0], relay.NewSecret()
	w.relay, err = relay.Start(relay.Options{Secret: secret, IPv4: host.IPv4, IPv6: host.IPv6, Port: relay.Port, ListenPacket: host.ListenPacket})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.relay.Close)
	return w.portal.SetRelays([]portal.Relay{{
		V4: netip.AddrPortFrom(host.IPv4, relay.Port), V6: netip.AddrPortFrom(host.IPv6, relay.Port), StampSecret: secret,
	}})
}

// startResources serves one address, which clients may reach by a name and by
// itself, and the name server that knows the name.
func (w *world) startResources() error {
	place := w.net.Resource
	err := place.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: nameServer.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
	if err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	names, err := resource.ServeDNS(place, nameServer, 53)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, names.Close)
	if err := names.SetAddresses(domain, place.IPv4); err != nil {
		return err
	}
	for _, r := range []struct {
		into *portal.Resource
		made portal.Resource
	}{
		{&w.app, portal.Resource{Type: portal.DNS, Name: "app", Address: domain}},
		{&w.host, portal.Resource{Type: portal.CIDR, Name: "host", Address: place.IPv4.String()}},
	} {
		if *r.into, err = w.portal.AddResource(r.made); err != nil {
			return err
		}
		if err := w.portal.Grant("", r.into.ID, longAccess); err != nil {
			return err
		}
	}
	return nil
}

// startDaemon runs the daemon with traces and without metrics, and waits until
// it has joined and has an allocation.
func (w *world) startDaemon(ctx context.Context, o Options) error {
	dir, err := os.MkdirTemp("", "traces-")
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() error { return os.RemoveAll(dir) })
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+nameServer.String()+"\n"), 0o600); err != nil {
		return err
	}
	var log io.Writer
	if o.LogDir != "" {
		file, err := os.OpenFile(filepath.Join(o.LogDir, "gateway.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		w.closers = append(w.closers, file.Close)
		log = file
	}
	w.daemon, err = gateway.Start(w.net.Gateway.Host.Namespace, gateway.Options{
		Binary: o.Gateway, Portal: w.portal.URL(), Token: token, ID: "traces-gateway", Name: "traces",
		Masquerade: true, TUNDriver: o.TUNDriver, Log: log,
		Env: []string{
			"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + grpcAddress, "OTEL_METRICS_EXPORTER=none", "OTEL_BSP_SCHEDULE_DELAY=100",
			"FIREZONE_ENABLE_FAULT_INJECTION=true",
		},
		Files: []labnet.File{{Source: conf, Target: "/etc/resolv.conf"}},
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() error {
		if w.daemon.Running() {
			_, err := w.daemon.Stop(stopGrace)
			return err
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := w.portal.WaitEvent(ctx, 0, joined); err != nil {
		return fmt.Errorf("gateway did not join: %w", err)
	}
	return await(ctx, "no allocation at the relay", func() bool { return w.relay.Stats().Allocated > 0 })
}

func joined(e portal.Event) bool { return e.Kind == portal.PeerJoined && e.Role == portal.Gateway }

// reach sends an echo request from the client.
func (w *world) reach(ctx context.Context, target netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := resource.Ping(ctx, w.net.Clients[0].Host, target)
	if err == nil && reply.Error != nil {
		err = *reply.Error
	}
	if err != nil {
		return fmt.Errorf("ping %v: %w", target, err)
	}
	return nil
}

// errNoFaults says that the daemon does not inject faults.
var errNoFaults = errors.New("the gateway does not inject faults")

// crash lets the actors of a path fail, by the daemon's control socket.
func (w *world) crash(ctx context.Context, actors string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.daemon.ControlSocket())
	}}
	defer transport.CloseIdleConnections()
	body, err := json.Marshal(map[string]any{"actor": actors, "fault": "crash"})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://gateway/fault", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return fmt.Errorf("fault: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	switch {
	case err != nil:
		return fmt.Errorf("fault: %w", err)
	case response.StatusCode == http.StatusNotFound:
		return errNoFaults
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("fault: %s: %s", response.Status, firstLine(string(answer)))
	}
	return nil
}

// await polls a condition until ctx ends.
func await(ctx context.Context, otherwise string, condition func() bool) error {
	for !condition() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", otherwise, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// host4 is the resource's address as a network.
func (w *world) host4() netip.Prefix { return netip.PrefixFrom(w.net.Resource.IPv4, 32) }
