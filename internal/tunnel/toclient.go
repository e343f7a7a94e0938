package tunnel

import (
	"net/netip"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
)

// toClient judges one batch of packets read from the TUN device and keeps, in
// order and in place, the descriptors of those that go into a client's tunnel;
// whom the i-th kept packet is for is written to owners[i]. Packets without a
// client are counted on the tunnel, all others on their client. Nothing is ever
// sent back towards the network (dataplane §4.1). It allocates nothing.
//
// now is the batch's time in Unix nanoseconds.
func (t *Tunnel) toClient(slab []byte, packets []enginetun.ReadPacket, owners []addressee, now int64) int {
	var (
		v    packet.View
		dst  netip.Addr
		c    *Client // whose address dst is: that of the packet before, often that of the next
		kept int
	)
	for _, p := range packets {
		if fault := v.Parse(slab[p.Offset : p.Offset+p.Size]); fault != drop.None {
			t.drops.Add(fault, 1)
			continue
		}
		if v.Dst != dst {
			c, dst = t.byAddr.get(v.Dst), v.Dst
		}
		if c == nil {
			t.drops.Add(unknownDestination(v.Dst), 1)
			continue
		}
		if !c.reachable() || c.closing.Load() {
			c.drops.Add(drop.NotConnected, 1)
			continue
		}
		proxies, ended := c.nat.Load().restore(&v, now)
		if ended {
			c.drops.Add(drop.NATEnded, 1)
			continue
		}
		if verdict := c.policy.Load().Inbound(&v, proxies, now); verdict.Action != policy.Forward {
			c.drops.Add(verdict.Reason, 1)
			continue
		}
		exposeECN(slab, p.Offset)
		packets[kept] = p
		owners[kept] = addressee{c, v.Dst}
		kept++
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
		c.counters.LastActive.Store(now)
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
