package tunnel

import (
	"net/netip"
	"os"
	"sync"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
)

// injectSlots bounds the packets made by the gateway that wait for the engine.
// 256 packets are two engine batches; more than that is a flood of answers, and
// the newest are dropped with drop.InjectOverflow.
const injectSlots = 256

// injector is the engine's read queue for packets that the gateway makes
// itself: ICMP answers and control packets. They belong to a client, not to an
// address (a control packet goes to "::", an ICMP answer may go to a spoofed
// address), so the destination is blanked while the packet passes the engine's
// routing hook, which puts it back and names the client (see Tunnel.route).
type injector struct {
	mu     sync.Mutex
	ready  sync.Cond
	closed bool
	slots  [injectSlots]injected
	head   int // index of the oldest
	used   int

	// parting are the clients to say goodbye to, each once: they are not bounded
	// by injectSlots but by the number of clients, so that none is left out when
	// the gateway ends.
	parting []*Client

	// handed are the packets of the last Read in order. Only the engine's
	// reader goroutine of this queue touches it.
	handed []addressee
	next   int
}

type injected struct {
	client *Client
	size   int
	buf    [packet.MaxSize]byte
}

func newInjector() *injector {
	q := &injector{handed: make([]addressee, 0, batchSize)}
	q.ready.L = &q.mu
	return q
}

// push queues for c what build appends to its argument; nothing or too much is
// not queued. It reports whether a packet was queued and counts an overflow.
func (q *injector) push(c *Client, build func(dst []byte) []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.used == injectSlots {
		c.drops.Add(drop.InjectOverflow, 1)
		return false
	}
	slot := &q.slots[(q.head+q.used)%injectSlots]
	pkt := build(slot.buf[:0])
	if len(pkt) == 0 || len(pkt) > packet.MaxSize {
		return false
	}
	slot.client, slot.size = c, len(pkt)
	q.used++
	q.ready.Signal()
	return true
}

// part queues a goodbye to c, which goes out after all that is queued already.
func (q *injector) part(c *Client) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.parting = append(q.parting, c)
	q.ready.Signal()
}

// Read implements the engine's Reader. It blocks until there is a packet.
func (q *injector) Read(slab []byte, packets []enginetun.ReadPacket) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.used == 0 && len(q.parting) == 0 && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return 0, os.ErrClosed
	}
	q.handed, q.next = q.handed[:0], 0
	n, at := 0, enginetun.ReadPacketSpacing
	for n < len(packets) && at+packet.MaxSize+enginetun.ReadPacketSpacing <= len(slab) {
		c, size := q.take(slab, at)
		if c == nil {
			break
		}
		q.handed = append(q.handed, addressee{client: c, dst: blankDestination(slab[at : at+size])})
		packets[n] = enginetun.ReadPacket{Offset: at, Size: size}
		n++
		at += size + enginetun.ReadPacketSpacing
	}
	return n, nil
}

// take moves the next packet to slab[at:]. The client is nil if there is none.
func (q *injector) take(slab []byte, at int) (c *Client, size int) {
	if q.used > 0 {
		slot := &q.slots[q.head]
		c, slot.client = slot.client, nil
		q.head = (q.head + 1) % injectSlots
		q.used--
		size = copy(slab[at:], slot.buf[:slot.size])
		exposeECN(slab, at)
		return c, size
	}
	if len(q.parting) == 0 {
		return nil, 0
	}
	c, q.parting = q.parting[0], q.parting[1:]
	putMark(slab, at, c.mark.Load())
	return c, len(packet.AppendGoodbye(slab[at : at : at+packet.MaxSize]))
}

// File implements the engine's Queue; no descriptor is behind this one.
func (*injector) File() *os.File { return nil }

func (q *injector) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}

// claim names the client of the next packet that Read handed out and restores
// its destination in place. It returns nil if there is none.
func (q *injector) claim(pkt []byte) *Client {
	if q.next >= len(q.handed) {
		return nil
	}
	h := q.handed[q.next]
	q.next++
	if h.dst.Is4() {
		a := h.dst.As4()
		copy(pkt[16:20], a[:])
	} else {
		a := h.dst.As16()
		copy(pkt[24:40], a[:])
	}
	return h.client
}

// blankDestination replaces the destination by the unspecified address and
// returns it. The packet was made by the gateway, so its header is complete.
func blankDestination(pkt []byte) netip.Addr {
	if pkt[0]>>4 == 4 {
		dst := netip.AddrFrom4([4]byte(pkt[16:20]))
		clear(pkt[16:20])
		return dst
	}
	dst := netip.AddrFrom16([16]byte(pkt[24:40]))
	clear(pkt[24:40])
	return dst
}
