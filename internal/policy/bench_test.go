package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// grantsOf returns n CIDR grants, some nested, some with filters.
func grantsOf(n int) []Grant {
	var out []Grant
	for i := range n {
		network := fmt.Sprintf("10.%d.0.0/16", i)
		if i%4 == 3 {
			network = fmt.Sprintf("10.%d.%d.0/24", i-1, i)
		}
		g := cidr(fmt.Sprint("id", i), network)
		if i%2 == 1 {
			g.Resource.Filters = []Filter{tcp(443, 443), tcp(8000, 9000), icmp}
		}
		out = append(out, g)
	}
	return out
}

// traffic returns packets to random addresses, nearly all of them covered.
func traffic(networks int) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	out := make([][]byte, 1024)
	for i := range out {
		dst := netip.AddrFrom4([4]byte{10, byte(random.IntN(networks)), byte(random.Uint32()), byte(random.Uint32())})
		out[i] = packettest.TCP(netip.AddrPortFrom(peer.ClientV4, 40000), netip.AddrPortFrom(dst, 443), 16, make([]byte, 1200))
	}
	return out
}

func BenchmarkOutbound(b *testing.B) {
	for _, n := range []int{1, 20} {
		s := Compile(peer, grantsOf(n), 1)
		packets := traffic(n)
		views := make([]packet.View, len(packets))
		for i := range packets {
			views[i] = *parse(b, packets[i])
		}
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i, passed := 0, 0
			for b.Loop() {
				if s.Outbound(&views[i%len(views)], NoProxies, now).Action == Forward {
					passed++
				}
				i++
			}
			b.ReportMetric(float64(passed)/float64(i), "passed")
		})
		b.Run(fmt.Sprintf("parse+grants=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var v packet.View
			i := 0
			for b.Loop() {
				v.Parse(packets[i%len(packets)])
				s.Outbound(&v, NoProxies, now)
				i++
			}
		})
	}
}

func BenchmarkOutbound6(b *testing.B) {
	s := Compile(peer, []Grant{cidr("a", "2001:db8::/32"), cidr("b", "2001:db8:1::/48", tcp(443, 443))}, 1)
	p := tcpTo("2001:db8:1::3", 443)
	var v packet.View
	b.ReportAllocs()
	for b.Loop() {
		v.Parse(p)
		s.Outbound(&v, NoProxies, now)
	}
}

func BenchmarkOutboundInternet(b *testing.B) {
	s := Compile(peer, []Grant{internet("i")}, 1)
	p := tcpTo("1.1.1.1", 443)
	var v packet.View
	b.ReportAllocs()
	for b.Loop() {
		v.Parse(p)
		s.Outbound(&v, NoProxies, now)
	}
}

func BenchmarkInbound(b *testing.B) {
	s := Compile(peer, grantsOf(20), 1)
	v := parse(b, tcpFrom("10.3.3.3", 443))
	b.ReportAllocs()
	for b.Loop() {
		s.Inbound(v, NoProxies, now)
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{20, 1000} {
		grants := make([]Grant, n)
		for i := range grants {
			grants[i] = cidr(fmt.Sprint("id", i), fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), tcp(443, 443))
		}
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Compile(peer, grants, 1)
			}
		})
	}
}

func TestVerdictsAllocateNothing(t *testing.T) {
	s := Compile(peer, append(grantsOf(20), domain("d")), 1)
	views := []*packet.View{
		parse(t, tcpTo("10.3.3.3", 443)), parse(t, udpTo("10.3.3.3", 1)), parse(t, tcpTo("100.96.0.1", 1)), parse(t, tcpTo("2001:db8::1", 1)),
		parse(t, packet.AppendGoodbye(nil)), parse(t, tcpFrom("10.3.3.3", 443)),
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, v := range views {
			s.Outbound(v, NoProxies, now)
			s.Inbound(v, NoProxies, now)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d packets", n, 2*len(views))
	}
}
