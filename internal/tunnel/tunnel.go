// Package tunnel is the packet path: the WireGuard engine between the UDP
// sockets and the TUN device, and the two pipelines that apply each client's
// policy to whole batches. It knows no actor. Actors add and remove clients and
// publish policy snapshots; packets only read what was published.
//
// The way from a client to a resource is
//
//	socket → demultiplexer → engine (decrypt) → WriteTo → toResource → TUN
//
// and the way back
//
//	TUN → Read → toClient → engine (encrypt) → bind → socket
package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"
	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/transport"
)

// ErrKeyTaken says that a client with that key, or with one that shares its
// first four bytes, or with one of its tunnel addresses, is present already.
var ErrKeyTaken = errors.New("tunnel: key, flow or address belongs to another client")

// ErrAddress says that a client's address is outside the tunnel ranges.
var ErrAddress = errors.New("tunnel: address outside the tunnel ranges")

// Config describes a tunnel. All fields are required.
type Config struct {
	PrivateKey [32]byte
	Bind       conn.Bind
	Peers      *transport.Peers
	Logger     *slog.Logger
	// OnDeviceLost is called once for each TUN device that stops working while it
	// is attached. It must not block. The device is detached by then and still
	// belongs to whoever opened it; the tunnel waits for the next AttachTUN.
	OnDeviceLost func(error)
}

// Tunnel is the packet path of the gateway. It is created once per process;
// TUN device and sockets may be replaced underneath it.
type Tunnel struct {
	cfg    Config
	engine *device.Device
	dev    *engineDevice
	inject *injector

	mu     sync.Mutex // serialises Add, Remove, reap and Totals
	gone   Totals     // of removed clients; guarded by mu
	reaper sync.WaitGroup

	byKey  *shards[[32]byte, *Client]
	byFlow *shards[uint32, *Client]
	byAddr addresses

	drops drop.Counters
}

// New starts the engine. Close releases it.
func New(cfg Config) (*Tunnel, error) {
	t := newTunnel(cfg)
	t.engine = device.NewDevice(t.dev, &clientBind{Bind: cfg.Bind, tunnel: t}, t.engineLogger())
	t.engine.SetPeerLookupFunc(t.lookupPeer)
	t.engine.SetPeerByIPPacketFunc(t.route)
	t.engine.SetSessionStateFunc(t.sessionChanged)
	if err := t.engine.SetPrivateKey(device.NoisePrivateKey(cfg.PrivateKey)); err != nil {
		t.engine.Close()
		return nil, fmt.Errorf("set private key: %w", err)
	}
	if err := t.engine.Up(); err != nil {
		t.engine.Close()
		return nil, fmt.Errorf("bring up engine: %w", err)
	}
	return t, nil
}

// newTunnel returns the tunnel without its engine.
func newTunnel(cfg Config) *Tunnel {
	t := &Tunnel{
		cfg:    cfg,
		inject: newInjector(),
		byKey:  newShards[[32]byte, *Client](func(k [32]byte) uint8 { return k[0] }),
		byFlow: newShards[uint32, *Client](func(f uint32) uint8 { return uint8(f) }),
	}
	t.dev = newEngineDevice(t)
	return t
}

// Close stops the engine and closes the attached TUN device. A device that was
// detached before has to be closed by then.
func (t *Tunnel) Close() {
	t.engine.Close()
	<-t.engine.Wait()
	t.reaper.Wait()
}

// AttachTUN puts dev to use and returns the device it replaces. A nil dev
// detaches. The caller closes the replaced device, on which the reader stays
// until then; what it still reads is passed on.
func (t *Tunnel) AttachTUN(dev enginetun.Device) enginetun.Device { return t.dev.attach(dev) }

// Drops counts packets that could not be attributed to a client.
func (t *Tunnel) Drops() *drop.Counters { return &t.drops }

// Add admits a client: its initiations are answered and packets to its tunnel
// addresses are sent to it. ErrKeyTaken is returned when another client holds
// the key, the flow (first four bytes of the key) or one of the addresses. One
// that a goodbye was said to does not count, it is removed.
func (t *Tunnel) Add(cfg ClientConfig) (*Client, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := newClient(cfg)
	if slices.ContainsFunc(c.addresses(), func(a netip.Addr) bool { return !policy.IsTunnel(a) }) {
		return nil, ErrAddress
	}
	rivals := t.rivals(c)
	for _, r := range rivals {
		if !r.closing.Load() {
			return nil, ErrKeyTaken
		}
	}
	for _, r := range rivals {
		t.remove(r)
	}
	// The key comes last: with it the engine answers, and what it answers needs
	// the rest.
	t.cfg.Peers.Add(cfg.PublicKey, c.endpoint.Endpoint)
	t.byFlow.put(c.flow, c)
	for _, a := range c.addresses() {
		t.byAddr.put(a, c)
	}
	t.byKey.put(cfg.PublicKey, c)
	return c, nil
}

// Lookup finds an admitted client by its key. One that a goodbye was said to is
// not found.
func (t *Tunnel) Lookup(key [32]byte) (*Client, bool) {
	c, ok := t.byKey.get(key)
	if !ok || c.closing.Load() {
		return nil, false
	}
	return c, true
}

// Has reports whether a is the tunnel address of a client that may send packets.
func (t *Tunnel) Has(a netip.Addr) bool {
	c := t.byAddr.get(a)
	return c != nil && !c.closing.Load()
}

// Each calls f for every client that was added and not removed.
func (t *Tunnel) Each(f func(*Client)) {
	t.byKey.each(func(_ [32]byte, c *Client) { f(c) })
}

// Remove forgets the client without telling it; its session ends. It waits for
// the batches of that client that are under way, so it must not be called from
// a callback. Removing twice is harmless.
func (t *Tunnel) Remove(c *Client) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cur, ok := t.byKey.get(c.cfg.PublicKey); ok && cur == c {
		t.remove(c)
	}
}

// Rekey gives the gateway another private key. Every client is forgotten as by
// Remove, because none of them can know the new key yet.
func (t *Tunnel) Rekey(private [32]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Each(t.remove)
	if err := t.engine.SetPrivateKey(device.NoisePrivateKey(private)); err != nil {
		return fmt.Errorf("set private key: %w", err)
	}
	return nil
}

// SendDomainStatus answers a client's domain set-up (dataplane §3.1). It reports
// false when the packet had to be dropped.
func (t *Tunnel) SendDomainStatus(c *Client, e packet.DomainStatusEvent) bool {
	if !c.connected() {
		c.drops.Add(drop.NotConnected, 1)
		return false
	}
	pkt, err := packet.AppendDomainStatus(nil, e)
	if err != nil {
		return false // a domain too long for one packet was not set up by us
	}
	return t.inject.push(c, func(dst []byte) []byte { return append(dst, pkt...) })
}

// rivals returns the clients that hold what c needs.
func (t *Tunnel) rivals(c *Client) []*Client {
	var out []*Client
	note := func(r *Client, ok bool) {
		if ok && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	note(t.byKey.get(c.cfg.PublicKey))
	note(t.byFlow.get(c.flow))
	for _, a := range c.addresses() {
		r := t.byAddr.get(a)
		note(r, r != nil)
	}
	return out
}

// remove undoes Add. The caller holds mu.
func (t *Tunnel) remove(c *Client) {
	t.byKey.delete(c.cfg.PublicKey)
	t.byFlow.delete(c.flow)
	for _, a := range c.addresses() {
		t.byAddr.delete(a)
	}
	t.cfg.Peers.Remove(c.cfg.PublicKey)
	t.engine.RemovePeer(device.NoisePublicKey(c.cfg.PublicKey))
	c.session.Store(uint32(SessionNone))
	c.removed.Store(true)
	t.gone.add(c)
}

// reap makes the engine forget the peer it made for c although c is removed.
// That happens when lookupPeer answers just before Remove and the engine makes
// the peer just after; unreaped, it would keep the next client with this key
// from connecting until it idles out.
func (t *Tunnel) reap(c *Client) {
	if c.reaped.Swap(true) {
		return
	}
	t.reaper.Go(func() { // the engine calls from inside the peer
		t.mu.Lock()
		defer t.mu.Unlock()
		t.engine.RemovePeer(device.NoisePublicKey(c.cfg.PublicKey))
	})
}

// lookupPeer is the engine's hook for initiations of peers it has not loaded.
// Source addresses are judged by the policy, which answers the client instead
// of dropping silently, so the engine admits any (dataplane §2.1 step 6).
func (t *Tunnel) lookupPeer(key device.NoisePublicKey) (*device.NewPeerConfig, bool) {
	c, ok := t.byKey.get(key)
	if !ok {
		return nil, false
	}
	return &device.NewPeerConfig{
		AllowedIPs:   anySource,
		PresharedKey: device.NoisePresharedKey(c.cfg.PresharedKey),
		Endpoint:     c.endpoint,
	}, true
}

var anySource = []netip.Prefix{
	netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

// route is the engine's hook that names the client of a packet on its way out.
// The engine calls it from the reader goroutine of the queue that produced the
// packet, once per packet and in order; that is what claim builds on. Only the
// injector's packets have no destination, because toClient lets nothing through
// that is not addressed to a client.
//
// A client that was not heard yet is refused: the engine would queue the packet and
// start a handshake, which is up to the client (dataplane rule 70).
func (t *Tunnel) route(_, dst netip.Addr, pkt []byte) (device.NoisePublicKey, bool) {
	injected := dst.IsUnspecified()
	var c *Client
	if injected {
		c = t.inject.claim(pkt)
	} else {
		c = t.dev.claim(dst)
	}
	switch {
	case c == nil:
		t.drops.Add(drop.NoPeerState, 1)
		return device.NoisePublicKey{}, false
	case c.removed.Load() || !c.reachable() || (!injected && c.closing.Load()):
		c.drops.Add(drop.NotConnected, 1)
		return device.NoisePublicKey{}, false
	}
	return c.cfg.PublicKey, true
}

func (t *Tunnel) sessionChanged(key device.NoisePublicKey, state device.PeerSessionState) {
	c, ok := t.byKey.get(key)
	if !ok {
		return
	}
	switch state {
	case device.PeerSessionHandshake:
		c.setSession(SessionHandshake)
	case device.PeerSessionEstablished:
		c.setSession(SessionEstablished)
	case device.PeerSessionExpired:
		c.setSession(SessionExpired)
	default:
		c.setSession(SessionNone)
	}
}

func (t *Tunnel) engineLogger() *device.Logger {
	return &device.Logger{
		Verbosef: func(string, ...any) {},
		Errorf: func(format string, args ...any) {
			t.cfg.Logger.Warn(fmt.Sprintf("WireGuard engine: "+format, args...))
		},
	}
}
