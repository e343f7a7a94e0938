package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/transport"
)

// Session is the state of a client's WireGuard session.
type Session uint8

// The session states, in the order in which a session passes them.
const (
	SessionNone Session = iota
	SessionHandshake
	SessionEstablished
	SessionExpired
)

// String returns the state as it appears in status output.
func (s Session) String() string {
	switch s {
	case SessionHandshake:
		return "handshake"
	case SessionEstablished:
		return "established"
	case SessionExpired:
		return "expired"
	default:
		return "none"
	}
}

// ClientConfig describes one client to the packet path.
type ClientConfig struct {
	PublicKey    [32]byte
	PresharedKey [32]byte
	// TunnelV4 and TunnelV6 are the client's tunnel addresses; packets from the
	// TUN device to them go to this client. An invalid address is left out, one
	// outside the tunnel ranges is an error.
	TunnelV4, TunnelV6 netip.Addr
	// Policy is in force from the first packet on. It must not be nil.
	Policy *policy.Snapshot
	// NAT translates what goes to DNS resources; nil until the first is set up.
	NAT *NAT
	// Callbacks tell the owner what happens.
	Callbacks Callbacks
}

// Callbacks are how a client's owner hears from the packet path. All are
// required, run on the packet path and must not block.
type Callbacks struct {
	// Control receives each in-tunnel control packet (dataplane §3.1), which is
	// valid during the call only. It returns false when it could not take it.
	Control func(pkt []byte) bool
	// Session is told about every change of the WireGuard session, in order. It
	// runs inside the engine and must not call into the tunnel.
	Session func(Session)
	// Path is told when authenticated traffic moves the client to another path.
	Path func(*transport.Path)
}

// Client is one client as the packet path sees it. It outlives restarts of the
// actor that owns it; that actor finds it again with Tunnel.Lookup.
type Client struct {
	// What every packet needs comes first and fits into two cache lines.
	policy  atomic.Pointer[policy.Snapshot]
	nat     atomic.Pointer[NAT]
	session atomic.Uint32
	heard   atomic.Bool // authenticated traffic has come, so there is a path
	closing atomic.Bool // being said goodbye to
	removed atomic.Bool // the engine has let go of it
	reaped  atomic.Bool // and of the peer that it made too late
	// next is told of the next packet that passes; see OnNextPacket.
	next     atomic.Pointer[func(time.Time)]
	counters ClientCounters
	cfg      ClientConfig

	moved     atomic.Int64 // Unix nanoseconds of the last Move to another path
	flow      uint32
	endpoint  *clientEndpoint
	callbacks atomic.Pointer[Callbacks]
	answers   answerBudget
	tooBig    answerBudget // of ICMP messages towards the network
	grown     *grown       // of the batch that toResource is busy with; nil if none
	drops     drop.Counters

	mark        atomic.Uint64 // tells its goodbye from other messages, 0: none
	goodbyeOnce sync.Once
	goodbye     chan struct{} // closed when the goodbye was sent
}

// ClientCounters are the live traffic counters of a client. Packets and bytes
// are inner packets that passed the policy.
type ClientCounters struct {
	ToResourcePackets, ToResourceBytes atomic.Uint64
	ToClientPackets, ToClientBytes     atomic.Uint64
	LastActive                         atomic.Int64  // Unix nanoseconds of the last inner packet, 0: none
	LastHandshake                      atomic.Int64  // Unix nanoseconds of the last handshake that was answered, 0: none
	Handshakes                         atomic.Uint64 // that were answered
}

// PublicKey returns the client's WireGuard key.
func (c *Client) PublicKey() [32]byte { return c.cfg.PublicKey }

// PresharedKey returns the preshared key the client was added with.
func (c *Client) PresharedKey() [32]byte { return c.cfg.PresharedKey }

// Serves reports whether the client was added with these tunnel addresses.
func (c *Client) Serves(v4, v6 netip.Addr) bool { return c.cfg.TunnelV4 == v4 && c.cfg.TunnelV6 == v6 }

// SetPolicy puts s in force with the next batch of packets.
func (c *Client) SetPolicy(s *policy.Snapshot) { c.policy.Store(s) }

// Policy returns the snapshot in force.
func (c *Client) Policy() *policy.Snapshot { return c.policy.Load() }

// SetNAT puts n in force with the next batch of packets.
func (c *Client) SetNAT(n *NAT) { c.nat.Store(n) }

// Session returns the state of the WireGuard session.
func (c *Client) Session() Session { return Session(c.session.Load()) }

// Path returns the path of the last authenticated packet, nil before the first.
func (c *Client) Path() *transport.Path { return c.endpoint.Path() }

// Move leads what goes to the client to p, until authenticated traffic comes from
// elsewhere. It does nothing before the first.
func (c *Client) Move(p *transport.Path) {
	before := c.Path()
	c.endpoint.Move(p)
	if before != nil && !p.Same(before) {
		c.moved.Store(time.Now().UnixNano())
	}
}

// yields reports whether a handshake of ours would cross one that the client begins
// on the pair it has just nominated. The engine handles the messages of both on
// several goroutines, which can leave the two sides with different keys; it repeats
// its own initiation five seconds later, if there was no other.
func (c *Client) yields() bool { return time.Now().UnixNano()-c.moved.Load() < int64(yieldFor) }

// Counters returns the client's live traffic counters.
func (c *Client) Counters() *ClientCounters { return &c.counters }

// Drops returns the client's drop counters.
func (c *Client) Drops() *drop.Counters { return &c.drops }

// Adopt replaces the callbacks, for the next incarnation of the owner.
func (c *Client) Adopt(callbacks Callbacks) { c.callbacks.Store(&callbacks) }

func newClient(cfg ClientConfig) *Client {
	c := &Client{cfg: cfg, flow: flowOf(cfg.PublicKey), goodbye: make(chan struct{})}
	c.endpoint = &clientEndpoint{client: c, Endpoint: transport.NewEndpoint(func(p *transport.Path) {
		c.heard.Store(true)
		c.callbacks.Load().Path(p)
	})}
	c.policy.Store(cfg.Policy)
	c.nat.Store(cfg.NAT)
	c.Adopt(cfg.Callbacks)
	return c
}

func (c *Client) setSession(s Session) {
	if Session(c.session.Swap(uint32(s))) == s {
		return
	}
	c.callbacks.Load().Session(s)
}

func (c *Client) control(pkt []byte) {
	if !c.callbacks.Load().Control(pkt) {
		c.drops.Add(drop.ControlOverflow, 1)
	}
}

// connected reports whether the engine can send to the client at once. The
// engine calls a session established when it has sent its response; that the
// client got it, and where it is, shows with its first packet.
func (c *Client) connected() bool {
	return Session(c.session.Load()) == SessionEstablished && c.heard.Load()
}

// reachable reports whether the engine can get a packet from the network to the
// client: at once, or after a handshake with one that was idle for longer than a
// session lasts. The engine keeps the packets meanwhile, a bounded number. A client
// that was never heard, or whose keys were wiped, is not asked (T-56).
func (c *Client) reachable() bool {
	return Session(c.session.Load()) != SessionNone && c.heard.Load()
}

func (c *Client) addresses() []netip.Addr {
	var out []netip.Addr
	for _, a := range [...]netip.Addr{c.cfg.TunnelV4, c.cfg.TunnelV6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// yieldFor is long for a nomination and the handshake that follows it.
const yieldFor = time.Second

// answersPerSecond bounds the ICMP answers made for one client (dataplane §11,
// defect 14).
const answersPerSecond = 200

// answerBudget is a fixed-window limiter that needs neither lock nor clock. One
// goroutine at a time takes from it.
type answerBudget struct {
	second int64
	used   int
}

func (b *answerBudget) take(now int64) bool {
	if second := now / int64(time.Second); second != b.second {
		b.second, b.used = second, 0
	}
	if b.used == answersPerSecond {
		return false
	}
	b.used++
	return true
}

func flowOf(key [32]byte) uint32 {
	return uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
}
