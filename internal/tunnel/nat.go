package tunnel

import (
	"sync"
	"sync/atomic"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
)

// firstPackets bounds the packets of one client that wait for their sessions.
// 512 are four engine batches; more is a client that opens sessions faster than
// they are made, and the newest are dropped with drop.NATOverflow.
const firstPackets = 512

// NAT is the address translation of one client's DNS resources as the packet
// path sees it: a table that packets read, and the packets that need a session
// first. It outlives connections and the actor that writes the table.
type NAT struct {
	table *nat.Table
	wake  atomic.Pointer[func()]

	mu      sync.Mutex
	waiting []firstPacket // the oldest first

	work []firstPacket // that Open is busy with; its memory is used in turn with waiting's
	bufs [][]byte      // of Open
}

// firstPacket is a packet that needs a session, with room for the device's
// header before it.
type firstPacket struct {
	client *Client
	buf    *firstBuffer
	size   int
}

// firstHeadroom is the room before a packet that is written to the TUN device, and
// firstAt where it begins in its buffer before it is translated.
const (
	firstHeadroom = 16
	firstAt       = firstHeadroom + packet.MaxGrowth
)

type firstBuffer [firstAt + packet.MaxSize]byte

var firstBuffers = sync.Pool{New: func() any { return new(firstBuffer) }}

// NewNAT returns the translation by table. Until Adopt is called nobody is told
// of packets that wait.
func NewNAT(table *nat.Table) *NAT { return &NAT{table: table} }

// Table returns the table, which one actor writes.
func (n *NAT) Table() *nat.Table { return n.table }

// Adopt says how the writer of the table is told that packets wait for Open. wake
// runs on the packet path, once for each time the queue is not empty any more,
// and must not block.
func (n *NAT) Adopt(wake func()) { n.wake.Store(&wake) }

// Waiting returns the number of packets that wait for Open.
func (n *NAT) Waiting() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.waiting)
}

// restore translates a packet for the client back, if it belongs to a session
// (dataplane §4.1 step 6), and returns what the policy needs to judge it. Only
// what was translated may come from a proxy address. Unless the result is
// Untouched or Translated the packet must not go on as it is. r is the look-up for
// it. n may be nil.
func (n *NAT) restore(v *packet.View, r *nat.Return, now int64) (policy.Proxies, nat.Result) {
	if n == nil {
		return policy.NoProxies, nat.Untouched
	}
	switch result := n.table.TranslateBack(v, r, now); result {
	case nat.Translated, nat.OtherFamily:
		return n.table, result
	default:
		return policy.NoProxies, result
	}
}

// Hold queues a copy of the packet of c, whose session the writer of the table has
// to make, or counts an overflow.
func (n *NAT) Hold(c *Client, pkt []byte) {
	n.mu.Lock()
	if len(n.waiting) == firstPackets {
		n.mu.Unlock()
		c.drops.Add(drop.NATOverflow, 1)
		return
	}
	buf := firstBuffers.Get().(*firstBuffer)
	n.waiting = append(n.waiting, firstPacket{c, buf, copy(buf[firstAt:], pkt)})
	first := len(n.waiting) == 1
	n.mu.Unlock()
	if wake := n.wake.Load(); first && wake != nil {
		(*wake)()
	}
}

// translate rewrites a packet that the policy admitted (dataplane §2.1 steps 10
// to 14) and lies at (*b)[offset:]. l is the look-up for it. It reports false if
// the packet does not go on: it waits for its session, or was counted. n may be
// nil.
func (t *Tunnel) translate(c *Client, n *NAT, v *packet.View, l *nat.Lookup, b *[]byte, offset int, now int64) bool {
	if n == nil {
		return true
	}
	r := n.table.Translate(v, l, now)
	if r == nat.OtherFamily {
		r = c.crossToResource(n, v, b, offset, now)
	}
	switch r {
	case nat.Untouched, nat.Translated:
		return true
	case nat.NeedSession:
		n.Hold(c, v.B)
	default:
		c.drops.Add(untranslated(r), 1)
		// Of these the client hears of a domain without address only.
		if r == nat.Unresolved && c.answers.take(now) {
			t.answer(c, v, packet.NoRoute)
		}
	}
	return false
}

// untranslated is why a packet of the client has no translation.
func untranslated(r nat.Result) drop.Reason {
	switch r {
	case nat.Unresolved:
		return drop.Unresolved
	case nat.Full:
		return drop.NATFull
	case nat.Exhausted:
		return drop.NATExhausted
	}
	return drop.NATUnsupported
}

// Open makes the sessions that packets of n wait for, sends those packets on
// their way, and returns how many there were. They are judged once more, because
// the policy may have changed meanwhile, and those refused are not answered: the
// client sends them again. Only the writer of the table calls it.
//
// now is the time in Unix nanoseconds.
func (t *Tunnel) Open(n *NAT, now int64) int {
	n.mu.Lock()
	n.work, n.waiting = n.waiting, n.work[:0]
	n.mu.Unlock()
	var v packet.View
	bufs := n.bufs[:0]
	for _, p := range n.work {
		pkt := p.buf[:firstAt+p.size]
		if at, ok := t.open(n, p.client, pkt, &v, now); ok {
			bufs = append(bufs, pkt[at-firstHeadroom:])
		}
	}
	for i := 0; i < len(bufs); i += batchSize {
		t.dev.write(bufs[i:min(i+batchSize, len(bufs))], firstHeadroom)
	}
	for i := range n.work {
		firstBuffers.Put(n.work[i].buf)
		n.work[i] = firstPacket{}
	}
	clear(bufs)
	n.bufs = bufs[:0]
	return len(n.work)
}

// open does that for the packet at pkt[firstAt:] and returns where it begins
// afterwards. It reports false if the packet does not go on.
func (t *Tunnel) open(n *NAT, c *Client, pkt []byte, v *packet.View, now int64) (at int, ok bool) {
	if c.closing.Load() || c.removed.Load() {
		c.drops.Add(drop.NoResource, 1)
		return 0, false
	}
	if fault := v.Parse(pkt[firstAt:]); fault != drop.None {
		c.drops.Add(fault, 1) // it was parsed before it came here
		return 0, false
	}
	if verdict := c.policy.Load().Outbound(v, n.table, now); verdict.Action != policy.Forward {
		c.drops.Add(verdict.Reason, 1)
		return 0, false
	}
	at = firstAt
	r := n.table.Open(v, now)
	if r == nat.OtherFamily {
		at, r = n.table.CrossToResource(v, nat.Crossing{Buf: pkt, At: firstAt, Client: c.otherAddress(v)}, now)
	}
	if r != nat.Translated && r != nat.Untouched {
		c.drops.Add(untranslated(r), 1)
		return 0, false
	}
	c.counters.ToResourcePackets.Add(1)
	c.counters.ToResourceBytes.Add(uint64(len(v.B)))
	return at, true
}
