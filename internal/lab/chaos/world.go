package chaos

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/lab/resource"
	"firezone-gateway/internal/lab/traces"
)

// The private network behind the gateway.
var (
	filesAt   = netip.MustParseAddr("10.20.0.10") // transfers and echoes, granted for good
	revokedAt = netip.MustParseAddr("10.20.0.11") // granted, used, and revoked before anything fails
	cycledAt  = netip.MustParseAddr("10.20.0.12") // granted and revoked again and again
	secretAt  = netip.MustParseAddr("10.20.0.14") // never granted
	houseAt   = netip.MustParseAddr("10.20.0.20") // what the domain resolves to
	namesAt   = netip.MustParseAddr("10.20.0.53") // the site's name server
	private   = netip.MustParsePrefix("10.20.0.0/24")
)

const (
	zone        = "chaos.example"
	domain      = "house." + zone // of the DNS resource
	textName    = "text." + zone  // has a TXT record
	portalPort  = 8081
	outsidePort = 4100 // of the echo service that is reached without the gateway
	gatewayID   = "chaos-gateway"
	longAccess  = 24 * time.Hour
	stopGrace   = 15 * time.Second
	relays      = 2
	ownLimit    = 30 * time.Second // for everything a world needs to begin its work
)

// forking keeps a process from being started while a client makes its TUN device,
// whose descriptor would stay open in the child until that executes.
var forking sync.Mutex

// world is a deployment whose parts are meant to fail.
type world struct {
	options Options
	part    string // names its folder of logs
	net     *labnet.Deployment
	portal  *portal.Server
	relays  []*relay.Server
	names   *resource.DNSServer
	token   string
	conf    string // path of the daemon's resolv.conf
	spans   *traces.Sink

	files, revoked, cycled, house portal.Resource

	mu      sync.Mutex
	gateway *gateway.Gateway // guarded by mu: a supervisor replaces it
	clients []*client.Client
	closers []func() error // in the order of making
	logs    []io.Closer    // closed last
}

// shape says what a world consists of.
type shape struct {
	clients int
	nat     labnet.NATKind
}

// newWorld builds a world with the daemon started and everything granted but the
// secret. The caller closes it, even after an error.
func newWorld(part string, s shape, o Options) (*world, error) {
	w := &world{options: o, part: part, token: "chaos-" + rand.Text()}
	for _, build := range []func() error{
		func() error { return w.buildNetwork(s) }, w.startPortal, w.startRelays, w.startSite, w.addResources, w.startGateway,
	} {
		if err := build(); err != nil {
			return w, fmt.Errorf("build the deployment: %w", err)
		}
	}
	return w, nil
}

// close ends everything in the opposite order of its making.
func (w *world) close() error {
	var errs []error
	for _, c := range w.clients {
		errs = append(errs, c.Close())
	}
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	for _, log := range w.logs {
		errs = append(errs, log.Close())
	}
	w.clients, w.closers, w.logs = nil, nil, nil
	return errors.Join(errs...)
}

func (w *world) buildNetwork(s shape) (err error) {
	w.net, err = labnet.NewDeployment(labnet.Options{
		ClientNAT: s.nat, GatewayNAT: s.nat, Clients: min(s.clients, sites), Relays: relays, IPv4Only: true,
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.net.Close)
	for i := sites; i < s.clients; i++ {
		if err := w.addPublicClient(i); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) startPortal() error {
	listener, err := w.net.Portal.Listen("tcp", netip.AddrPortFrom(w.net.Portal.IPv4, portalPort).String())
	if err != nil {
		return err
	}
	log, err := w.logger("portal")
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	w.portal, err = portal.New(portal.Config{
		Listener: listener, Logger: log, GatewayToken: w.token, ClientToken: "client-" + w.token,
	})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.portal.Close)
	// The way to this one shares everything with the way to the resources but the
	// gateway.
	return w.serve(w.net.Portal, w.net.Portal.IPv4, resource.Ports{UDPEcho: outsidePort})
}

func (w *world) startRelays() error {
	var entries []portal.Relay
	for _, host := range w.net.Relays {
		secret := relay.NewSecret()
		server, err := relay.Start(relay.Options{Secret: secret, IPv4: host.IPv4, Port: relay.Port, ListenPacket: host.ListenPacket})
		if err != nil {
			return err
		}
		w.relays = append(w.relays, server)
		w.closers = append(w.closers, server.Close)
		entries = append(entries, portal.Relay{StampSecret: secret, V4: server.Addrs()[0]})
	}
	return w.portal.SetRelays(entries)
}

// startSite starts what is behind the gateway. The addresses of what must not be
// reached have no service: the probes listen there themselves.
func (w *world) startSite() (err error) {
	for _, at := range []netip.Addr{filesAt, revokedAt, cycledAt, secretAt, houseAt, namesAt} {
		if err := w.addAddress(at); err != nil {
			return err
		}
	}
	for _, at := range []netip.Addr{filesAt, houseAt} {
		if err := w.serve(w.net.Resource, at, resource.DefaultPorts); err != nil {
			return err
		}
	}
	if w.names, err = resource.ServeDNS(w.net.Resource, namesAt, 53); err != nil {
		return err
	}
	w.closers = append(w.closers, w.names.Close)
	return errors.Join(w.names.SetAddresses(domain, houseAt), w.names.Set(textName+`. 60 IN TXT "still there"`))
}

func (w *world) serve(n resource.Network, at netip.Addr, ports resource.Ports) error {
	server, err := resource.Serve(n, at, ports, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, server.Close)
	return nil
}

// addAddress puts one more address on the resource host's device.
func (w *world) addAddress(at netip.Addr) error {
	if at == w.net.Resource.IPv4 {
		return nil
	}
	return w.net.Resource.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: at.AsSlice(), Mask: net.CIDRMask(private.Bits(), 32)}})
	})
}

func (w *world) addResources() error {
	for _, r := range []struct {
		to      *portal.Resource
		kind    portal.ResourceType
		address string
	}{
		{&w.files, portal.CIDR, filesAt.String()},
		{&w.revoked, portal.CIDR, revokedAt.String()},
		{&w.cycled, portal.CIDR, cycledAt.String()},
		{new(portal.Resource), portal.CIDR, secretAt.String()},
		{&w.house, portal.DNS, "*." + zone},
	} {
		added, err := w.portal.AddResource(portal.Resource{Type: r.kind, Name: r.address, Address: r.address})
		if err != nil {
			return err
		}
		*r.to = added
	}
	return errors.Join(w.portal.Grant("", w.files.ID, longAccess), w.portal.Grant("", w.house.ID, longAccess))
}

// startGateway starts a daemon, the first one or the next.
func (w *world) startGateway() error {
	if w.conf == "" {
		dir, err := os.MkdirTemp("", "chaos-")
		if err != nil {
			return err
		}
		w.closers = append(w.closers, func() error { return os.RemoveAll(dir) })
		w.conf = filepath.Join(dir, "resolv.conf")
		if err := os.WriteFile(w.conf, []byte("nameserver "+namesAt.String()+"\n"), 0o644); err != nil {
			return err
		}
		w.closers = append(w.closers, w.stopGateway)
	}
	log, err := w.logFile("gateway")
	if err != nil {
		return err
	}
	env := []string{"FIREZONE_ENABLE_FAULT_INJECTION=true"}
	if w.options.Traces {
		if err := w.collectSpans(); err != nil {
			return err
		}
		env = append(env, spansTo...)
	}
	forking.Lock()
	defer forking.Unlock()
	g, err := gateway.Start(w.net.Gateway.Host.Namespace, gateway.Options{
		Binary: w.options.Gateway, Portal: w.portal.URL(), Token: w.token, ID: gatewayID, Name: "chaos gateway",
		Masquerade: true, TUNDriver: w.options.TUNDriver, LogLevel: w.options.LogLevel, Log: log, Env: env,
		Files: []labnet.File{{Source: w.conf, Target: "/etc/resolv.conf"}},
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gateway = g
	return nil
}

// daemon returns the process that runs, or ran last.
func (w *world) daemon() *gateway.Gateway {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gateway
}

func (w *world) stopGateway() error {
	g := w.daemon()
	if g == nil || !g.Running() {
		return nil
	}
	_, err := g.Stop(stopGrace)
	return err
}

// begin waits for the daemon, logs the clients in, and lets each have the files.
func (w *world) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ownLimit+time.Duration(len(w.net.Clients))*2*time.Second)
	defer cancel()
	if _, err := w.portal.WaitEvent(ctx, 0, gatewayJoined); err != nil {
		return fmt.Errorf("gateway did not join: %w", err)
	}
	if err := w.awaitReady(ctx); err != nil {
		return err
	}
	if w.options.Relayed {
		if err := w.net.BlockDirect(true); err != nil {
			return err
		}
	}
	for i := range w.net.Clients {
		if err := w.connect(ctx, i); err != nil {
			return err
		}
		if err := w.clients[i].Access(ctx, w.files.ID, private); err != nil {
			return fmt.Errorf("%s: %w", clientID(i), err)
		}
	}
	return nil
}

// awaitReady waits until every part of the gateway says that it is well.
func (w *world) awaitReady(ctx context.Context) error {
	var last status
	err := await(ctx, func() bool {
		s, err := w.status(ctx)
		if err != nil {
			return false
		}
		last = s
		return s.Ready && len(s.unwell()) == 0
	})
	if err != nil {
		return fmt.Errorf("gateway is not ready, missing %v, unwell %v: %w", last.Missing, last.unwell(), err)
	}
	return nil
}

// lastEvent returns the number of the portal's latest event.
func (w *world) lastEvent() uint64 {
	events := w.portal.Events(0)
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Seq
}

func gatewayJoined(e portal.Event) bool {
	return e.Kind == portal.PeerJoined && e.Role == portal.Gateway
}

// await repeats condition until it is true or ctx ends.
func await(ctx context.Context, condition func() bool) error {
	for !condition() {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
