package policy

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"

	"pgregory.net/rapid"
)

// TestSnapshotMatchesTheModel compares verdicts with a scan over the grants
// that is written after the text of the rules and shares nothing with Compile.
func TestSnapshotMatchesTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := peer
		p.GatewayOpen = rapid.Bool().Draw(t, "open")
		grants := rapid.SliceOfN(rapid.Custom(drawGrant), 0, 8).Draw(t, "grants")
		for i := range grants {
			grants[i].Resource.ID += string(rune('a' + i)) // distinct
		}
		s := Compile(p, grants, 1)
		for range 8 {
			a, b := rapid.SampledFrom(places).Draw(t, "remote"), peer.ClientV4
			if a.Is6() {
				b = peer.ClientV6
			}
			if rapid.IntRange(0, 15).Draw(t, "foreign") == 0 {
				b = rapid.SampledFrom([]netip.Addr{addr("100.64.0.9"), addr("192.0.2.9")}).Draw(t, "source")
				if a.Is6() {
					b = addr("fd00:2021:1111::9")
				}
			}
			shape := rapid.SampledFrom(shapes).Draw(t, "shape")
			port := rapid.Uint16Range(0, 6).Draw(t, "port")
			if rapid.IntRange(0, 7).Draw(t, "dns") == 0 {
				port = DNSPort
			}
			proxies := setUp{}
			if len(grants) > 0 {
				proxies[a] = rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string { return rapid.SampledFrom(grants).Draw(t, "grant").Resource.ID }), 0, 3, rapid.ID).Draw(t, "set up")
			}
			m := model{p, grants, proxies}
			compare(t, s, m.outbound(b, a, shape, port), s.Outbound(view(t, shape.build(b, 7, a, port)), proxies, now))
			compare(t, s, m.inbound(a, b, shape, port), s.Inbound(view(t, shape.build(a, port, b, 7)), proxies, now))
		}
	})
}

type modelVerdict struct {
	action Action
	reason drop.Reason
	answer packet.Unreachable
	credit string
}

func compare(t *rapid.T, s *Snapshot, want modelVerdict, got Verdict) {
	r, _ := s.Credited(got)
	if g := (modelVerdict{got.Action, got.Reason, got.Answer, r.ID}); g != want {
		t.Fatalf("got %v, want %v", g, want)
	}
}

func view(t *rapid.T, b []byte) *packet.View {
	var v packet.View
	if r := v.Parse(b); r != drop.None {
		t.Fatalf("Parse: %v", r)
	}
	return &v
}

// places are addresses around the borders of everything that matters.
var places = func() []netip.Addr {
	var out []netip.Addr
	for _, s := range []string{
		"10.0.0.1", "10.1.0.1", "10.1.1.1", "10.1.1.2", "11.0.0.1", "9.255.255.255", "203.0.113.1", "8.8.8.8", "192.168.0.1", "172.16.5.4",
		"100.63.255.255", "100.64.0.0", "100.64.0.1", "100.64.0.7", "100.95.255.255", "100.96.0.0", "100.127.255.255", "100.128.0.0",
		"127.0.0.1", "169.254.0.1", "223.255.255.255", "224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.1",
		"2001:db8::1", "2001:db8:1::1", "2001:db8:1:1::1", "2606::1", "::1", "::2", "::ffff:10.1.1.1", "fc00::1", "fe80::1", "ff02::1",
		"fd00:2021:1110:ffff:ffff:ffff:ffff:ffff", "fd00:2021:1111::", "fd00:2021:1111::1", "fd00:2021:1111::7", "fd00:2021:1111::1f:ffff", "fd00:2021:1111::20:0",
		"fd00:2021:1111:8000::", "fd00:2021:1111:8000::1f:ffff", "fd00:2021:1111:8000::20:0",
	} {
		out = append(out, addr(s))
	}
	return out
}()

// shape is a sort of packet.
type shape struct {
	name  string
	kind  packet.Kind
	build func(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte
}

var shapes = []shape{
	{"tcp", packet.KindTCP, func(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
		return packettest.TCP(netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), 2, nil)
	}},
	{"udp", packet.KindUDP, func(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
		return packettest.UDP(netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), nil)
	}},
	{"ping", packet.KindEcho, func(src netip.Addr, sport uint16, dst netip.Addr, _ uint16) []byte {
		return packettest.Ping(src, dst, sport, nil)
	}},
	{"other icmp", packet.KindICMPOther, func(src netip.Addr, _ uint16, dst netip.Addr, _ uint16) []byte {
		return packettest.ICMP(src, dst, 200, 0, 0, nil)
	}},
	{"icmp error", packet.KindICMPError, func(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
		return packettest.Unreachable(src, dst, packettest.UDP(netip.AddrPortFrom(dst, dport), netip.AddrPortFrom(src, sport), nil))
	}},
	{"gre", packet.KindOther, func(src netip.Addr, _ uint16, dst netip.Addr, _ uint16) []byte {
		return packettest.IP(src, dst, 47, []byte{1, 2})
	}},
}

func drawGrant(t *rapid.T) Grant {
	g := Grant{Resource: Resource{ID: rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "id")}}
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0, 1:
		g.Resource.Kind = Internet
	case 2, 3:
		g.Resource.Kind = DNS
	case 4: // no kind
	default:
		g.Resource.Kind = CIDR
		a := rapid.SampledFrom(places).Draw(t, "place")
		bits := rapid.SampledFrom([]int{0, 8, 9, 11, 16, 24, 32, 48, 64, 107, 128}).Draw(t, "bits")
		g.Resource.Network = netip.PrefixFrom(a, bits) // some are invalid
	}
	for range rapid.IntRange(0, 3).Draw(t, "filters") {
		g.Resource.Filters = append(g.Resource.Filters, Filter{
			Protocol: FilterProtocol(rapid.IntRange(0, 3).Draw(t, "protocol")),
			Ports:    PortRange{rapid.Uint16Range(0, 6).Draw(t, "first"), rapid.Uint16Range(0, 6).Draw(t, "last")},
		})
	}
	g.ExpiresAt = rapid.SampledFrom([]time.Time{{}, {}, start.Add(1), start, start.Add(-1)}).Draw(t, "expires")
	return g
}

// model judges by scanning all grants.
type model struct {
	peer    Peer
	grants  []Grant
	proxies setUp
}

func (m model) outbound(src, dst netip.Addr, s shape, port uint16) modelVerdict {
	reject := func(r drop.Reason) modelVerdict { return modelVerdict{Reject, r, packet.Prohibited, ""} }
	switch {
	case insideAny(dst, "224.0.0.0/4", "ff00::/8"):
		return modelVerdict{Drop, drop.Multicast, 0, ""}
	case s.kind == packet.KindICMPError:
		return modelVerdict{Drop, drop.OutboundICMP, 0, ""}
	case src != m.peer.ClientV4 && src != m.peer.ClientV6:
		return reject(drop.ForeignSource)
	case dst == m.peer.GatewayV4 || dst == m.peer.GatewayV6:
		door := s.name == "ping" || port == 53535 && (s.name == "tcp" || s.name == "udp")
		if !door && !m.peer.GatewayOpen {
			return reject(drop.GatewayClosed)
		}
		return modelVerdict{Forward, drop.None, 0, ""}
	case insideAny(dst, "100.64.0.0/11", "fd00:2021:1111::/107"):
		return reject(drop.TunnelRange)
	}
	reason, credit := m.lookup(dst, s, port)
	switch reason {
	case drop.None:
		return modelVerdict{Forward, drop.None, 0, credit}
	case drop.NotPublic, drop.Unresolved:
		return modelVerdict{Reject, reason, packet.NoRoute, ""}
	}
	return reject(reason)
}

func (m model) inbound(src, dst netip.Addr, s shape, port uint16) modelVerdict {
	toClient := dst == m.peer.ClientV4 || dst == m.peer.ClientV6
	fromGateway := src == m.peer.GatewayV4 || src == m.peer.GatewayV6
	switch {
	case fromGateway && toClient:
		return modelVerdict{Forward, drop.None, 0, ""}
	case !fromGateway && (s.name == "gre" || s.name == "other icmp"):
		return modelVerdict{Drop, drop.Unclassified, 0, ""}
	case !toClient:
		return modelVerdict{Drop, drop.NoPeerState, 0, ""}
	case insideAny(src, "100.64.0.0/11", "fd00:2021:1111::/107"):
		return modelVerdict{Drop, drop.NotAllowed, 0, ""}
	case s.name == "icmp error":
		return modelVerdict{Forward, drop.None, 0, ""}
	}
	if reason, credit := m.lookup(src, s, port); reason == drop.None {
		return modelVerdict{Forward, drop.None, 0, credit}
	}
	return modelVerdict{Drop, drop.NotAllowed, 0, ""}
}

func (m model) lookup(a netip.Addr, s shape, port uint16) (drop.Reason, string) {
	live := func(g Grant) bool { return g.ExpiresAt.IsZero() || g.ExpiresAt.UnixNano() > now }
	proxy := insideAny(a, "100.96.0.0/11", "fd00:2021:1111:8000::/107")
	private := insideAny(a, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10",
		"224.0.0.0/4", "240.0.0.0/4", "::1/128", "::ffff:0:0/96", "fc00::/7", "fe80::/10", "ff00::/8")
	covering, expired, filtered := 0, 0, 0
	best, bestBits, bestID := false, -1, ""
	online, onlineID, names := false, "", false
	for _, g := range m.grants {
		switch r := g.Resource; {
		case r.Kind == DNS && proxy && len(m.proxies[a]) == 0:
			covering++
			if live(g) {
				names = true
			} else {
				expired++
			}
		case r.Kind == DNS && proxy && slices.Contains(m.proxies[a], r.ID):
			covering++
			switch {
			case !live(g):
				expired++
			case !admitted(r.Filters, s, port):
				filtered++
			case !best || r.ID > bestID:
				best, bestID = true, r.ID
			}
		case r.Kind == Internet && !proxy:
			if live(g) {
				online, onlineID = true, max(onlineID, r.ID)
			} else if !private {
				covering++
				expired++
			}
		case r.Kind == CIDR && !proxy && r.Network.IsValid() && r.Network.Contains(a) && !onlyMulticast(r.Network):
			covering++
			switch bits := r.Network.Bits(); {
			case !live(g):
				expired++
			case !admitted(r.Filters, s, port):
				filtered++
			case !best || bits > bestBits || bits == bestBits && r.ID > bestID:
				best, bestBits, bestID = true, bits, r.ID
			}
		}
	}
	switch {
	case names:
		return drop.Unresolved, ""
	case online && private:
		return drop.NotPublic, ""
	case online:
		return drop.None, onlineID
	case best:
		return drop.None, bestID
	case filtered > 0:
		return drop.Filtered, ""
	case expired > 0 && expired == covering:
		return drop.Expired, ""
	}
	return drop.NoResource, ""
}

// onlyMulticast reports whether p holds nothing else; such a grant opens nothing.
func onlyMulticast(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() >= 4 && p.Addr().IsMulticast()
	}
	return p.Bits() >= 8 && p.Addr().IsMulticast()
}

func admitted(filters []Filter, s shape, port uint16) bool {
	if len(filters) == 0 {
		return true
	}
	for _, f := range filters {
		inside := f.Ports.First <= port && port <= f.Ports.Last
		switch {
		case s.name == "tcp" && f.Protocol == FilterTCP && inside,
			s.name == "udp" && f.Protocol == FilterUDP && inside,
			(s.name == "ping" || s.name == "other icmp") && f.Protocol == FilterICMP:
			return true
		}
	}
	return false
}

func insideAny(a netip.Addr, prefixes ...string) bool {
	for _, p := range prefixes {
		if netip.MustParsePrefix(p).Contains(a) {
			return true
		}
	}
	return false
}
