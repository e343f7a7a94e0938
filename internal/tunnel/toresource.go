package tunnel

import (
	"net/netip"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
)

// toResource judges one batch of packets that the engine decrypted for c and
// keeps, in order and in place, those that go to the TUN device. Each element
// of bufs holds a packet at offset. Refused packets are counted; where the
// policy asks for it the client gets an ICMP answer. It allocates nothing.
//
// now is the batch's time in Unix nanoseconds.
func (t *Tunnel) toResource(c *Client, bufs [][]byte, offset int, now int64) [][]byte {
	if c.closing.Load() {
		c.drops.Add(drop.NoResource, uint64(len(bufs)))
		return bufs[:0]
	}
	var (
		ahead departures
		last  trip
		given policy.Verdict // on last
		rules = c.policy.Load()
		addrs = c.nat.Load()
		kept  = bufs[:0]
		bytes uint64
	)
	for i, b := range bufs {
		at := i % lookAhead
		if at == 0 {
			ahead.look(bufs[i:min(i+lookAhead, len(bufs))], offset, addrs)
		}
		p := &ahead.packets[at]
		if p.fault != drop.None {
			c.drops.Add(p.fault, 1)
			continue
		}
		v, l := &p.View, &ahead.flows[p.flow]
		if given.Action != policy.Forward || p.first && !last.is(v) {
			last, given = tripOf(v), rules.Outbound(v, l.Proxies(), now)
		}
		switch given.Action {
		case policy.Forward:
			if !t.translate(c, addrs, v, l, &b, offset, now) {
				continue
			}
			kept = append(kept, b)
			bytes += uint64(len(v.B))
		case policy.Control:
			c.control(v.B)
		case policy.Reject:
			c.drops.Add(given.Reason, 1)
			if c.answers.take(now) {
				t.answer(c, v, given.Answer)
			}
		default:
			c.drops.Add(given.Reason, 1)
		}
	}
	if len(kept) > 0 {
		c.counters.ToResourcePackets.Add(uint64(len(kept)))
		c.counters.ToResourceBytes.Add(bytes)
		c.passed(now)
	}
	return kept
}

func (t *Tunnel) answer(c *Client, v *packet.View, code packet.Unreachable) {
	t.inject.push(c, func(dst []byte) []byte { return packet.AppendUnreachable(dst, v, code) })
}

// trip is all that a verdict to forward a packet depends on. A batch is mostly one
// flow, of which only the first packet has to be judged.
type trip struct {
	src, dst netip.Addr
	protocol packet.Protocol
	kind     packet.Kind
	port     uint16
}

func tripOf(v *packet.View) trip { return trip{v.Src, v.Dst, v.Protocol, v.Kind, v.DstPort} }

func (t *trip) is(v *packet.View) bool {
	return t.port == v.DstPort && t.kind == v.Kind && t.protocol == v.Protocol && t.dst == v.Dst && t.src == v.Src
}
