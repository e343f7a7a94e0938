package actors

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tun"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// Plane is what actors publish to and find again after a restart: the packet
// path's objects and the process's configuration. It is made before the first
// actor and outlives the last one. Exported fields never change.
type Plane struct {
	Login      portal.LoginURL
	TUN        tun.Config
	Masquerade bool
	// GatewayOpen opens every port of the gateway's tunnel addresses to clients.
	GatewayOpen bool
	// NAT64 lets clients reach DNS resources by proxy addresses of the family that a
	// domain does not have.
	NAT64 bool
	Drops *drop.Counters

	Tunnel *tunnel.Tunnel
	DNS    *dns.Forwarder // what its servers have in common
	Bind   *transport.Bind
	Mux    *ice.Mux

	upstreams *dns.Upstreams // of the DNS servers and of the resolver
	sinks     *sinks
	host      host
	players   players
	sockets   transport.Config       // of Bind's sockets
	device    remembered[heldDevice] // tun; the first one is opened before it starts
	// readerStopped tells the tun actor that the engine gave up on the device.
	readerStopped chan struct{}

	keys      remembered[keyPair]
	rotating  sync.Mutex  // one change of the keys at a time
	resetting atomic.Bool // peers has begun a reset and not ended it
	rebinding atomic.Bool // transport has closed the sockets and not opened others

	// What actors leave to their next incarnation, each by its one writer.
	store     *store                               // every peer its client
	inbox     *inbox                               // peers and every peer
	siblings  remembered[messages.Siblings]        // gateway
	addresses remembered[messages.TunnelAddresses] // portal
	memory    portalMemory                         // portal
	link      linkRecord                           // portal
	relays    remembered[[]portal.DualStackRelay]  // transport
	offers    remembered[messages.RelaysChanged]   // transport
	// Of relays whose actor has ended; see there.
	allocations allocations
	served      remembered[[]netip.Addr] // dns

	peerMessages atomic.Uint64 // numbers them; peers

	arrivals *arrivals // of clients, in traces

	joined  atomic.Bool
	tunUp   atomic.Bool
	relayUp atomic.Bool
}

// PlaneConfig configures a Plane.
type PlaneConfig struct {
	Login            portal.LoginURL
	MaxPartitionTime time.Duration
	TUN              tun.Config
	Masquerade       bool
	GatewayOpen      bool // see Plane
	NAT64            bool // see Plane
	Transport        transport.Config
	Logger           *slog.Logger
	Drops            *drop.Counters
}

// NewPlane opens the TUN device and the sockets and starts the WireGuard engine,
// so that a host on which the gateway cannot work is found out before anything
// else starts. Errors of package tun are wrapped. Close releases everything.
func NewPlane(cfg PlaneConfig) (*Plane, error) {
	device, err := tun.Open(cfg.TUN)
	if err != nil {
		return nil, err
	}
	p, err := newPlane(cfg)
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	p.device.store(heldDevice{device: device})
	return p, nil
}

func newPlane(cfg PlaneConfig) (*Plane, error) {
	peers := &transport.Peers{}
	cfg.Transport.Peers, cfg.Transport.Drops, cfg.Transport.Logger = peers, cfg.Drops, cfg.Logger
	sockets, err := transport.Open(cfg.Transport)
	if err != nil {
		return nil, err
	}
	keys, err := newKeyPair(1)
	if err != nil {
		return nil, errors.Join(err, sockets.Close())
	}
	p := &Plane{
		Login: cfg.Login, TUN: cfg.TUN, Masquerade: cfg.Masquerade, GatewayOpen: cfg.GatewayOpen, NAT64: cfg.NAT64, Drops: cfg.Drops,
		host: thisHost, players: allPlayers, sockets: cfg.Transport, readerStopped: make(chan struct{}, 1),
		store: newStore(), arrivals: newArrivals(), inbox: newInbox(), memory: portalMemory{backoff: portal.NewBackoff(cfg.MaxPartitionTime)},
	}
	p.upstreams = dns.NewUpstreams(dns.UpstreamsConfig{Control: p.markSocket, Drops: cfg.Drops})
	p.DNS = dns.NewForwarder(p.upstreams)
	p.keys.store(keys)
	p.sinks = &sinks{drops: cfg.Drops, plane: p}
	p.Bind = transport.NewBind(sockets, p.sinks)
	p.Mux = ice.NewMux(p.sinks, cfg.Drops)
	p.sinks.mux.Store(p.Mux)
	p.Tunnel, err = tunnel.New(tunnel.Config{
		PrivateKey: keys.private, Bind: p.Bind, Peers: peers, Logger: cfg.Logger,
		OnDeviceLost: func(err error) {
			cfg.Logger.Warn("TUN device stopped working", "error", err)
			select {
			case p.readerStopped <- struct{}{}:
			default: // once is enough
			}
		},
	})
	if err != nil {
		p.Mux.Close()
		return nil, errors.Join(err, sockets.Close())
	}
	return p, nil
}

// Close ends the engine and the sockets, and the allocations at relays.
func (p *Plane) Close() error {
	p.giveBack(time.Now())
	p.Tunnel.Close()
	p.Mux.Close()
	err := p.Bind.Sockets().Close()
	if held := p.device.load(); held.device != nil {
		err = errors.Join(err, held.device.Close())
	}
	return err
}

// markSocket puts the routing mark on a socket that must bypass the tunnel's
// own policy rules (dataplane §7.3).
func (p *Plane) markSocket(_, _ string, c syscall.RawConn) error {
	mark := int(p.sockets.Mark)
	if mark == 0 {
		return nil
	}
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
	}); e != nil {
		return e
	}
	return err
}

// Missing names what keeps the gateway from serving clients; nothing if it does.
func (p *Plane) Missing() []string {
	var missing []string
	if !p.joined.Load() {
		missing = append(missing, "portal")
	}
	if !p.tunUp.Load() {
		missing = append(missing, "tun")
	}
	if !p.relayUp.Load() && !hostPath(p.offers.load()) {
		missing = append(missing, "relay")
	}
	return missing
}

// remembered is a value of an actor for its next incarnation.
type remembered[T any] struct{ p atomic.Pointer[T] }

func (r *remembered[T]) store(v T) { r.p.Store(&v) }

func (r *remembered[T]) load() (v T) {
	if p := r.p.Load(); p != nil {
		v = *p
	}
	return v
}
