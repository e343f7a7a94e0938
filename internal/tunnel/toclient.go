package tunnel

import (
	"net/netip"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/policy"
)

// toClient judges one batch of packets read from the TUN device and keeps, in
// order and in place, the descriptors of those that go into a client's tunnel;
// whom the i-th kept packet is for is written to owners[i]. Packets without a
// client are counted on the tunnel, all others on their client. Nothing is sent
// back towards the network (dataplane §4.1), but what becomes of an IPv4 packet
// that is too large as IPv6. Otherwise it allocates nothing.
//
// now is the batch's time in Unix nanoseconds.
func (t *Tunnel) toClient(slab []byte, packets []enginetun.ReadPacket, owners []addressee, now int64) int {
	var (
		ahead arrivals
		given policy.Verdict // on the flow of this packet, not to forward until it is judged
		kept  int
		end   int // of the last packet kept, in slab
	)
	for i, d := range packets {
		at := i % lookAhead
		if at == 0 {
			ahead.look(t, slab, packets[i:min(i+lookAhead, len(packets))])
		}
		p := &ahead.packets[at]
		if p.fault != drop.None {
			t.drops.Add(p.fault, 1)
			continue
		}
		if p.first {
			given = policy.Verdict{}
		}
		v, c := &p.View, p.client
		if c == nil {
			t.drops.Add(unknownDestination(v.Dst), 1)
			continue
		}
		if !c.reachable() || c.closing.Load() {
			c.drops.Add(drop.NotConnected, 1)
			continue
		}
		proxies, back := p.nat.restore(v, &ahead.flows[p.flow], now)
		if back == nat.OtherFamily {
			back = t.crossToClient(c, p.nat, v, slab, end, &d, now)
		}
		if back != nat.Untouched && back != nat.Translated {
			c.drops.Add(unreturned(back), 1)
			continue
		}
		if given.Action != policy.Forward {
			given = c.policy.Load().Inbound(v, proxies, now)
		}
		if given.Action != policy.Forward {
			c.drops.Add(given.Reason, 1)
			continue
		}
		exposeECN(slab, d.Offset)
		packets[kept] = d
		owners[kept] = addressee{c, v.Dst}
		kept++
		end = d.Offset + d.Size
	}
	countToClient(packets[:kept], owners, now)
	return kept
}

// countToClient counts packets that passed, once for each run of packets for the
// same client. It is a pass of its own because atomic additions keep the
// processor from fetching what it needs for the next packets while it waits for
// memory.
func countToClient(packets []enginetun.ReadPacket, owners []addressee, now int64) {
	for i := 0; i < len(packets); {
		c, first, octets := owners[i].client, i, 0
		for ; i < len(packets) && owners[i].client == c; i++ {
			octets += packets[i].Size
		}
		c.counters.ToClientPackets.Add(uint64(i - first))
		c.counters.ToClientBytes.Add(uint64(octets))
		c.passed(now)
	}
}

// addressee is whom a packet is for.
type addressee struct {
	client *Client
	dst    netip.Addr
}

// unknownDestination tells a packet to an unused tunnel address from one that
// should never have been routed here.
func unknownDestination(a netip.Addr) drop.Reason {
	if policy.IsTunnel(a) {
		return drop.NoPeerState
	}
	return drop.NotAPeer
}
