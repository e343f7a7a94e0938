// Package tour shows a gateway at its work. A World is a whole deployment on
// one machine: network, portal, relay, private resources, clients, and the real
// daemon as a process. A Step promises something about it, makes it happen, and
// measures what came of it. firezone-lab runs the steps as a demonstration, the
// package's tests run the same ones as an end-to-end test.
package tour

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
	"time"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/gateway"
	"firezone-gateway/internal/lab/natbox"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/lab/resource"
)

// Options shape a World and how hard the steps press it.
type Options struct {
	Gateway   string // path of the daemon's executable
	TUNDriver string // of the daemon; "" is its default
	V1        bool   // portal and clients speak the older generation
	LogDir    string // one log file per part; "" keeps none
	LogLevel  string // of the daemon; "" is info

	NAT      labnet.NATKind // on the clients' and on the gateway's side
	IPv4Only bool           // of the network outside the tunnel
	Clients  int            // at least 1

	Transfer      int64         // bytes of each download and upload
	RelayTransfer int64         // bytes of the download through the relay
	EchoRate      float64       // bits per second of UDP payload, all clients together
	EchoTime      time.Duration // how long that lasts
	FirstPacket   time.Duration // bound from authorization to first packet; 0 for none

	scene scene
}

// scene is what a test arranges around the parts of a World.
type scene struct {
	legacy     portal.Legacy
	persistent bool                           // clients ask again after a goodbye
	original   bool                           // clients look for paths as the original does
	relays     int                            // that the portal knows; 0 means 1
	spares     int                            // relays more that it does not know
	oneFamily  bool                           // relays have one family: the first IPv4, the next IPv6, and so on
	clientLine natbox.Line                    // between the clients' side and the internet
	openSide   bool                           // no NAT on the gateway's side
	clientKey  [32]byte                       // private; the zero value lets clients make one
	prepare    func(*World) error             // runs when all but the daemon is there
	daemon     func(*World, *gateway.Options) // has the last word on the daemon's options
}

// World is a running deployment.
type World struct {
	options Options
	net     *labnet.Deployment
	portal  *portal.Server
	relay   *relay.Server   // the first one
	relays  []*relay.Server // those that the portal knows at first, then the spares
	entries []portal.Relay  // the same, as the portal describes them
	token   string          // of the gateway

	resources map[role]portal.Resource
	servers   []*resource.Server

	gateway *gateway.Gateway
	clients []*client.Client
	arrived []arrival // of the clients, as they were authorized

	logs []io.Closer
}

const (
	portalPort  = 8081
	gatewayID   = "lab-gateway"
	longAccess  = time.Hour
	stopGrace   = 15 * time.Second // the gateway's own bound
	gatewayName = "lab gateway"
)

// New builds a World whose daemon has just been started. When it returns an
// error, nothing is left behind.
func New(o Options) (*World, error) {
	w := &World{options: o, token: "gateway-" + rand.Text(), resources: make(map[role]portal.Resource)}
	if err := w.build(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close ends everything and removes it. It may be called more than once.
func (w *World) Close() error {
	var errs []error
	for _, c := range w.clients {
		errs = append(errs, c.Close())
	}
	if w.gateway != nil && w.gateway.Running() {
		// How well it ends is the subject of a step, not of this.
		_, _ = w.gateway.Stop(stopGrace)
	}
	for _, s := range w.servers {
		errs = append(errs, s.Close())
	}
	for _, r := range w.relays {
		errs = append(errs, r.Close())
	}
	if w.portal != nil {
		errs = append(errs, w.portal.Close())
	}
	if w.net != nil {
		errs = append(errs, w.net.Close())
	}
	for _, log := range w.logs {
		errs = append(errs, log.Close())
	}
	w.clients, w.servers, w.relays, w.portal, w.net, w.logs = nil, nil, nil, nil, nil, nil
	return errors.Join(errs...)
}

// Network returns the namespaces that make up the deployment.
func (w *World) Network() *labnet.Deployment { return w.net }

// Gateway returns the daemon's process.
func (w *World) Gateway() *gateway.Gateway { return w.gateway }

// PortalURL returns the address that gateway and clients log in to, as seen
// from inside the deployment.
func (w *World) PortalURL() string { return w.portal.URL() }

// Revive brings the daemon and the main client's access back after the steps
// have ended the one and let the other lapse.
func (w *World) Revive(ctx context.Context) error {
	if w.gateway.Running() {
		return nil
	}
	after, allocated := w.lastEvent(), w.relay.Stats().Allocated
	if err := w.startGateway(); err != nil {
		return err
	}
	if _, err := w.portal.WaitEvent(ctx, after, joined); err != nil {
		return fmt.Errorf("gateway did not join: %w", err)
	}
	if err := w.awaitAllocation(ctx, allocated); err != nil {
		return err
	}
	if len(w.clients) == 0 {
		return nil
	}
	return errors.Join(w.access(ctx, 0, files4), w.access(ctx, 0, files6))
}

func (w *World) build() (err error) {
	o := w.options
	known := max(o.scene.relays, 1)
	gatewayNAT := o.NAT
	if o.scene.openSide {
		gatewayNAT = labnet.NoNAT
	}
	w.net, err = labnet.NewDeployment(labnet.Options{
		ClientNAT: o.NAT, GatewayNAT: gatewayNAT, Clients: o.Clients, Relays: known + o.scene.spares, IPv4Only: o.IPv4Only,
		ClientLine: o.scene.clientLine,
	})
	if err != nil {
		return err
	}
	if err := w.startPortal(); err != nil {
		return err
	}
	if err := w.startRelays(known); err != nil {
		return err
	}
	if err := w.addResources(); err != nil {
		return err
	}
	if prepare := o.scene.prepare; prepare != nil {
		if err := prepare(w); err != nil {
			return err
		}
	}
	return w.startGateway()
}

func (w *World) startPortal() error {
	listener, err := w.net.Portal.Listen("tcp", netip.AddrPortFrom(w.net.Portal.IPv4, portalPort).String())
	if err != nil {
		return fmt.Errorf("portal: %w", err)
	}
	log, err := w.logger("portal")
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	w.portal, err = portal.New(portal.Config{
		Listener: listener, Logger: log, V1Only: w.options.V1,
		GatewayToken: w.token, ClientToken: "client-" + w.token, Legacy: w.options.scene.legacy,
	})
	return err
}

// startRelays starts all relays and makes the first ones known to the portal.
func (w *World) startRelays(known int) error {
	for i, host := range w.net.Relays {
		o := relay.Options{
			Secret: relay.NewSecret(), IPv4: host.IPv4, IPv6: host.IPv6, Port: relay.Port, ListenPacket: host.ListenPacket,
		}
		switch {
		case !w.options.scene.oneFamily:
		case i%2 == 0:
			o.IPv6 = netip.Addr{}
		default:
			o.IPv4 = netip.Addr{}
		}
		// Without a log: the server writes some lines for each packet.
		server, err := relay.Start(o)
		if err != nil {
			return err
		}
		w.relays = append(w.relays, server)
		w.entries = append(w.entries, relayEntry(server, o.Secret))
	}
	w.relay = w.relays[0]
	return w.portal.SetRelays(w.entries[:known])
}

// relayEntry describes a relay to the portal.
func relayEntry(server *relay.Server, secret string) portal.Relay {
	entry := portal.Relay{StampSecret: secret}
	for _, address := range server.Addrs() {
		if address.Addr().Is4() {
			entry.V4 = address
		} else {
			entry.V6 = address
		}
	}
	return entry
}

func (w *World) startGateway() error {
	log, err := w.logFile("gateway")
	if err != nil {
		return err
	}
	o := gateway.Options{
		Binary: w.options.Gateway, Portal: w.portal.URL(), Token: w.token, ID: gatewayID, Name: gatewayName,
		Masquerade: true, TUNDriver: w.options.TUNDriver, LogLevel: w.options.LogLevel, Log: log,
	}
	if arrange := w.options.scene.daemon; arrange != nil {
		arrange(w, &o)
	}
	w.gateway, err = gateway.Start(w.net.Gateway.Host.Namespace, o)
	return err
}

// connect logs client i in.
func (w *World) connect(ctx context.Context, i int) error {
	log, err := w.logger(clientID(i))
	if err != nil {
		return err
	}
	host := w.net.Clients[i].Host
	addresses := []netip.Addr{host.IPv4}
	if host.IPv6.IsValid() {
		addresses = append(addresses, host.IPv6)
	}
	c, err := client.Connect(ctx, client.Config{
		Portal: w.portal.URL(), Token: "client-" + w.token, ID: clientID(i), Name: clientID(i), V1: w.options.V1,
		Persistent: w.options.scene.persistent, Original: w.options.scene.original, PrivateKey: w.options.scene.clientKey, Namespace: host.Namespace, Addresses: addresses, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", clientID(i), err)
	}
	w.clients = append(w.clients, c)
	return nil
}

func clientID(i int) string { return fmt.Sprintf("lab-client-%d", i+1) }

// host returns the namespace of client i.
func (w *World) host(i int) *labnet.Namespace { return w.net.Clients[i].Host.Namespace }

// lastEvent returns the sequence number of the portal's latest event.
func (w *World) lastEvent() uint64 {
	events := w.portal.Events(0)
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Seq
}

// logger returns a logger to the part's file, or one that discards.
func (w *World) logger(part string) (*slog.Logger, error) {
	file, err := w.logFile(part)
	if file == nil || err != nil {
		return slog.New(slog.DiscardHandler), err
	}
	return slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug})), nil
}

// logFile appends to the part's file, nil without a directory.
func (w *World) logFile(part string) (io.Writer, error) {
	if w.options.LogDir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(w.options.LogDir, 0o755); err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(w.options.LogDir, part+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	w.logs = append(w.logs, file)
	return file, nil
}
