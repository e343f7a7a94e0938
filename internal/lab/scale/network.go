package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
)

// Addresses of the network; each pair of prefixes is one link.
var (
	internet4  = netip.MustParseAddr("203.0.113.1")
	internet6  = netip.MustParseAddr("2001:db8::1")
	clientEnd4 = netip.MustParseAddr("203.0.113.100")
	clientEnd6 = netip.MustParseAddr("2001:db8::100")
	gateway4   = netip.MustParseAddr("203.0.113.99")
	gateway6   = netip.MustParseAddr("2001:db8::99")

	inside   = netip.MustParsePrefix("10.20.0.1/24") // the gateway's
	resource = netip.MustParsePrefix("10.20.0.10/24")
)

const (
	uplink        = "eth0"
	downlink      = "eth1"
	portalPort    = 8081
	token         = "scale"
	startPatience = 30 * time.Second
	longAccess    = 24 * time.Hour
)

// world is the network with portal, relay and daemon.
type world struct {
	lab                        *labnet.Lab
	internet, clients, gateway *labnet.Namespace
	resource                   *labnet.Namespace
	portal                     *portal.Server
	relay                      *relay.Server
	granted                    portal.Resource
	daemon                     *gateway.Gateway
	observer                   *observer
	closers                    []func() error // in the order of their making
}

func newWorld(ctx context.Context, o Options) (*world, error) {
	w := &world{}
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

func (w *world) build(ctx context.Context, o Options) error {
	if err := w.buildNetwork(o.Relayed); err != nil {
		return err
	}
	if err := w.startServers(); err != nil {
		return err
	}
	return w.startDaemon(ctx, o)
}

func (w *world) buildNetwork(relayed bool) error {
	w.lab = labnet.New()
	w.closers = append(w.closers, w.lab.Close)
	for _, n := range []struct {
		name string
		into **labnet.Namespace
	}{{"internet", &w.internet}, {"clients", &w.clients}, {"gateway", &w.gateway}, {"resource", &w.resource}} {
		ns, err := w.lab.AddNamespace(n.name)
		if err != nil {
			return err
		}
		*n.into = ns
	}
	forwarding := "1"
	if relayed {
		forwarding = "0" // a new namespace may inherit that it forwards
	}
	errs := []error{
		w.internet.SetSysctl("net/ipv4/ip_forward", forwarding),
		w.internet.SetSysctl("net/ipv6/conf/all/forwarding", forwarding),
		w.gateway.EnableForwarding(),
		w.attach(w.clients, clientEnd4, clientEnd6),
		w.attach(w.gateway, gateway4, gateway6),
		w.lab.Connect(
			labnet.End{Namespace: w.gateway, Device: downlink, Addresses: []netip.Prefix{inside}},
			labnet.End{Namespace: w.resource, Device: uplink, Addresses: []netip.Prefix{resource}},
		),
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return errors.Join(
		w.resource.AddRoute(everywhere(inside.Addr()), inside.Addr(), uplink),
		w.internet.AddRoute(clients4, clientEnd4, w.clients.Name()),
		w.internet.AddRoute(clients6, clientEnd6, w.clients.Name()),
		claimAddresses(w.clients),
	)
}

// attach links a host to the internet, with routes both ways.
func (w *world) attach(host *labnet.Namespace, addresses ...netip.Addr) error {
	device := host.Name()
	end, port := labnet.End{Namespace: host, Device: uplink}, labnet.End{Namespace: w.internet, Device: device}
	for _, a := range addresses {
		end.Addresses = append(end.Addresses, netip.PrefixFrom(a, a.BitLen()))
		via := internetOf(a)
		port.Addresses = append(port.Addresses, netip.PrefixFrom(via, via.BitLen()))
	}
	if err := w.lab.Connect(port, end); err != nil {
		return err
	}
	var errs []error
	for _, a := range addresses {
		errs = append(errs,
			w.internet.AddRoute(netip.PrefixFrom(a, a.BitLen()), netip.Addr{}, device),
			host.AddRoute(everywhere(a), internetOf(a), uplink))
	}
	return errors.Join(errs...)
}

func internetOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return internet4
	}
	return internet6
}

func everywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// startServers starts portal and relay, with a resource that everybody may use.
func (w *world) startServers() error {
	listener, err := w.internet.Listen("tcp", netip.AddrPortFrom(internet4, portalPort).String())
	if err != nil {
		return err
	}
	w.portal, err = portal.New(portal.Config{Listener: listener, GatewayToken: token, ClientToken: token, IdleLimit: longAccess})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.portal.Close)
	secret := relay.NewSecret()
	w.relay, err = relay.Start(relay.Options{
		Secret: secret, IPv4: internet4, IPv6: internet6, Port: relay.Port, ListenPacket: w.internet.ListenPacket,
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.relay.Close)
	entry := portal.Relay{StampSecret: secret}
	for _, a := range w.relay.Addrs() {
		if a.Addr().Is4() {
			entry.V4 = a
		} else {
			entry.V6 = a
		}
	}
	if err := w.portal.SetRelays([]portal.Relay{entry}); err != nil {
		return err
	}
	w.granted, err = w.portal.AddResource(portal.Resource{Type: portal.CIDR, Name: "scale", Address: resource.Addr().String()})
	if err != nil {
		return err
	}
	return w.portal.Grant("", w.granted.ID, longAccess)
}

// startDaemon starts the daemon and waits until it can serve clients.
func (w *world) startDaemon(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	log := io.Discard
	if o.LogDir != "" {
		if err := os.MkdirAll(o.LogDir, 0o755); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
		file, err := os.Create(filepath.Join(o.LogDir, "scale-gateway.log"))
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		w.closers = append(w.closers, file.Close)
		log = file
	}
	w.observer = newObserver(log)
	var err error
	w.daemon, err = gateway.Start(w.gateway, gateway.Options{
		Binary: o.Gateway, Portal: w.portal.URL(), Token: token, ID: "scale-gateway", Name: "scale",
		TUNDriver: o.TUNDriver, HealthAddr: health, Log: w.observer,
		Env: []string{"GODEBUG=gctrace=1", "GOTRACEBACK=all"},
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() error {
		_, err := w.daemon.Stop(stopGrace)
		return err
	})
	defer cancelWith(w.daemon.Done(), cancel)()
	_, err = w.portal.WaitEvent(ctx, 0, func(e portal.Event) bool {
		return e.Kind == portal.PeerJoined && e.Role == portal.Gateway
	})
	if err != nil {
		return fmt.Errorf("gateway did not join the portal: %w", err)
	}
	for w.relay.Stats().Allocated == 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("no allocation at the relay: %w", ctx.Err())
		case <-time.After(pollInterval):
		}
	}
	return nil
}

const (
	health       = "127.0.0.1:8080"
	stopGrace    = 15 * time.Second
	pollInterval = 5 * time.Millisecond
)

// cancelWith calls cancel when done is closed, until the returned function is
// called.
func cancelWith(done <-chan struct{}, cancel func()) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-done:
			cancel()
		case <-over:
		}
	}()
	return func() { close(over) }
}
