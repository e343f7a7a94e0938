package policy

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

var (
	peer = Peer{
		ClientV4: addr("100.64.0.7"), ClientV6: addr("fd00:2021:1111::7"),
		GatewayV4: addr("100.64.0.1"), GatewayV6: addr("fd00:2021:1111::1"),
	}
	start = time.Unix(1_800_000_000, 0)
	now   = start.UnixNano()
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func parse(t testing.TB, b []byte) *packet.View {
	t.Helper()
	var v packet.View
	if r := v.Parse(b); r != drop.None {
		t.Fatalf("Parse: %v", r)
	}
	return &v
}

// client returns the client's address of the same family as a.
func client(a netip.Addr) netip.Addr {
	if a.Is4() {
		return peer.ClientV4
	}
	return peer.ClientV6
}

func udpTo(dst string, port uint16) []byte {
	d := addr(dst)
	return packettest.UDP(netip.AddrPortFrom(client(d), 40000), netip.AddrPortFrom(d, port), nil)
}

func tcpTo(dst string, port uint16) []byte {
	d := addr(dst)
	return packettest.TCP(netip.AddrPortFrom(client(d), 40000), netip.AddrPortFrom(d, port), 2, nil)
}

func udpFrom(src string, port uint16) []byte {
	s := addr(src)
	return packettest.UDP(netip.AddrPortFrom(s, port), netip.AddrPortFrom(client(s), 40000), nil)
}

func tcpFrom(src string, port uint16) []byte {
	s := addr(src)
	return packettest.TCP(netip.AddrPortFrom(s, port), netip.AddrPortFrom(client(s), 40000), 18, nil)
}

func cidr(id, network string, filters ...Filter) Grant {
	return Grant{Resource: Resource{ID: id, Kind: CIDR, Network: netip.MustParsePrefix(network), Filters: filters}}
}

func internet(id string) Grant { return Grant{Resource: Resource{ID: id, Kind: Internet}} }

func domain(id string, filters ...Filter) Grant {
	return Grant{Resource: Resource{ID: id, Kind: DNS, Pattern: "*.example.com", Filters: filters}}
}

func until(g Grant, d time.Duration) Grant {
	g.ExpiresAt = start.Add(d)
	return g
}

func tcp(first, last uint16) Filter {
	return Filter{Protocol: FilterTCP, Ports: PortRange{first, last}}
}

func udp(first, last uint16) Filter {
	return Filter{Protocol: FilterUDP, Ports: PortRange{first, last}}
}

var icmp = Filter{Protocol: FilterICMP}

// wanted verdicts
var (
	forward = Verdict{Action: Forward}
	control = Verdict{Action: Control}
)

func prohibited(r drop.Reason) Verdict {
	return Verdict{Action: Reject, Reason: r, Answer: packet.Prohibited}
}

func noRoute(r drop.Reason) Verdict {
	return Verdict{Action: Reject, Reason: r, Answer: packet.NoRoute}
}

type verdictCase struct {
	name   string
	grants []Grant
	packet []byte
	want   Verdict
	credit string // resource ID
}

func run(t *testing.T, p Peer, judge func(*Snapshot, *packet.View, int64) Verdict, tests []verdictCase) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Compile(p, tt.grants, 1)
			got := judge(s, parse(t, tt.packet), now)
			if got.Action != tt.want.Action || got.Reason != tt.want.Reason || got.Answer != tt.want.Answer {
				t.Errorf("got %v %v %v, want %v %v %v", got.Action, got.Reason, got.Answer, tt.want.Action, tt.want.Reason, tt.want.Answer)
			}
			r, ok := s.Credited(got)
			if ok != (tt.credit != "") || r.ID != tt.credit {
				t.Errorf("credited %q, want %q", r.ID, tt.credit)
			}
		})
	}
}

// setUp are the proxy addresses that were set up, with their resources.
type setUp map[netip.Addr][]string

func (p setUp) Resources(proxy netip.Addr) []string { return p[proxy] }

var domains = setUp{
	addr("100.96.1.1"): {"d"}, addr("fd00:2021:1111:8000::101"): {"d"},
	addr("100.96.1.2"): {"d", "e"}, addr("100.96.1.3"): {"e", "d"},
}

func outbound(s *Snapshot, v *packet.View, now int64) Verdict { return s.Outbound(v, domains, now) }

func inbound(s *Snapshot, v *packet.View, now int64) Verdict { return s.Inbound(v, domains, now) }

func TestOutboundToProxyAddresses(t *testing.T) {
	web, ssh := domain("d", tcp(80, 80)), domain("e", tcp(22, 22))
	tests := []verdictCase{
		{"a domain that was set up", []Grant{domain("d")}, tcpTo("100.96.1.1", 1), forward, "d"},
		{"over IPv6", []Grant{domain("d")}, tcpTo("fd00:2021:1111:8000::101", 1), forward, "d"},
		{"rule 33: the resource's filter admits", []Grant{web}, tcpTo("100.96.1.1", 80), forward, "d"},
		{"rule 33: the resource's filter refuses", []Grant{web}, tcpTo("100.96.1.1", 22), prohibited(drop.Filtered), ""},
		{"rule 33: another resource's filter does not count", []Grant{web, ssh}, tcpTo("100.96.1.1", 22), prohibited(drop.Filtered), ""},
		{"rule 33: a CIDR resource's filter does not count", []Grant{web, cidr("a", "100.0.0.0/8")}, tcpTo("100.96.1.1", 22), prohibited(drop.Filtered), ""},
		{"rule 34: the Internet resource does not count", []Grant{web, internet("i")}, tcpTo("100.96.1.1", 22), prohibited(drop.Filtered), ""},
		{"rule 56: the first of two resources admits", []Grant{web, ssh}, tcpTo("100.96.1.2", 80), forward, "d"},
		{"rule 56: the second of two resources admits", []Grant{web, ssh}, tcpTo("100.96.1.2", 22), forward, "e"},
		{"rule 56: neither of two resources admits", []Grant{web, ssh}, tcpTo("100.96.1.2", 23), prohibited(drop.Filtered), ""},
		{"rule 56: one of the two was never granted", []Grant{ssh}, tcpTo("100.96.1.2", 22), forward, "e"},
		{"rule 32: the greatest ID is credited", []Grant{domain("d"), domain("e")}, tcpTo("100.96.1.2", 22), forward, "e"},
		{"rule 32: whatever the order of the set-up", []Grant{domain("d"), domain("e")}, tcpTo("100.96.1.3", 22), forward, "e"},
		{"a resource that was revoked", []Grant{ssh}, tcpTo("100.96.1.1", 22), prohibited(drop.NoResource), ""},
		{"the last resource was revoked", nil, tcpTo("100.96.1.1", 22), prohibited(drop.NoResource), ""},
		{"rule 36: a resource that ended", []Grant{until(web, 0), ssh}, tcpTo("100.96.1.1", 80), prohibited(drop.Expired), ""},
		{"rule 36: one of two that ended", []Grant{until(web, 0), ssh}, tcpTo("100.96.1.2", 22), forward, "e"},
		{"rule 36: one ended, the other refuses", []Grant{until(web, 0), ssh}, tcpTo("100.96.1.2", 80), prohibited(drop.Filtered), ""},
		{"a resource that became a CIDR resource", []Grant{cidr("d", "10.0.0.0/8")}, tcpTo("100.96.1.1", 80), prohibited(drop.NoResource), ""},
	}
	run(t, peer, outbound, tests)
	run(t, peer, inbound, []verdictCase{
		{"rule 68: a reply from the admitted port", []Grant{web}, tcpFrom("100.96.1.1", 80), forward, "d"},
		{"rule 68: a reply from another port", []Grant{web}, tcpFrom("100.96.1.1", 22), dropped(drop.NotAllowed), ""},
		{"a reply of a resource that was revoked", []Grant{ssh}, tcpFrom("100.96.1.1", 80), dropped(drop.NotAllowed), ""},
	})
}

func TestOutboundOrderOfChecks(t *testing.T) {
	foreign4, foreign6 := addr("100.64.0.8"), addr("fd00:2021:1111::8")
	lan, lan6 := addr("10.1.2.3"), addr("2001:db8::3")
	all := []Grant{cidr("a", "0.0.0.0/0"), cidr("b", "::/0")}
	online := append([]Grant{internet("i")}, all...)

	run(t, peer, outbound, []verdictCase{
		{"rule 10: an unknown protocol reaches an unfiltered network", all, packettest.IP(peer.ClientV4, lan, 47, []byte{1}), forward, "a"},
		{"rule 11: a bad IPv4 header checksum does not matter", all, damaged(udpTo("10.1.2.3", 1)), forward, "a"},
		{"rule 18: a foreign IPv4 source", all, packettest.Ping(foreign4, lan, 1, nil), prohibited(drop.ForeignSource), ""},
		{"rule 18: a foreign IPv6 source", all, packettest.Ping(foreign6, lan6, 1, nil), prohibited(drop.ForeignSource), ""},
		{"rule 18: the gateway's address as source", all, packettest.Ping(peer.GatewayV4, lan, 1, nil), prohibited(drop.ForeignSource), ""},
		{"rule 18: a public source", all, packettest.Ping(addr("192.0.2.1"), lan, 1, nil), prohibited(drop.ForeignSource), ""},
		{"rule 18 comes before the gateway's own address", all, packettest.Ping(foreign4, peer.GatewayV4, 1, nil), prohibited(drop.ForeignSource), ""},
		{"rule 20: another tunnel address", online, udpTo("100.64.0.8", 1), prohibited(drop.TunnelRange), ""},
		{"rule 20: the last tunnel address", online, udpTo("100.95.255.255", 1), prohibited(drop.TunnelRange), ""},
		{"rule 20: another IPv6 tunnel address", online, udpTo("fd00:2021:1111::8", 1), prohibited(drop.TunnelRange), ""},
		{"rule 20: the client itself", online, udpTo("100.64.0.7", 1), prohibited(drop.TunnelRange), ""},
		{"rule 21: IPv4 multicast", online, udpTo("224.0.0.251", 5353), dropped(drop.Multicast), ""},
		{"rule 21: IPv6 multicast", online, udpTo("ff02::fb", 5353), dropped(drop.Multicast), ""},
		{"rule 21 comes before the source check", all, packettest.Ping(foreign4, addr("224.0.0.1"), 1, nil), dropped(drop.Multicast), ""},
		{"rule 22: an ICMP error", all, packettest.Unreachable(peer.ClientV4, lan, udpFrom("10.1.2.3", 1)), dropped(drop.OutboundICMP), ""},
		{"rule 22: an ICMPv6 error", all, packettest.Unreachable(peer.ClientV6, lan6, udpFrom("2001:db8::3", 1)), dropped(drop.OutboundICMP), ""},
		{"rule 22 holds for the gateway's own address", all, packettest.Unreachable(peer.ClientV4, peer.GatewayV4, udpFrom("100.64.0.1", 1)), dropped(drop.OutboundICMP), ""},
		{"rule 23: no resource over IPv4", nil, tcpTo("10.1.2.3", 80), prohibited(drop.NoResource), ""},
		{"rule 23: no resource over IPv6", nil, tcpTo("2001:db8::3", 80), prohibited(drop.NoResource), ""},
		{"rule 44: goodbye", nil, packet.AppendGoodbye(nil), control, ""},
		{"rule 44: any type of control packet", nil, packet.AppendControl(nil, 77, []byte("x")), control, ""},
		{"rule 44: seven bytes are no control packet", all, shortControl(), prohibited(drop.ForeignSource), ""},
	})
}

func TestOutboundToTheGatewayItself(t *testing.T) {
	gre := packettest.IP(peer.ClientV4, peer.GatewayV4, 47, []byte{1})
	timestamp := packettest.ICMP(peer.ClientV4, peer.GatewayV4, 13, 0, 0, make([]byte, 12))
	closed := prohibited(drop.GatewayClosed)
	all := []Grant{cidr("a", "0.0.0.0/0"), cidr("b", "::/0"), internet("i")}
	run(t, peer, outbound, []verdictCase{
		{"a ping passes", nil, packettest.Ping(peer.ClientV4, peer.GatewayV4, 1, nil), forward, ""},
		{"an IPv6 pong passes", nil, packettest.Pong(peer.ClientV6, peer.GatewayV6, 1, nil), forward, ""},
		{"DNS over UDP passes", nil, udpTo("100.64.0.1", 53535), forward, ""},
		{"DNS over TCP and IPv6 passes", nil, tcpTo("fd00:2021:1111::1", 53535), forward, ""},
		{"the health port is closed", all, tcpTo("100.64.0.1", 8080), closed, ""},
		{"the health port is closed over IPv6", all, tcpTo("fd00:2021:1111::1", 8080), closed, ""},
		{"ordinary DNS is closed", all, udpTo("100.64.0.1", 53), closed, ""},
		{"GRE is closed", all, gre, closed, ""},
		{"a timestamp request is closed", all, timestamp, closed, ""},
	})

	open := peer
	open.GatewayOpen = true
	run(t, open, outbound, []verdictCase{
		{"rule 19: any TCP port with the open door", nil, tcpTo("100.64.0.1", 8080), forward, ""},
		{"rule 19: any UDP port over IPv6 with the open door", nil, udpTo("fd00:2021:1111::1", 53), forward, ""},
		{"rule 19: any protocol with the open door", nil, gre, forward, ""},
		{"rule 20 stays with the open door", nil, tcpTo("100.64.0.2", 8080), prohibited(drop.TunnelRange), ""},
	})
}

func TestOutboundFilters(t *testing.T) {
	lan := addr("10.1.2.3")
	gre := packettest.IP(peer.ClientV4, lan, 47, []byte{1})
	redirect := packettest.ICMP(peer.ClientV4, lan, 5, 0, 0, make([]byte, 28))
	one := func(f ...Filter) []Grant { return []Grant{cidr("a", "10.0.0.0/8", f...)} }
	filtered := prohibited(drop.Filtered)

	run(t, peer, outbound, []verdictCase{
		{"rule 27: an empty list admits UDP", one(), udpTo("10.1.2.3", 9), forward, "a"},
		{"rule 27: an empty list admits ping", one(), packettest.Ping(peer.ClientV4, lan, 1, nil), forward, "a"},
		{"rule 27: an empty list admits GRE", one(), gre, forward, "a"},
		{"rule 28: the first port", one(tcp(80, 90)), tcpTo("10.1.2.3", 80), forward, "a"},
		{"rule 28: the last port", one(tcp(80, 90)), tcpTo("10.1.2.3", 90), forward, "a"},
		{"rule 28: below the range", one(tcp(80, 90)), tcpTo("10.1.2.3", 79), filtered, ""},
		{"rule 28: above the range", one(tcp(80, 90)), tcpTo("10.1.2.3", 91), filtered, ""},
		{"rule 28: all ports include 0", one(udp(0, 65535)), udpTo("10.1.2.3", 0), forward, "a"},
		{"rule 28: all ports include 65535", one(udp(0, 65535)), udpTo("10.1.2.3", 65535), forward, "a"},
		{"one of several ranges", one(tcp(1, 2), tcp(443, 443), tcp(100, 200), tcp(150, 300)), tcpTo("10.1.2.3", 300), forward, "a"},
		{"between several ranges", one(tcp(1, 2), tcp(443, 443), tcp(100, 200), tcp(150, 300)), tcpTo("10.1.2.3", 301), filtered, ""},
		{"TCP ports do not admit UDP", one(tcp(80, 90)), udpTo("10.1.2.3", 80), filtered, ""},
		{"UDP ports do not admit TCP", one(udp(80, 90)), tcpTo("10.1.2.3", 80), filtered, ""},
		{"the source port does not matter outbound", one(tcp(40000, 40000)), tcpTo("10.1.2.3", 80), filtered, ""},
		{"rule 29: the switch admits ping", one(icmp), packettest.Ping(peer.ClientV4, lan, 1, nil), forward, "a"},
		{"rule 29: the switch admits every type", one(icmp), redirect, forward, "a"},
		{"rule 29: the switch does not admit errors", one(icmp), packettest.Unreachable(peer.ClientV4, lan, udpFrom("10.1.2.3", 1)), dropped(drop.OutboundICMP), ""},
		{"ping without the switch", one(tcp(0, 65535), udp(0, 65535)), packettest.Ping(peer.ClientV4, lan, 1, nil), filtered, ""},
		{"the switch does not admit TCP", one(icmp), tcpTo("10.1.2.3", 80), filtered, ""},
		{"rule 30: GRE with a list", one(tcp(0, 65535), udp(0, 65535), icmp), gre, filtered, ""},
		{"an upside-down range admits nothing", one(tcp(90, 80)), tcpTo("10.1.2.3", 85), filtered, ""},
		{"an unknown filter does not make the list empty", one(Filter{Protocol: 99}), tcpTo("10.1.2.3", 85), filtered, ""},
	})
}

func TestOutboundSeveralResources(t *testing.T) {
	wide, narrow := cidr("wide", "10.0.0.0/8", tcp(22, 22)), cidr("narrow", "10.1.0.0/16", tcp(80, 80))
	mapped := addr("::ffff:10.1.2.3")
	rejectedAddresses := []string{
		"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.127.255.255", "240.0.0.1", "255.255.255.255",
		"::1", "fc00::1", "fdff::1", "fe80::1", "febf::1",
	}
	tests := []verdictCase{
		{"rule 31: the wider resource admits", []Grant{wide, narrow}, tcpTo("10.1.2.3", 22), forward, "wide"},
		{"rule 31: the narrower resource admits", []Grant{narrow, wide}, tcpTo("10.1.2.3", 80), forward, "narrow"},
		{"rule 31: neither admits", []Grant{narrow, wide}, tcpTo("10.1.2.3", 443), prohibited(drop.Filtered), ""},
		{"rule 31: a neighbour of the narrower one", []Grant{narrow, wide}, tcpTo("10.2.2.3", 80), prohibited(drop.Filtered), ""},
		{"rule 31: two lists on one network", []Grant{cidr("a", "10.0.0.0/8", tcp(1, 1)), cidr("b", "10.0.0.0/8", tcp(2, 2))}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"rule 32: the longest prefix is credited", []Grant{cidr("z", "10.0.0.0/8"), cidr("a", "10.1.2.3/32")}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"rule 32: then the greatest ID", []Grant{cidr("a", "10.0.0.0/8"), cidr("c", "10.0.0.0/8"), cidr("b", "10.0.0.0/8")}, tcpTo("10.1.2.3", 1), forward, "c"},
		{"rule 32: host bits do not matter", []Grant{cidr("a", "10.0.0.0/8"), cidr("b", "10.9.9.9/8")}, tcpTo("10.1.2.3", 1), forward, "b"},
		{"rule 33: a CIDR resource does not open proxy addresses", []Grant{cidr("a", "100.0.0.0/8")}, tcpTo("100.96.0.1", 1), prohibited(drop.NoResource), ""},
		{"rule 33: a CIDR resource next to a DNS resource", []Grant{cidr("a", "100.0.0.0/8"), domain("d")}, tcpTo("100.96.0.1", 1), noRoute(drop.Unresolved), ""},
		{"rule 33: a DNS resource opens nothing else", []Grant{domain("d")}, tcpTo("10.1.2.3", 1), prohibited(drop.NoResource), ""},
		{"rule 34: the Internet resource does not open proxy addresses", []Grant{internet("i")}, tcpTo("100.96.0.1", 1), prohibited(drop.NoResource), ""},
		{"rule 34: over IPv6", []Grant{internet("i")}, tcpTo("fd00:2021:1111:8000::1", 1), prohibited(drop.NoResource), ""},
		{"rule 34: the Internet resource next to a DNS resource", []Grant{internet("i"), domain("d")}, tcpTo("fd00:2021:1111:8000::1", 1), noRoute(drop.Unresolved), ""},
		{"the Internet resource opens IPv4", []Grant{internet("i")}, tcpTo("1.1.1.1", 1), forward, "i"},
		{"the Internet resource opens IPv6", []Grant{internet("i")}, tcpTo("2606:4700::1111", 1), forward, "i"},
		{"the Internet resource has no filters", []Grant{{Resource: Resource{ID: "i", Kind: Internet, Filters: []Filter{tcp(1, 1)}}}}, udpTo("1.1.1.1", 1), forward, "i"},
		{"the Internet resource opens GRE", []Grant{internet("i")}, packettest.IP(peer.ClientV4, addr("1.1.1.1"), 47, nil), forward, "i"},
		{"the greatest Internet resource is credited", []Grant{internet("i"), internet("k"), internet("j")}, tcpTo("1.1.1.1", 1), forward, "k"},
		{"the Internet resource comes before a CIDR filter", []Grant{cidr("a", "1.1.1.0/24", tcp(80, 80)), internet("i")}, udpTo("1.1.1.1", 1), forward, "i"},
		{"rule 35: a private network next to the Internet resource", []Grant{internet("i"), cidr("a", "10.0.0.0/8")}, tcpTo("10.1.2.3", 1), noRoute(drop.NotPublic), ""},
		{"rule 35: an IPv4-mapped address", []Grant{internet("i")}, packettest.Ping(peer.ClientV6, mapped, 1, nil), noRoute(drop.NotPublic), ""},
		{"rule 35: next to a private range", []Grant{internet("i")}, tcpTo("172.32.0.1", 1), forward, "i"},
	}
	for _, a := range rejectedAddresses {
		want := noRoute(drop.NotPublic)
		if IsProxy(addr(a)) {
			want = prohibited(drop.NoResource)
		}
		tests = append(tests, verdictCase{"rule 35: " + a, []Grant{internet("i")}, udpTo(a, 1), want, ""})
	}
	run(t, peer, outbound, tests)
}

func TestOutboundExpiry(t *testing.T) {
	later, ended := time.Hour, -time.Nanosecond
	lan := cidr("a", "10.0.0.0/8")
	run(t, peer, outbound, []verdictCase{
		{"rule 36: before the end", []Grant{until(lan, time.Nanosecond)}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"rule 36: at the end", []Grant{until(lan, 0)}, tcpTo("10.1.2.3", 1), prohibited(drop.Expired), ""},
		{"rule 36: one of two on the same network ends", []Grant{until(cidr("b", "10.0.0.0/8"), ended), until(lan, later)}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"rule 36: the narrower one ends", []Grant{until(cidr("b", "10.1.0.0/16"), ended), lan}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"rule 36: the ended one was the one that admits", []Grant{until(cidr("b", "10.1.0.0/16"), ended), cidr("a", "10.0.0.0/8", icmp)}, tcpTo("10.1.2.3", 1), prohibited(drop.Filtered), ""},
		{"rule 36: an ended Internet resource", []Grant{until(internet("i"), ended)}, tcpTo("1.1.1.1", 1), prohibited(drop.Expired), ""},
		{"rule 36: an ended Internet resource frees private networks", []Grant{until(internet("i"), ended), lan}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"rule 36: an ended Internet resource covers no private address", []Grant{until(internet("i"), ended)}, tcpTo("10.1.2.3", 1), prohibited(drop.NoResource), ""},
		{"rule 36: an ended Internet resource over a filter", []Grant{until(internet("i"), ended), cidr("a", "1.0.0.0/8", icmp)}, tcpTo("1.1.1.1", 1), prohibited(drop.Filtered), ""},
		{"rule 36: an ended DNS resource", []Grant{until(domain("d"), ended)}, tcpTo("100.96.0.1", 1), prohibited(drop.Expired), ""},
		{"rule 36: one DNS resource of two ends", []Grant{until(domain("d"), ended), domain("e")}, tcpTo("100.96.0.1", 1), noRoute(drop.Unresolved), ""},
		{"an end beyond the clock's range", []Grant{{Resource: lan.Resource, ExpiresAt: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}}, tcpTo("10.1.2.3", 1), forward, "a"},
		{"an end before the clock's range", []Grant{{Resource: lan.Resource, ExpiresAt: time.Date(2, 1, 1, 0, 0, 0, 0, time.UTC)}}, tcpTo("10.1.2.3", 1), prohibited(drop.Expired), ""},
	})

	v := parse(t, tcpTo("10.1.2.3", 1))
	after := start.Add(2 * time.Hour).UnixNano()
	if s := Compile(peer, []Grant{until(lan, later)}, 1); s.Outbound(v, NoProxies, after).Reason != drop.Expired {
		t.Error("rule 36: a grant did not end by itself")
	}
	if s := Compile(peer, []Grant{until(lan, 3*later)}, 2); s.Outbound(v, NoProxies, after).Action != Forward {
		t.Error("rule 37: a later end does not extend access")
	}
	if s := Compile(peer, []Grant{until(lan, -later)}, 3); s.Outbound(v, NoProxies, now).Action == Forward {
		t.Error("rule 38: an end in the past leaves access")
	}
}

func TestInbound(t *testing.T) {
	lan, lan6 := addr("10.1.2.3"), addr("2001:db8::3")
	all := []Grant{cidr("a", "0.0.0.0/0"), cidr("b", "::/0")}
	web := []Grant{cidr("a", "10.0.0.0/8", tcp(80, 80))}
	refused := dropped(drop.NotAllowed)
	own := func(dst netip.Addr) []byte { return packettest.IP(peer.GatewayV4, dst, 47, []byte{1}) }

	run(t, peer, inbound, []verdictCase{
		{"the gateway itself passes in any protocol", nil, own(peer.ClientV4), forward, ""},
		{"the gateway itself passes over IPv6", nil, udpFrom("fd00:2021:1111::1", 53535), forward, ""},
		{"the gateway itself to somebody else", all, own(addr("100.64.0.8")), dropped(drop.NoPeerState), ""},
		{"GRE cannot be classified", all, packettest.IP(lan, peer.ClientV4, 47, []byte{1}), dropped(drop.Unclassified), ""},
		{"a redirect cannot be classified", all, packettest.ICMP(lan, peer.ClientV4, 5, 0, 0, make([]byte, 28)), dropped(drop.Unclassified), ""},
		{"a timestamp reply cannot be classified", all, packettest.ICMP(lan, peer.ClientV4, 14, 0, 0, make([]byte, 12)), dropped(drop.Unclassified), ""},
		{"an error without usable quote cannot be classified", all, packettest.Unreachable(lan, peer.ClientV4, nil), dropped(drop.Unclassified), ""},
		{"a control packet from the TUN device", all, packet.AppendGoodbye(nil), dropped(drop.Unclassified), ""},
		{"rule 67: another client", all, packettest.Ping(lan, addr("100.64.0.8"), 1, nil), dropped(drop.NoPeerState), ""},
		{"rule 67: no tunnel address", all, packettest.Ping(lan6, addr("2001:db8::4"), 1, nil), dropped(drop.NoPeerState), ""},
		{"rule 69: another client as source", all, udpFrom("100.64.0.8", 1), refused, ""},
		{"rule 69: another IPv6 client as source", all, udpFrom("fd00:2021:1111::8", 1), refused, ""},
		{"rule 69: the client itself as source", all, udpFrom("100.64.0.7", 1), refused, ""},
		{"rule 69: an ICMP error from the tunnel range", all, packettest.Unreachable(addr("100.64.0.8"), peer.ClientV4, udpTo("10.1.2.3", 1)), refused, ""},
		{"rule 66: an ICMP error passes the filter", web, packettest.Unreachable(lan, peer.ClientV4, udpTo("10.1.2.3", 1)), forward, ""},
		{"rule 66: an ICMP error of any router", web, packettest.Unreachable(addr("192.0.2.1"), peer.ClientV4, udpTo("10.1.2.3", 1)), forward, ""},
		{"rule 66: packet too big", web, packettest.ICMP(lan6, peer.ClientV6, 2, 0, 1280, tcpTo("2001:db8::3", 1)), forward, ""},
		{"rule 68: a reply from the admitted port", web, tcpFrom("10.1.2.3", 80), forward, "a"},
		{"rule 68: a reply from another port", web, tcpFrom("10.1.2.3", 81), refused, ""},
		{"rule 68: a reply in another protocol", web, udpFrom("10.1.2.3", 80), refused, ""},
		{"rule 68: a pong without the switch", web, packettest.Pong(lan, peer.ClientV4, 1, nil), refused, ""},
		{"rule 68: a pong with the switch", []Grant{cidr("a", "10.0.0.0/8", icmp)}, packettest.Pong(lan, peer.ClientV4, 1, nil), forward, "a"},
		{"rule 68: a source that no resource covers", web, tcpFrom("11.1.2.3", 80), refused, ""},
		{"an ended grant", []Grant{until(cidr("a", "10.0.0.0/8"), 0)}, tcpFrom("10.1.2.3", 80), refused, ""},
		{"the Internet resource", []Grant{internet("i")}, tcpFrom("1.1.1.1", 80), forward, "i"},
		{"a private source with the Internet resource", []Grant{internet("i"), cidr("a", "10.0.0.0/8")}, tcpFrom("10.1.2.3", 80), refused, ""},
		{"a proxy address as source", append(all, domain("d")), tcpFrom("100.96.0.1", 80), refused, ""},
	})
}

func TestMissingFamilyMatchesNothing(t *testing.T) {
	only4 := Peer{ClientV4: peer.ClientV4, GatewayV4: peer.GatewayV4}
	run(t, only4, outbound, []verdictCase{
		{"IPv4 passes", []Grant{cidr("a", "10.0.0.0/8")}, udpTo("10.1.2.3", 1), forward, "a"},
		{"IPv6 has a foreign source", []Grant{cidr("a", "::/0")}, udpTo("2001:db8::1", 1), prohibited(drop.ForeignSource), ""},
		{"an unspecified source is foreign", []Grant{cidr("a", "::/0")}, packettest.Ping(addr("::"), addr("2001:db8::1"), 1, nil), prohibited(drop.ForeignSource), ""},
	})
	var zero Snapshot
	if got := zero.Outbound(parse(t, udpTo("10.1.2.3", 1)), NoProxies, now); got != prohibited(drop.ForeignSource) {
		t.Errorf("zero snapshot: %+v", got)
	}
}

func TestSkippedGrants(t *testing.T) {
	s := Compile(peer, []Grant{
		{Resource: Resource{ID: "no network", Kind: CIDR}},
		{Resource: Resource{ID: "no kind"}},
		cidr("tunnel", "100.64.0.0/16"), cidr("tunnel6", "fd00:2021:1111::/120"), cidr("proxy", "100.96.0.0/11"), cidr("proxy6", "fd00:2021:1111:8000::1/128"),
		cidr("multicast", "239.0.0.0/8"), cidr("multicast6", "ff02::/16"),
		cidr("wider than all of them", "100.64.0.0/10"),
	}, 5)
	want := []Skip{
		{"no network", ErrNetwork}, {"no kind", ErrKind}, {"tunnel", ErrUnreachable}, {"tunnel6", ErrUnreachable}, {"proxy", ErrUnreachable},
		{"proxy6", ErrUnreachable}, {"multicast", ErrUnreachable}, {"multicast6", ErrUnreachable},
	}
	got := s.Skipped()
	if len(got) != len(want) {
		t.Fatalf("skipped %v", got)
	}
	for i := range want {
		if got[i].ID != want[i].ID || !errors.Is(got[i].Err, want[i].Err) {
			t.Errorf("skipped %v, want %v", got[i], want[i])
		}
	}
	if s.Empty() || s.Version() != 5 {
		t.Errorf("empty %v, version %d", s.Empty(), s.Version())
	}
	if s := Compile(peer, []Grant{{Resource: Resource{Kind: CIDR}, ExpiresAt: start}}, 1); !s.Empty() {
		t.Error("a skipped grant counts")
	}
}

func TestNextExpiry(t *testing.T) {
	tests := []struct {
		name   string
		grants []Grant
		want   time.Time
	}{
		{"no grants", nil, time.Time{}},
		{"a grant without end", []Grant{internet("i")}, time.Time{}},
		{"the earliest of all kinds", []Grant{until(internet("i"), 3), until(domain("d"), 1), until(cidr("a", "10.0.0.0/8"), 2)}, start.Add(1)},
		{"one in the past", []Grant{until(internet("i"), -1), domain("d")}, start.Add(-1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := Compile(peer, tt.grants, 1).NextExpiry()
			if !got.Equal(tt.want) || ok == tt.want.IsZero() {
				t.Errorf("got %v, %v, want %v", got, ok, tt.want)
			}
		})
	}
}

func TestSnapshotDoesNotFollowItsInput(t *testing.T) {
	grants := []Grant{cidr("a", "10.0.0.0/8", tcp(80, 80))}
	s := Compile(peer, grants, 1)
	grants[0].Resource.Filters[0] = tcp(22, 22)
	grants[0].Resource.ID = "b"
	v := s.Outbound(parse(t, tcpTo("10.1.2.3", 80)), NoProxies, now)
	if r, _ := s.Credited(v); v.Action != Forward || r.ID != "a" || r.Filters[0] != tcp(80, 80) {
		t.Errorf("verdict %+v of %+v", v, r)
	}
}

func TestNamesAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range []string{
		CIDR.String(), DNS.String(), Internet.String(), ResourceKind(0).String() + " kind",
		FilterTCP.String(), FilterUDP.String(), FilterICMP.String(), FilterProtocol(0).String() + " filter",
		Drop.String(), Reject.String(), Forward.String(), Control.String(), Action(9).String() + " action",
	} {
		if s == "" || seen[s] {
			t.Errorf("name %q is empty or used twice", s)
		}
		seen[s] = true
	}
}

// damaged returns p with a wrong IPv4 header checksum.
func damaged(p []byte) []byte {
	p[10]++
	return p
}

// shortControl returns a control packet with seven payload bytes.
func shortControl() []byte {
	p := packet.AppendGoodbye(nil)[:47]
	p[5] = 7
	return p
}
