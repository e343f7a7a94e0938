package packet

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/packet/packettest"
)

func TestAnswerOverIPv4(t *testing.T) {
	udp := packettest.UDP(from4, to4, []byte("a longer payload"))
	withOptions := packettest.Options4(udp, make([]byte, 40))
	tests := []struct {
		name   string
		packet []byte
		answer Unreachable
		code   byte
		quoted int
	}{
		{"prohibited (rule 23)", udp, Prohibited, 13, 28},
		{"no route (rule 35)", udp, NoRoute, 0, 28},
		{"options are quoted whole (rule 25)", withOptions, Prohibited, 13, 68},
		{"a packet shorter than the quote", packettest.IP(client4, host4, 47, []byte{1, 2, 3}), Prohibited, 13, 23},
		{"a ping", packettest.Ping(client4, host4, 1, nil), Prohibited, 13, 28},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := AppendUnreachable(nil, mustParse(t, tt.packet), tt.answer)
			if len(got) != 28+tt.quoted {
				t.Fatalf("%d bytes, want %d", len(got), 28+tt.quoted)
			}
			if got[0] != 0x45 || got[1] != 0 || !bytes.Equal(got[4:8], make([]byte, 4)) {
				t.Errorf("header % x: want no options, DSCP, identification or flags", got[:8])
			}
			if got[8] != 20 || got[20] != 3 || got[21] != tt.code || !bytes.Equal(got[24:28], make([]byte, 4)) {
				t.Errorf("TTL %d, ICMP % x (rule 24)", got[8], got[20:28])
			}
			if !bytes.Equal(got[28:], tt.packet[:tt.quoted]) {
				t.Error("the quote differs from the packet")
			}
			if err := packettest.Verify(got, 1, 20); err != nil {
				t.Error(err)
			}
			v := mustParse(t, got)
			if v.Src != host4 || v.Dst != client4 {
				t.Errorf("from %v to %v", v.Src, v.Dst)
			}
		})
	}
}

func TestAnswerOverIPv6(t *testing.T) {
	tests := []struct {
		name   string
		packet []byte
		answer Unreachable
		code   byte
		quoted int
	}{
		{"prohibited (rule 23)", packettest.UDP(from6, to6, []byte("odd")), Prohibited, 1, 51},
		{"no route (rule 35)", packettest.UDP(from6, to6, nil), NoRoute, 3, 48},
		{"a packet that just fits (rule 25)", packettest.UDP(from6, to6, make([]byte, 1232-48)), NoRoute, 3, 1232},
		{"the largest packet (rule 25)", packettest.UDP(from6, to6, make([]byte, 1280-48)), NoRoute, 3, 1232},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := AppendUnreachable(nil, mustParse(t, tt.packet), tt.answer)
			if len(got) != 48+tt.quoted {
				t.Fatalf("%d bytes, want %d", len(got), 48+tt.quoted)
			}
			if !bytes.Equal(got[:4], []byte{0x60, 0, 0, 0}) || got[7] != 20 || got[40] != 1 || got[41] != tt.code || !bytes.Equal(got[44:48], make([]byte, 4)) {
				t.Errorf("headers % x and % x (rule 24)", got[:8], got[40:48])
			}
			if !bytes.Equal(got[48:], tt.packet[:tt.quoted]) {
				t.Error("the quote differs from the packet")
			}
			if err := packettest.Verify(got, 58, 40); err != nil {
				t.Error(err)
			}
			v := mustParse(t, got)
			if v.Src != host6 || v.Dst != client6 {
				t.Errorf("from %v to %v", v.Src, v.Dst)
			}
		})
	}
}

func TestAnswerIsAppended(t *testing.T) {
	v := mustParse(t, packettest.UDP(from4, to4, nil))
	got := AppendUnreachable([]byte("head"), v, Prohibited)
	if string(got[:4]) != "head" || !bytes.Equal(got[4:], AppendUnreachable(nil, v, Prohibited)) {
		t.Errorf("got % x", got)
	}
}

func TestSomePacketsAreNeverAnswered(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, nil), packettest.UDP(from6, to6, nil)
	addr := netip.MustParseAddr
	to := func(p []byte, a string) []byte {
		if b := addr(a); b.Is4() {
			return edit(p, 16, b.AsSlice()...)
		} else {
			return edit(p, 24, b.AsSlice()...)
		}
	}
	tests := []struct {
		name   string
		packet []byte
	}{
		{"an ICMP error", packettest.Unreachable(client4, host4, udp4)},
		{"an ICMPv6 error", packettest.Unreachable(client6, host6, udp6)},
		{"an ICMP error without usable quote", packettest.Unreachable(client4, host4, nil)},
		{"an ICMP redirect", packettest.ICMP(client4, host4, 5, 0, 0, udp4)},
		{"an ICMP source quench", packettest.ICMP(client4, host4, 4, 0, 0, udp4)},
		{"an ICMPv6 parameter problem", packettest.ICMP(client6, host6, 4, 0, 0, udp6)},
		{"an ICMPv6 redirect", packettest.ICMP(client6, host6, 137, 0, 0, udp6)},
		{"a multicast destination", to(udp4, "224.0.0.251")},
		{"an IPv6 multicast destination", to(udp6, "ff02::fb")},
		{"the broadcast destination", to(udp4, "255.255.255.255")},
		{"an unspecified source", edit(udp4, 12, 0, 0, 0, 0)},
		{"an unspecified IPv6 source", edit(udp6, 8, make([]byte, 16)...)},
		{"a multicast source", edit(udp4, 12, 224, 0, 0, 1)},
		{"a broadcast source", edit(udp4, 12, 255, 255, 255, 255)},
		{"a control packet", AppendGoodbye(nil)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := AppendUnreachable([]byte("head"), mustParse(t, tt.packet), Prohibited); string(got) != "head" {
				t.Errorf("answered with % x", got)
			}
		})
	}
	for _, u := range []Unreachable{0, 3} {
		if got := AppendUnreachable(nil, mustParse(t, udp4), u); got != nil {
			t.Errorf("answer %d is % x", u, got)
		}
	}
}

func TestAnswerAllocatesNothingWithRoom(t *testing.T) {
	v := mustParse(t, packettest.UDP(from6, to6, make([]byte, 1000)))
	buf := make([]byte, 0, MaxSize)
	if n := testing.AllocsPerRun(100, func() { buf = AppendUnreachable(buf[:0], v, Prohibited) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !slices.Equal(buf[48:88], v.B[:40]) {
		t.Error("the answer is not in the buffer")
	}
}
