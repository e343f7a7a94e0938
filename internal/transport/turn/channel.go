package turn

import (
	"net/netip"
	"slices"
	"time"
)

// Channel numbers and times (T-41 to T-43, transport §4.3).
const (
	MinChannel = 0x4000
	MaxChannel = 0x4fff

	channelLife    = 10 * time.Minute // from the last acknowledged bind
	rebindAge      = 5 * time.Minute
	quarantine     = 15 * time.Minute // before a number or a peer may be paired differently
	refusedBackoff = 5 * time.Second  // before a refused peer is tried again
)

// maxBinds is the number of CHANNEL-BINDs that wait for their answers at a
// time, so that many clients at once do not become a burst that the relay or
// the path to it drops: one lost bind ends the allocation.
const maxBinds = 64

// channel is one pairing of a number with a peer.
type channel struct {
	number   uint16
	peer     netip.AddrPort
	lastBind time.Time // last bind request or acknowledgement
	boundAt  time.Time // last acknowledgement; zero when there was none
	until    time.Time // end of the binding; zero when not bound
	received bool      // data arrived since boundAt
	binding  bool      // a request is out, or waits for its turn
	refused  bool      // the last request was answered with an error
}

func (ch *channel) bound() bool { return !ch.until.IsZero() }

// renewable reports whether the channel is worth another ten minutes once it is
// old enough.
func (ch *channel) renewable() bool { return ch.bound() && ch.received && !ch.binding }

// channelTable holds every pairing that the relay may remember, at most one per
// number. The zero value is ready.
type channelTable struct {
	all      []*channel // in order of first use
	byNumber map[uint16]*channel
	byPeer   map[netip.AddrPort]*channel
	next     uint16 // offset of the number to try first, so that numbers rise and wrap
}

func (t *channelTable) get(number uint16) *channel { return t.byNumber[number] }

// assign pairs peer with the next free number, nil when there is none.
func (t *channelTable) assign(peer netip.AddrPort, now time.Time) *channel {
	const numbers = MaxChannel - MinChannel + 1
	if t.byNumber == nil {
		t.byNumber, t.byPeer = make(map[uint16]*channel), make(map[netip.AddrPort]*channel)
	}
	for range numbers {
		number := MinChannel + t.next
		t.next = (t.next + 1) % numbers
		ch := t.byNumber[number]
		switch {
		case ch == nil:
			ch = new(channel)
			t.all, t.byNumber[number] = append(t.all, ch), ch
		case ch.binding || ch.bound() || now.Before(ch.lastBind.Add(quarantine)):
			continue
		case t.byPeer[ch.peer] == ch:
			delete(t.byPeer, ch.peer)
		}
		*ch = channel{number: number, peer: peer}
		t.byPeer[peer] = ch
		return ch
	}
	return nil
}

// clear forgets the pairings but goes on with the next number, so that late
// data of an old pairing meets an unknown channel.
func (t *channelTable) clear() { *t = channelTable{next: t.next} }

func (t *channelTable) bound() int {
	n := 0
	for _, ch := range t.all {
		if ch.bound() {
			n++
		}
	}
	return n
}

func (c *Client) enqueue(peer netip.AddrPort) bool {
	if slices.Contains(c.waiting, peer) {
		return true
	}
	if !sendable(peer) || len(c.waiting) == MaxQueued {
		return false
	}
	c.waiting = append(c.waiting, peer)
	return true
}

func (c *Client) bind(peer netip.AddrPort, now time.Time) bool {
	if !sendable(peer) || !c.relayed(peer).IsValid() {
		return false
	}
	ch := c.channels.byPeer[peer]
	switch {
	case ch == nil:
	case ch.bound() || ch.binding:
		return true
	case ch.refused && now.Before(ch.lastBind.Add(refusedBackoff)):
		return false
	case ch.refused && ch.boundAt.IsZero() || !now.Before(ch.lastBind.Add(quarantine)):
		// The relay does not hold this pairing: go on with the next number.
		ch = nil
	}
	if ch == nil {
		if ch = c.channels.assign(peer, now); ch == nil {
			return false
		}
	}
	c.beginBind(ch, now)
	return true
}

// renew binds a channel again when it carries data and is old enough.
func (c *Client) renew(ch *channel, now time.Time) {
	if ch.renewable() && !now.Before(ch.boundAt.Add(rebindAge)) && c.state == StateAllocated {
		c.beginBind(ch, now)
	}
}

func (c *Client) beginBind(ch *channel, now time.Time) {
	ch.binding, ch.refused = true, false
	c.unsent = append(c.unsent, ch)
	c.sendBinds(now)
}

// sendBinds sends as many binds as maxBinds permits.
func (c *Client) sendBinds(now time.Time) {
	if len(c.unsent) == 0 {
		return
	}
	out := 0
	for _, tx := range c.pending {
		if tx.kind == channelBind {
			out++
		}
	}
	for ; out < maxBinds && len(c.unsent) > 0; out++ {
		ch := c.unsent[0]
		c.unsent = c.unsent[1:]
		c.begin(&transaction{kind: channelBind, to: c.server, channel: ch}, now)
	}
}

func (c *Client) channelBound(ch *channel, now time.Time) {
	fresh := !ch.bound()
	ch.binding, ch.received = false, false
	ch.lastBind, ch.boundAt, ch.until = now, now, now.Add(channelLife)
	if fresh {
		c.emit(ChannelBound{Number: ch.number, Peer: ch.peer, Relayed: c.relayed(ch.peer)})
	}
}

func (c *Client) channelRefused(ch *channel, now time.Time) {
	ch.binding, ch.refused, ch.lastBind = false, true, now
	if ch.bound() {
		ch.until = time.Time{}
		c.emit(ChannelLost{Number: ch.number, Peer: ch.peer})
	}
}

// relayed returns our address of peer's family.
func (c *Client) relayed(peer netip.AddrPort) netip.AddrPort {
	if peer.Addr().Is4() {
		return c.v4
	}
	return c.v6
}
