package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet/packettest"
)

var (
	client4 = netip.MustParseAddr("100.64.0.7")
	client6 = netip.MustParseAddr("fd00:2021:1111::7")
	host4   = netip.MustParseAddr("203.0.113.9")
	host6   = netip.MustParseAddr("2001:db8::9")

	from4 = netip.AddrPortFrom(client4, 40000)
	from6 = netip.AddrPortFrom(client6, 40000)
	to4   = netip.AddrPortFrom(host4, 443)
	to6   = netip.AddrPortFrom(host6, 443)
)

// edit returns a copy of p with the bytes from at on replaced.
func edit(p []byte, at int, b ...byte) []byte {
	out := slices.Clone(p)
	copy(out[at:], b)
	return out
}

func mustParse(t *testing.T, p []byte) *View {
	t.Helper()
	var v View
	if r := v.Parse(p); r != drop.None {
		t.Fatalf("Parse: %v, want none; packet % x", r, p)
	}
	return &v
}

func TestParseAcceptsAndClassifies(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("hello")), packettest.UDP(from6, to6, []byte("hello"))
	tcp4, tcp6 := packettest.TCP(from4, to4, 2, nil), packettest.TCP(from6, to6, 2, nil)
	atomic := []byte{17, 0, 0, 0, 1, 2, 3, 4}
	options := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

	tests := []struct {
		name      string
		packet    []byte
		kind      Kind
		protocol  Protocol
		transport int
		src, dst  uint16
	}{
		{"UDP over IPv4", udp4, KindUDP, UDP, 20, 40000, 443},
		{"UDP over IPv6", udp6, KindUDP, UDP, 40, 40000, 443},
		{"TCP over IPv4", tcp4, KindTCP, TCP, 20, 40000, 443},
		{"TCP over IPv6", tcp6, KindTCP, TCP, 40, 40000, 443},
		{"an empty UDP payload", packettest.UDP(from4, to4, nil), KindUDP, UDP, 20, 40000, 443},
		{"a packet of exactly 1280 bytes (rule 1)", packettest.UDP(from4, to4, make([]byte, MaxSize-28)), KindUDP, UDP, 20, 40000, 443},
		{"IPv4 options", packettest.Options4(udp4, []byte{7, 4, 4, 0}), KindUDP, UDP, 24, 40000, 443},
		{"DF alone (rule 5)", edit(udp4, 6, 0x40, 0), KindUDP, UDP, 20, 40000, 443},
		{"a wrong IPv4 header checksum (rule 11)", edit(udp4, 10, 0xde, 0xad), KindUDP, UDP, 20, 40000, 443},
		{"a wrong UDP checksum", edit(udp4, 26, 0xde, 0xad), KindUDP, UDP, 20, 40000, 443},
		{"an atomic fragment (rule 6)", packettest.Extend6(udp6, 44, atomic), KindUDP, UDP, 48, 40000, 443},
		{"an atomic fragment with reserved bits", packettest.Extend6(udp6, 44, edit(atomic, 2, 0, 6)), KindUDP, UDP, 48, 40000, 443},
		{"hop-by-hop options", packettest.Extend6(tcp6, 0, options(6)), KindTCP, TCP, 48, 40000, 443},
		{"two destination options around hop-by-hop", packettest.Extend6(tcp6, 60, slices.Concat(options(0), options(60), options(6))), KindTCP, TCP, 64, 40000, 443},
		{"a long routing header", packettest.Extend6(udp6, 43, append([]byte{17, 2}, make([]byte, 22)...)), KindUDP, UDP, 64, 40000, 443},
		{"mobility, HIP and shim6 headers", packettest.Extend6(udp6, 135, slices.Concat(options(139), options(140), options(17))), KindUDP, UDP, 64, 40000, 443},
		{"experimental headers", packettest.Extend6(udp6, 253, slices.Concat(options(254), options(17))), KindUDP, UDP, 56, 40000, 443},
		{"AH over IPv6 as an opaque protocol", packettest.Extend6(udp6, 51, options(17)), KindOther, 51, 40, 0, 0},
		{"AH over IPv4 as an opaque protocol", packettest.IP(client4, host4, 51, make([]byte, 3)), KindOther, 51, 20, 0, 0},
		{"GRE (rule 10)", packettest.IP(client4, host4, 47, []byte{1}), KindOther, 47, 20, 0, 0},
		{"no next header", packettest.IP(client6, host6, 59, nil), KindOther, 59, 40, 0, 0},
		{"an unknown protocol without payload", packettest.IP(client4, host4, 200, nil), KindOther, 200, 20, 0, 0},
		{"a control packet", AppendGoodbye(nil), KindOther, Control, 40, 0, 0},
		{"a ping over IPv4", packettest.Ping(client4, host4, 77, nil), KindEcho, ICMP, 20, 77, 77},
		{"a pong over IPv4", packettest.Pong(client4, host4, 77, nil), KindEcho, ICMP, 20, 77, 77},
		{"a ping over IPv6", packettest.Ping(client6, host6, 77, nil), KindEcho, ICMPv6, 40, 77, 77},
		{"a pong over IPv6", packettest.Pong(client6, host6, 77, nil), KindEcho, ICMPv6, 40, 77, 77},
		{"a ping with a code", packettest.ICMP(client4, host4, 8, 1, 77<<16, nil), KindICMPOther, ICMP, 20, 0, 0},
		{"a timestamp request", packettest.ICMP(client4, host4, 13, 0, 0, make([]byte, 12)), KindICMPOther, ICMP, 20, 0, 0},
		{"a neighbour solicitation", packettest.ICMP(client6, host6, 135, 0, 0, make([]byte, 16)), KindICMPOther, ICMPv6, 40, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := View{SrcPort: 1, DstPort: 2, Kind: KindICMPError} // left over from another packet
			if r := v.Parse(tt.packet); r != drop.None {
				t.Fatalf("Parse: %v, want none", r)
			}
			if v.Kind != tt.kind || v.Protocol != tt.protocol || v.Transport != tt.transport {
				t.Errorf("got %v, protocol %v at %d; want %v, %v at %d", v.Kind, v.Protocol, v.Transport, tt.kind, tt.protocol, tt.transport)
			}
			if v.SrcPort != tt.src || v.DstPort != tt.dst {
				t.Errorf("ports %d and %d, want %d and %d", v.SrcPort, v.DstPort, tt.src, tt.dst)
			}
			if !bytes.Equal(v.B, tt.packet) {
				t.Error("B is not the packet")
			}
			if tt.protocol != Control && (v.Src != client4 && v.Src != client6 || v.Dst != host4 && v.Dst != host6) {
				t.Errorf("addresses %v and %v", v.Src, v.Dst)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("hello")), packettest.UDP(from6, to6, []byte("hello"))
	tcp4 := packettest.TCP(from4, to4, 2, nil)
	shortIP := func(p []byte, n int) []byte { // cut, with lengths that agree
		p = slices.Clone(p[:n])
		if p[0]>>4 == 4 {
			binary.BigEndian.PutUint16(p[2:], uint16(n))
		} else {
			binary.BigEndian.PutUint16(p[4:], uint16(n-40))
		}
		return p
	}

	tests := []struct {
		name   string
		packet []byte
		want   drop.Reason
	}{
		{"nothing", nil, drop.Malformed},
		{"one byte", []byte{0x45}, drop.Malformed},
		{"version 5", edit(udp4, 0, 0x55), drop.Malformed},
		{"1281 bytes (rule 1)", packettest.UDP(from4, to4, make([]byte, MaxSize-27)), drop.Oversize},
		{"IHL 4", edit(udp4, 0, 0x44), drop.Malformed},
		{"IHL beyond the packet", shortIP(edit(udp4, 0, 0x4f), 40-8), drop.Malformed},
		{"IPv4 total length too small (rule 3)", edit(udp4, 2, 0, byte(len(udp4)-1)), drop.Malformed},
		{"IPv4 total length too large (rule 3)", edit(udp4, 2, 0, byte(len(udp4)+1)), drop.Malformed},
		{"IPv4 with trailing padding (rule 3)", append(slices.Clone(udp4), 0, 0), drop.Malformed},
		{"IPv4 with MF (rule 5)", edit(udp4, 6, 0x20, 0), drop.Fragment},
		{"IPv4 with an offset (rule 5)", edit(udp4, 6, 0, 1), drop.Fragment},
		{"IPv6 header cut short", udp6[:39], drop.Malformed},
		{"IPv6 payload length too small (rule 4)", edit(udp6, 4, 0, byte(len(udp6)-41)), drop.Malformed},
		{"IPv6 payload length too large (rule 4)", edit(udp6, 4, 0, byte(len(udp6)-39)), drop.Malformed},
		{"IPv6 payload length 0 with data (rule 4)", edit(udp6, 4, 0, 0), drop.Malformed},
		{"IPv6 first fragment (rule 6)", packettest.Extend6(udp6, 44, []byte{17, 0, 0, 1, 0, 0, 0, 1}), drop.Fragment},
		{"IPv6 later fragment (rule 6)", packettest.Extend6(udp6, 44, []byte{17, 0, 0, 8, 0, 0, 0, 1}), drop.Fragment},
		{"a fragment behind hop-by-hop", packettest.Extend6(udp6, 0, []byte{44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 9, 0, 0, 0, 1}), drop.Fragment},
		{"extension header cut short", packettest.IP(client6, host6, 0, make([]byte, 7)), drop.Malformed},
		{"extension header without bytes", packettest.IP(client6, host6, 60, nil), drop.Malformed},
		{"extension header longer than the packet", packettest.IP(client6, host6, 60, []byte{17, 1, 0, 0, 0, 0, 0, 0}), drop.Malformed},
		{"extension header one byte longer than the packet", packettest.IP(client6, host6, 60, append([]byte{17, 1}, make([]byte, 13)...)), drop.Malformed},
		{"UDP header cut short", shortIP(udp4, 27), drop.Malformed},
		{"UDP length below the payload (rule 7)", edit(udp4, 24, 0, 12), drop.Malformed},
		{"UDP length above the payload (rule 7)", edit(udp4, 24, 0, 14), drop.Malformed},
		{"UDP length 0 (rule 7)", edit(udp6, 44, 0, 0), drop.Malformed},
		{"TCP header cut short", shortIP(tcp4, 39), drop.Malformed},
		{"TCP data offset 4 (rule 8)", edit(tcp4, 32, 0x40), drop.Malformed},
		{"TCP data offset beyond the packet (rule 8)", edit(tcp4, 32, 0x60), drop.Malformed},
		{"ICMP of seven bytes", packettest.IP(client4, host4, 1, make([]byte, 7)), drop.Malformed},
		{"ICMPv6 of seven bytes", packettest.IP(client6, host6, 58, make([]byte, 7)), drop.Malformed},
		{"ICMPv4 in IPv6 (rule 9)", packettest.IP(client6, host6, 1, make([]byte, 8)), drop.Malformed},
		{"ICMPv6 in IPv4 (rule 9)", packettest.IP(client4, host4, 58, make([]byte, 8)), drop.Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var v View
			if got := v.Parse(tt.packet); got != tt.want {
				t.Errorf("Parse: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	p := packettest.Unreachable(host6, client6, packettest.UDP(from6, to6, nil))
	var v View
	if n := testing.AllocsPerRun(100, func() { v.Parse(p) }); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func TestNamesAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range []string{
		KindOther.String(), KindTCP.String(), KindUDP.String(), KindEcho.String(), KindICMPError.String(), KindICMPOther.String(), Kind(99).String(),
		Prohibited.String(), NoRoute.String(), Unreachable(0).String(), Protocol(47).String(), ICMP.String(), ICMPv6.String(), Control.String(),
		AssignedIPs.String(), DomainStatus.String(), Goodbye.String(), ControlType(9).String(),
	} {
		if s == "" || seen[s] {
			t.Errorf("name %q is empty or used twice", s)
		}
		seen[s] = true
	}
}
