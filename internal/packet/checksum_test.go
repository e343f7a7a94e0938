package packet

import (
	"net/netip"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet/packettest"

	"pgregory.net/rapid"
)

// same compares checksums as verification does: 0x0000 and 0xffff are both zero.
func same(a, b uint16) bool { return a == b || a == 0 && b == 0xffff || a == 0xffff && b == 0 }

func TestChecksumOfTheExampleInRFC1071(t *testing.T) {
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := Sum(0).Bytes(b).Checksum(); got != ^uint16(0xddf2) {
		t.Errorf("got %04x, want %04x", got, ^uint16(0xddf2))
	}
}

func TestChecksumMatchesThePlainOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xfe, 0xff}), 0, 200).Draw(t, "bytes")
		cut := rapid.IntRange(0, len(b)).Draw(t, "cut") &^ 1
		got := Sum(0).Bytes(b[:cut]).Bytes(b[cut:]).Checksum()
		if want := packettest.Checksum(b); !same(got, want) {
			t.Fatalf("got %04x, want %04x", got, want)
		}
	})
}

func TestChecksumSurvivesCarriesEverywhere(t *testing.T) {
	b := make([]byte, MaxSize)
	for i := range b {
		b[i] = 0xff
	}
	for n := range len(b) {
		if got, want := Sum(0xffff_ffff_ffff_ffff).Bytes(b[:n]).Checksum(), packettest.Checksum(b[:n]); !same(got, want) {
			t.Fatalf("%d bytes: got %04x, want %04x", n, got, want)
		}
	}
}

func TestDeltaMatchesAFreshChecksum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "bytes")
		old := packettest.Checksum(b)
		word := rapid.Uint16().Draw(t, "word")
		from := netip.AddrFrom16([16]byte(b[4:20]))
		to := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
		d := Delta(0).Word(uint16(b[0])<<8|uint16(b[1]), word).Addr(from, to)
		b[0], b[1] = byte(word>>8), byte(word)
		copy(b[4:], to.AsSlice())
		got, want := d.Apply(old), packettest.Checksum(b)
		if !same(got, want) {
			t.Fatalf("got %04x, want %04x", got, want)
		}
		if got == 0 {
			t.Fatal("a rewritten checksum is 0 (rule 14)")
		}
	})
}

func TestDeltaNeverYieldsZero(t *testing.T) {
	for field := range 0x10000 {
		if Delta(0).Word(0, uint16(field)).Apply(uint16(field)) == 0 || Delta(0).Apply(uint16(field)) == 0 {
			t.Fatalf("field %04x became 0 (rule 14)", field)
		}
	}
}

func TestValidChecksums(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("odd")), packettest.UDP(from6, to6, []byte("odd"))
	tests := []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"UDP over IPv4", udp4, true},
		{"UDP over IPv6", udp6, true},
		{"TCP over IPv4", packettest.TCP(from4, to4, 2, []byte("x")), true},
		{"TCP over IPv6", packettest.TCP(from6, to6, 2, []byte("x")), true},
		{"ICMP", packettest.Ping(client4, host4, 1, []byte("x")), true},
		{"ICMPv6", packettest.Ping(client6, host6, 1, []byte("x")), true},
		{"an opaque protocol", packettest.IP(client4, host4, 47, []byte{1, 2, 3}), true},
		{"UDP over IPv4 without checksum", edit(udp4, 26, 0, 0), true},
		{"UDP over IPv6 without checksum", edit(udp6, 46, 0, 0), false},
		{"a changed payload", edit(udp4, 28, 'x'), false},
		{"a changed address", edit(udp6, 10, 9), false},
		{"a changed TTL", edit(udp4, 8, 9), false},
		{"a changed ping", edit(packettest.Ping(client4, host4, 1, []byte("x")), 28, 'y'), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustParse(t, tt.packet).ValidChecksums(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRewritingKeepsChecksumsRight(t *testing.T) {
	opaque := packettest.IP(client4, host4, 47, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	packets := map[string][]byte{
		"UDP over IPv4":       packettest.UDP(from4, to4, []byte("abc")),
		"UDP over IPv6":       packettest.UDP(from6, to6, []byte("abc")),
		"TCP over IPv4":       packettest.TCP(from4, to4, 2, []byte("abc")),
		"TCP over IPv6":       packettest.TCP(from6, to6, 2, []byte("abc")),
		"ping over IPv4":      packettest.Ping(client4, host4, 5, []byte("abc")),
		"ping over IPv6":      packettest.Ping(client6, host6, 5, []byte("abc")),
		"ICMPv6 error":        packettest.Unreachable(client6, host6, packettest.UDP(from6, to6, nil)),
		"ICMP error":          packettest.Unreachable(client4, host4, packettest.UDP(from4, to4, nil)),
		"an opaque protocol":  opaque,
		"UDP behind options":  packettest.Options4(packettest.UDP(from4, to4, nil), []byte{1, 1, 1, 1}),
		"UDP behind headers":  packettest.Extend6(packettest.UDP(from6, to6, nil), 60, []byte{17, 0, 1, 4, 0, 0, 0, 0}),
		"UDP without payload": packettest.UDP(from4, to4, nil),
	}
	for name, original := range packets {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				v := parsed(t, append([]byte(nil), original...))
				n := v.Src.BitLen() / 8
				addr := func(label string) netip.Addr {
					a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label))
					return a
				}
				src, dst := addr("source"), addr("destination")
				sport, dport := rapid.Uint16().Draw(t, "source port"), rapid.Uint16().Draw(t, "destination port")
				if !v.SetSource(src) || !v.SetDestination(dst) {
					t.Fatal("an address was refused")
				}
				ported := v.Kind == KindTCP || v.Kind == KindUDP || v.Kind == KindEcho
				if v.SetSourcePort(sport) != ported || v.SetDestinationPort(dport) != ported {
					t.Fatal("ports are changed for TCP, UDP and echo only")
				}
				if err := packettest.Verify(v.B, byte(v.Protocol), v.Transport); err != nil {
					t.Fatal(err)
				}
				again := parsed(t, v.B)
				if again.Src != src || again.Dst != dst {
					t.Fatalf("addresses %v and %v, want %v and %v", again.Src, again.Dst, src, dst)
				}
				if v.Kind == KindEcho {
					sport = dport
				}
				if ported && (again.SrcPort != sport || again.DstPort != dport) {
					t.Fatalf("ports %d and %d, want %d and %d", again.SrcPort, again.DstPort, sport, dport)
				}
				if v.Src != again.Src || v.Dst != again.Dst || v.SrcPort != again.SrcPort || v.DstPort != again.DstPort {
					t.Fatal("the view does not mirror the packet")
				}
			})
		})
	}
}

func TestRewritingKeepsAnAbsentUDPChecksumAbsent(t *testing.T) {
	v := mustParse(t, edit(packettest.UDP(from4, to4, []byte("abc")), 26, 0, 0))
	v.SetSource(host4)
	v.SetDestinationPort(9)
	if v.B[26] != 0 || v.B[27] != 0 {
		t.Error("the UDP checksum is no longer 0 (rule 13)")
	}
}

func TestRewritingKeepsAWrongChecksumWrong(t *testing.T) {
	p := packettest.UDP(from4, to4, []byte("abc"))
	v := mustParse(t, edit(p, 28, 'x'))
	v.SetSource(host4)
	if v.ValidChecksums() {
		t.Error("a damaged packet was repaired")
	}
}

func TestRewritingRefusesTheOtherFamily(t *testing.T) {
	p := packettest.UDP(from4, to4, nil)
	v := mustParse(t, append([]byte(nil), p...))
	if v.SetSource(host6) || v.SetDestination(netip.Addr{}) {
		t.Error("an address of the other family was accepted")
	}
	if string(v.B) != string(p) || v.Src != client4 || v.Dst != host4 {
		t.Error("the packet changed")
	}
}

func parsed(t *rapid.T, p []byte) *View {
	var v View
	if r := v.Parse(p); r != drop.None {
		t.Fatalf("Parse: %v", r)
	}
	return &v
}
