package packet

import (
	"slices"
	"testing"

	"firezone-gateway/internal/packet/packettest"
)

func TestICMPErrorsAreRecognisedByTheirQuote(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("payload")), packettest.UDP(from6, to6, []byte("payload"))
	tcp4 := packettest.TCP(from4, to4, 2, nil)
	ping4, ping6 := packettest.Ping(client4, host4, 77, nil), packettest.Ping(client6, host6, 77, nil)
	error4 := func(typ, code byte, quote []byte) []byte {
		return packettest.ICMP(host4, client4, typ, code, 1280, quote)
	}
	error6 := func(typ, code byte, quote []byte) []byte {
		return packettest.ICMP(host6, client6, typ, code, 1280, quote)
	}

	tests := []struct {
		name     string
		packet   []byte
		want     Kind
		kind     Kind // of the quoted packet
		src, dst uint16
	}{
		{"unreachable with UDP", error4(3, 3, udp4), KindICMPError, KindUDP, 40000, 443},
		{"unreachable with four bytes of TCP", error4(3, 1, tcp4[:24]), KindICMPError, KindTCP, 40000, 443},
		{"unreachable with three bytes of TCP", error4(3, 1, tcp4[:23]), KindICMPOther, 0, 0, 0},
		{"unreachable with an unknown code", error4(3, 200, udp4), KindICMPError, KindUDP, 40000, 443},
		{"fragmentation needed", error4(3, 4, udp4[:28]), KindICMPError, KindUDP, 40000, 443},
		{"time exceeded with a ping", error4(11, 0, ping4), KindICMPError, KindEcho, 77, 77},
		{"time exceeded with seven bytes of a ping", error4(11, 0, ping4[:27]), KindICMPOther, 0, 0, 0},
		{"time exceeded with a pong", error4(11, 0, packettest.Pong(client4, host4, 77, nil)), KindICMPOther, 0, 0, 0},
		{"quoted options", error4(3, 3, packettest.Options4(udp4, []byte{1, 1, 1, 1})), KindICMPError, KindUDP, 40000, 443},
		{"quoted IHL beyond the quote", error4(3, 3, edit(udp4[:28], 0, 0x4f)), KindICMPOther, 0, 0, 0},
		{"quoted IHL of 4", error4(3, 3, edit(udp4, 0, 0x44)), KindICMPOther, 0, 0, 0},
		{"quoted length that exceeds the quote", error4(3, 3, edit(udp4, 2, 5, 0)), KindICMPError, KindUDP, 40000, 443},
		{"quoted first fragment", error4(3, 3, edit(udp4, 6, 0x20, 0)), KindICMPError, KindUDP, 40000, 443},
		{"quoted later fragment", error4(3, 3, edit(udp4, 6, 0, 1)), KindICMPOther, 0, 0, 0},
		{"quoted GRE", error4(3, 2, packettest.IP(client4, host4, 47, make([]byte, 8))), KindICMPOther, 0, 0, 0},
		{"quoted ICMPv6 in IPv4", error4(3, 2, packettest.IP(client4, host4, 58, ping6[40:])), KindICMPOther, 0, 0, 0},
		{"quote of the other family", error4(3, 3, udp6), KindICMPOther, 0, 0, 0},
		{"an empty quote", error4(3, 3, nil), KindICMPOther, 0, 0, 0},
		{"redirect", error4(5, 0, udp4), KindICMPOther, 0, 0, 0},
		{"parameter problem", error4(12, 0, udp4), KindICMPOther, 0, 0, 0},

		{"ICMPv6 unreachable with UDP", error6(1, 4, udp6), KindICMPError, KindUDP, 40000, 443},
		{"packet too big with four bytes of UDP", error6(2, 0, udp6[:44]), KindICMPError, KindUDP, 40000, 443},
		{"packet too big without ports", error6(2, 0, udp6[:43]), KindICMPOther, 0, 0, 0},
		{"hop limit exceeded with a ping", error6(3, 0, ping6), KindICMPError, KindEcho, 77, 77},
		{"quoted extension header", error6(3, 0, packettest.Extend6(udp6, 0, []byte{17, 0, 1, 4, 0, 0, 0, 0})), KindICMPError, KindUDP, 40000, 443},
		{"quoted extension header cut short", error6(3, 0, packettest.Extend6(udp6, 0, []byte{17, 0, 1, 4, 0, 0, 0, 0})[:47]), KindICMPOther, 0, 0, 0},
		{"quoted IPv6 later fragment", error6(3, 0, packettest.Extend6(udp6, 44, []byte{17, 0, 0, 8, 0, 0, 0, 0})), KindICMPOther, 0, 0, 0},
		{"quoted ICMPv4 in IPv6", error6(1, 4, packettest.IP(client6, host6, 1, ping4[20:])), KindICMPOther, 0, 0, 0},
		{"ICMPv6 quote of the other family", error6(1, 4, slices.Concat(udp4, make([]byte, 20))), KindICMPOther, 0, 0, 0},
		{"ICMPv6 parameter problem", error6(4, 0, udp6), KindICMPOther, 0, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := mustParse(t, tt.packet)
			if v.Kind != tt.want {
				t.Fatalf("kind %v, want %v", v.Kind, tt.want)
			}
			q, ok := v.Quote()
			if ok != (tt.want == KindICMPError) {
				t.Fatalf("Quote: %v", ok)
			}
			if !ok {
				return
			}
			if q.Kind != tt.kind || q.SrcPort != tt.src || q.DstPort != tt.dst {
				t.Errorf("quote %v %d %d, want %v %d %d", q.Kind, q.SrcPort, q.DstPort, tt.kind, tt.src, tt.dst)
			}
			if q.Src != client4 && q.Src != client6 || q.Dst != host4 && q.Dst != host6 {
				t.Errorf("quoted addresses %v and %v", q.Src, q.Dst)
			}
			if q.Header != v.Transport+8 || q.Transport < q.Header+20 || q.Transport+4 > len(v.B) {
				t.Errorf("offsets %d and %d in %d bytes", q.Header, q.Transport, len(v.B))
			}
		})
	}
}

func TestOnlyICMPErrorsHaveAQuote(t *testing.T) {
	v := mustParse(t, packettest.UDP(from4, to4, packettest.UDP(from4, to4, nil)))
	if _, ok := v.Quote(); ok {
		t.Error("a UDP packet has a quote")
	}
}
