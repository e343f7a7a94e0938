package tunnel

import (
	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
)

// lookAhead is how many packets of a batch are parsed and looked up in the NAT
// before the first of them is judged. It is a little more than the accesses to
// memory that a processor has under way at a time: see nat.Lookup.
const lookAhead = 32

// departures are the next packets of a client.
type departures struct {
	packets [lookAhead]departure
	flows   [lookAhead]nat.Lookup
}

type departure struct {
	packet.View
	fault drop.Reason
	first bool  // not of the flow of the packet before it
	flow  uint8 // index in departures.flows
}

// look fills d with bufs, which are not more than lookAhead. n may be nil.
func (d *departures) look(bufs [][]byte, offset int, n *NAT) {
	var before *packet.View
	flows := 0
	for i, b := range bufs {
		p := &d.packets[i]
		if p.fault = p.Parse(b[offset:]); p.fault != drop.None {
			continue
		}
		if p.first = before == nil || !sameFlow(before, &p.View); p.first {
			if n != nil {
				n.table.Begin(&d.flows[flows], &p.View)
			}
			flows++
		}
		p.flow, before = uint8(flows-1), &p.View
	}
	if n != nil {
		n.table.Finish(d.flows[:flows])
	}
}

// arrivals are the next packets from the TUN device.
type arrivals struct {
	packets [lookAhead]arrival
	flows   [lookAhead]nat.Return
}

type arrival struct {
	packet.View
	fault  drop.Reason
	client *Client // nil if the destination is nobody's
	nat    *NAT    // of the client, nil without
	first  bool    // not of the flow of the packet before it
	flow   uint8   // index in arrivals.flows
}

// look fills a with packets, which are not more than lookAhead. Who they are for
// is found out first, so that the processor waits for several clients at once.
func (a *arrivals) look(t *Tunnel, slab []byte, packets []enginetun.ReadPacket) {
	var before *arrival
	for i, d := range packets {
		p := &a.packets[i]
		if p.fault = p.Parse(slab[d.Offset : d.Offset+d.Size]); p.fault != drop.None {
			continue
		}
		if before != nil && before.Dst == p.Dst { // often that of the packet before
			p.client = before.client
			p.first = !sameFlow(&before.View, &p.View)
		} else {
			p.client, p.first = t.byAddr.get(p.Dst), true
		}
		before = p
	}
	flows := 0
	var translation *NAT
	for i := range packets {
		p := &a.packets[i]
		if p.fault != drop.None {
			continue
		}
		if p.first {
			if translation = nil; p.client != nil {
				translation = p.client.nat.Load()
			}
			if translation != nil {
				translation.table.BeginReturn(&a.flows[flows], &p.View)
				flows++
			}
		}
		p.nat, p.flow = translation, uint8(max(flows, 1)-1)
	}
	nat.FinishReturns(a.flows[:flows])
}

// sameFlow reports whether a look-up for a holds for b, and a verdict to forward
// a, which is from the same side, for b too. ICMP errors are told apart by what
// they quote.
func sameFlow(a, b *packet.View) bool {
	return a.SrcPort == b.SrcPort && a.DstPort == b.DstPort && a.Kind == b.Kind && a.Protocol == b.Protocol &&
		a.Dst == b.Dst && a.Src == b.Src && a.Kind != packet.KindICMPError
}
