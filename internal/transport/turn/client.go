// Package turn is the client of one TURN relay: a machine that takes datagrams
// and time in and gives datagrams and events out.
//
// It holds one allocation and relays through channels only, because that is all
// the relays do (transport §4.3, §4.4): no permissions, no Send indications, no
// padding, no FINGERPRINT. ChannelData itself never passes through the machine;
// the packet path frames it with the numbers that ChannelBound announces.
//
// The package is pure: no clock, no socket, no goroutine, no logging.
package turn

import (
	"net/netip"
	"time"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

// Realm is the only realm that relays use and the client accepts (transport §4.1).
const Realm = "firezone"

// MaxQueued is the number of peers that wait for an allocation at most
// (transport §2.6).
const MaxQueued = 100

// Config describes one relay as the portal hands it out, its entries of both
// families merged by id (transport §4.1).
type Config struct {
	ID       string         // the relay's id; the client only reports it
	V4, V6   netip.AddrPort // addresses of the relay; a family it lacks is the zero value
	Username string         `json:"-"` // long-term credential
	Password string         `json:"-"` // long-term credential, secret
	Software string         // value of the SOFTWARE attribute; empty leaves it out
	Random   func([]byte)   `json:"-"` // fills its argument for transaction ids; required
}

// String names the relay without its credentials.
func (c Config) String() string { return "relay " + c.ID }

// State is where a Client stands.
//
//	Probing -> Allocating -> Allocated -> Allocating (mismatch) or Probing (expiry)
//	Allocating -> Suspended -> Probing (by Probe)
//	any -> Failed, for good
type State uint8

// The states of a Client.
const (
	StateProbing    State = iota // no address of the relay has answered
	StateAllocating              // an address answered, no allocation
	StateAllocated               // relayed addresses exist
	StateSuspended               // the relay refused an allocation; Probe starts over
	StateFailed                  // the relay is given up; the machine does nothing more
)

// String returns the state as it appears in status output.
func (s State) String() string {
	return [...]string{"probing", "allocating", "allocated", "suspended", "failed"}[s]
}

// Transmit is one datagram to send to the relay.
type Transmit struct {
	To   netip.AddrPort
	Data []byte // owned by the receiver
}

// Status is a view of a Client for people. It holds no secrets.
type Status struct {
	ID       string
	State    State
	Server   netip.AddrPort // the selected address of the relay
	V4, V6   netip.AddrPort // relayed addresses
	Expires  time.Time      // end of the allocation unless refreshed
	Channels int            // bound channels
	Queued   int            // peers waiting for the allocation, or for their turn
	Pending  int            // requests waiting for an answer
}

// Client is the machine for one relay and one allocation. After each call the
// owner drains PollTransmit and PollEvent and asks NextTimeout. It is not safe
// for concurrent use. Changed credentials or addresses need a new Client
// (transport §4.1); the old one is dropped without a word to the relay.
type Client struct {
	cfg       Config
	key       pion.MessageIntegrity
	integrity *stun.Integrity

	state  State
	server netip.AddrPort
	nonce  []byte
	open   bool // the relay wants no credentials before its first nonce

	v4, v6      netip.AddrPort
	expires     time.Time
	refreshAt   time.Time
	keepaliveAt time.Time

	hosts, reflexive [2]netip.AddrPort // by family: what was reported last

	pending    []*transaction
	waiting    []netip.AddrPort // peers until there is an allocation
	channels   channelTable
	unsent     []*channel // channels whose bind waits for its turn
	recoveries int        // re-allocations since something last worked

	transmits []Transmit
	events    []Event
}

// New returns a client that begins by asking every address of the relay for a
// BINDING answer (T-49). A relay without any address fails at once.
func New(cfg Config, now time.Time) *Client {
	key := pion.NewLongTermIntegrity(cfg.Username, Realm, cfg.Password)
	c := &Client{cfg: cfg, key: key, integrity: stun.NewIntegrity(key)}
	c.probe(now)
	return c
}

// BindChannel asks for a channel to peer and reports whether one exists or is
// on its way. It is idempotent. Before the allocation exists up to MaxQueued
// peers are remembered, later ones refused. A peer of a family without relayed
// address is refused (transport §4.3), and so is one whose bind the relay
// answered with an error less than five seconds ago.
func (c *Client) BindChannel(peer netip.AddrPort, now time.Time) bool {
	peer = unmap(peer)
	switch c.state {
	case StateProbing, StateAllocating:
		return c.enqueue(peer)
	case StateAllocated:
		return c.bind(peer, now)
	}
	return false
}

// MarkReceived notes that data arrived on a channel. Channels without it are
// left to expire (T-43).
func (c *Client) MarkReceived(number uint16, now time.Time) {
	if ch := c.channels.get(number); ch != nil && ch.bound() {
		ch.received = true
		c.renew(ch, now)
	}
}

// Probe checks on the relay because the portal mentioned its relays again
// (transport §4.6): an allocation is refreshed with a single request that has
// one second, and a suspended client starts over.
func (c *Client) Probe(now time.Time) {
	switch c.state {
	case StateSuspended:
		c.probe(now)
	case StateAllocated:
		if c.find(refresh) == nil {
			c.begin(&transaction{kind: refresh, to: c.server, oneShot: true}, now)
		}
	}
}

// HandleTimeout does what is due at now. It may be called at any time.
func (c *Client) HandleTimeout(now time.Time) {
	if c.state == StateAllocated && !now.Before(c.expires) {
		c.lose(LossExpired)
		c.probe(now)
	}
	// Retransmission may end the machine and with it every other transaction.
	for _, tx := range append([]*transaction(nil), c.pending...) {
		if c.holds(tx) && !now.Before(tx.next) {
			c.retransmit(tx, now)
		}
	}
	if c.state != StateAllocated {
		return
	}
	if !now.Before(c.refreshAt) && c.find(refresh) == nil {
		c.begin(&transaction{kind: refresh, to: c.server}, now)
	}
	if !now.Before(c.keepaliveAt) && c.find(binding) == nil {
		c.keepaliveAt = now.Add(keepaliveInterval)
		c.begin(&transaction{kind: binding, to: c.server}, now)
	}
	for _, ch := range c.channels.all {
		if ch.bound() && !now.Before(ch.until) {
			ch.until = time.Time{}
			c.emit(ChannelLost{Number: ch.number, Peer: ch.peer})
		}
		c.renew(ch, now)
	}
}

// NextTimeout returns when HandleTimeout is due, and false when nothing is.
func (c *Client) NextTimeout() (time.Time, bool) {
	var at time.Time
	soonest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	for _, tx := range c.pending {
		soonest(tx.next)
	}
	if c.state == StateAllocated {
		soonest(c.expires)
		if c.find(refresh) == nil {
			soonest(c.refreshAt)
		}
		if c.find(binding) == nil {
			soonest(c.keepaliveAt)
		}
		for _, ch := range c.channels.all {
			soonest(ch.until)
			if ch.renewable() {
				soonest(ch.boundAt.Add(rebindAge))
			}
		}
	}
	return at, !at.IsZero()
}

// PollTransmit returns the next datagram to send.
func (c *Client) PollTransmit() (Transmit, bool) {
	if len(c.transmits) == 0 {
		return Transmit{}, false
	}
	t := c.transmits[0]
	c.transmits = c.transmits[1:]
	return t, true
}

// PollEvent returns the next event, in order of occurrence.
func (c *Client) PollEvent() (Event, bool) {
	if len(c.events) == 0 {
		return nil, false
	}
	e := c.events[0]
	c.events = c.events[1:]
	return e, true
}

// State returns a view of the client.
func (c *Client) State() Status {
	return Status{
		ID: c.cfg.ID, State: c.state, Server: c.server, V4: c.v4, V6: c.v6, Expires: c.expires,
		Channels: c.channels.bound(), Queued: len(c.waiting) + len(c.unsent), Pending: len(c.pending),
	}
}

// String names the relay and the state, without credentials.
func (c *Client) String() string { return c.cfg.String() + " " + c.state.String() }

func (c *Client) emit(e Event) { c.events = append(c.events, e) }

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
