package natmatrix

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/lab/resource"
)

// world is the deployment of one cell.
type world struct {
	options Options
	cell    Cell
	net     *labnet.Deployment
	portal  *portal.Server
	relay   *relay.Server
	entry   portal.Relay // how the portal knows the relay
	token   string
	files   portal.Resource
	gateway *gateway.Gateway
	client  *client.Client

	closers []func() error // in the order of making
}

// forking keeps a process from being started while a client makes its TUN device:
// it is made by one library and attached to by another, and the descriptor that
// was closed in between stays open in a child until that executes.
var forking sync.Mutex

const (
	portalPort = 8081
	stopGrace  = 5 * time.Second
)

// newWorld builds the deployment of a cell, with the daemon started and a grant
// for everybody. The caller closes it, even after an error.
func newWorld(cell Cell, o Options) (*world, error) {
	w := &world{options: o, cell: cell, token: "nat-" + rand.Text()}
	for _, build := range []func() error{w.buildNetwork, w.startRelay, w.startPortal, w.startResource, w.startGateway} {
		if err := build(); err != nil {
			return w, err
		}
	}
	return w, nil
}

// close ends everything in the opposite order.
func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}

func (w *world) buildNetwork() (err error) {
	w.net, err = labnet.NewDeployment(labnet.Options{
		ClientNAT: w.cell.Client, GatewayNAT: w.cell.Gateway,
		IPv4Only: w.cell.Family == IPv4, IPv6Only: w.cell.Family == IPv6,
	})
	if err == nil {
		w.closers = append(w.closers, w.net.Close)
	}
	return err
}

func (w *world) startRelay() (err error) {
	secret, host := relay.NewSecret(), w.net.Relays[0]
	w.relay, err = relay.Start(relay.Options{
		Secret: secret, IPv4: host.IPv4, IPv6: host.IPv6, Port: relay.Port, ListenPacket: host.ListenPacket,
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.relay.Close)
	w.entry.StampSecret = secret
	for _, address := range w.relay.Addrs() {
		if address.Addr().Is4() {
			w.entry.V4 = address
		} else {
			w.entry.V6 = address
		}
	}
	return nil
}

func (w *world) startPortal() error {
	at := w.net.Portal.IPv4
	if !at.IsValid() {
		at = w.net.Portal.IPv6
	}
	listener, err := w.net.Portal.Listen("tcp", netip.AddrPortFrom(at, portalPort).String())
	if err != nil {
		return fmt.Errorf("portal: %w", err)
	}
	log, err := w.logFile("portal")
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	w.portal, err = portal.New(portal.Config{
		Listener: listener, Logger: logger(log), GatewayToken: w.token, ClientToken: "client-" + w.token,
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.portal.Close)
	return w.portal.SetRelays([]portal.Relay{w.entry})
}

func (w *world) startResource() error {
	server, err := resource.Serve(w.net.Resource, w.net.Resource.IPv4, resource.DefaultPorts, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, server.Close)
	w.files, err = w.portal.AddResource(portal.Resource{Type: portal.CIDR, Name: "files", Address: w.net.Resource.IPv4.String()})
	if err != nil {
		return err
	}
	return w.portal.Grant("", w.files.ID, time.Hour)
}

func (w *world) startGateway() error {
	log, err := w.logFile("gateway")
	if err != nil {
		return err
	}
	forking.Lock()
	defer forking.Unlock()
	w.gateway, err = gateway.Start(w.net.Gateway.Host.Namespace, gateway.Options{
		Binary: w.options.Gateway, Portal: w.portal.URL(), Token: w.token, ID: "nat-gateway", Name: "nat gateway",
		Masquerade: true, TUNDriver: w.options.TUNDriver, Log: log,
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() error {
		_, err := w.gateway.Stop(stopGrace)
		return err
	})
	return nil
}

// ready waits until the gateway is known to the portal and to the relay.
func (w *world) ready(ctx context.Context) error {
	_, err := w.portal.WaitEvent(ctx, 0, func(e portal.Event) bool { return e.Kind == portal.PeerJoined && e.Role == portal.Gateway })
	if err != nil {
		return fmt.Errorf("gateway did not join: %w", err)
	}
	return await(ctx, "no allocation of the gateway", func() bool { return w.relay.Stats().Allocated > 0 })
}

// login connects the client to the portal.
func (w *world) login(ctx context.Context) error {
	log, err := w.logFile("client")
	if err != nil {
		return err
	}
	host := w.net.Clients[0].Host
	var addresses []netip.Addr
	for _, address := range []netip.Addr{host.IPv4, host.IPv6} {
		if address.IsValid() {
			addresses = append(addresses, address)
		}
	}
	forking.Lock()
	defer forking.Unlock()
	w.client, err = client.Connect(ctx, client.Config{
		Portal: w.portal.URL(), Token: "client-" + w.token, ID: "nat-client", Name: "nat client", Original: true, Allocates: true,
		Namespace: host.Namespace, Addresses: addresses, Logger: logger(log),
	})
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	w.closers = append(w.closers, w.client.Close)
	return nil
}

// server returns where the files are.
func (w *world) server() netip.AddrPort {
	return netip.AddrPortFrom(w.net.Resource.IPv4, resource.DefaultPorts.HTTP)
}

// logFile makes the log of one part, nil without a directory.
func (w *world) logFile(part string) (io.Writer, error) {
	if w.options.LogDir == "" {
		return nil, nil
	}
	dir := filepath.Join(w.options.LogDir, strings.ReplaceAll(w.cell.String(), ":", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	file, err := os.Create(filepath.Join(dir, part+".log"))
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	w.closers = append(w.closers, file.Close)
	return file, nil
}

func logger(out io.Writer) *slog.Logger {
	if out == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// await waits until a condition holds.
func await(ctx context.Context, complaint string, holds func() bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", complaint, ctx.Err())
		}
	}
	return nil
}
