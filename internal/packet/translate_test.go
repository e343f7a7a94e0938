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

// inTheirPlace are where packets come from and go to in the other family.
var (
	outTo6 = Translation{Src: client6, Dst: host6, ID: 0x1234, Limit: MaxSize + MaxGrowth}
	outTo4 = Translation{Src: client4, Dst: host4, ID: 0x1234, Limit: MaxSize + MaxGrowth}
	inTo6  = Translation{Src: host6, Dst: client6, ID: 0x1234, Limit: MaxSize}
	inTo4  = Translation{Src: host4, Dst: client4, ID: 0x1234, Limit: MaxSize}
)

// spoil surrounds packets, to see what is written where it must not be.
const spoil = 0xa5

// translated translates a copy of b that has MaxGrowth bytes of room before it,
// and checks that only those and the packet were written to.
func translated(t *testing.T, b []byte, to Translation) (*View, drop.Reason) {
	t.Helper()
	const before = 16
	at := before + MaxGrowth
	buf := slices.Concat(bytes.Repeat([]byte{spoil}, at), b, bytes.Repeat([]byte{spoil}, 16))
	v := mustParse(t, buf[at:at+len(b)])
	start, fault := v.Translate(buf[before:at+len(b)], MaxGrowth, &to)
	if spoiled := bytes.Repeat([]byte{spoil}, 16); !bytes.Equal(buf[:before], spoiled) || !bytes.Equal(buf[at+len(b):], spoiled) {
		t.Fatal("wrote outside of the packet and the room before it")
	}
	if fault != drop.None {
		if !bytes.Equal(buf[at:at+len(b)], b) {
			t.Fatalf("%v, but the packet changed", fault)
		}
		return v, fault
	}
	if len(v.B) > 0 && &v.B[0] != &buf[before+start] {
		t.Fatal("the view is not of the packet at start")
	}
	return v, fault
}

// mustTranslate is translated for packets that have a counterpart, which it
// checks.
func mustTranslate(t *testing.T, b []byte, to Translation) *View {
	t.Helper()
	v, fault := translated(t, b, to)
	if fault != drop.None {
		t.Fatalf("refused: %v", fault)
	}
	again := mustParse(t, v.B)
	if again.Kind == KindICMPOther {
		again.Kind = KindICMPError // of a type that Parse has no use for
	}
	if again.Src != v.Src || again.Dst != v.Dst || again.Protocol != v.Protocol || again.Kind != v.Kind ||
		again.Transport != v.Transport || again.SrcPort != v.SrcPort || again.DstPort != v.DstPort {
		t.Fatalf("the view is %+v, parsing the packet yields %+v", v, again)
	}
	if v.Src != to.Src || v.Dst != to.Dst {
		t.Fatalf("from %v to %v", v.Src, v.Dst)
	}
	return v
}

func TestTranslateMakesThePacketOfTheOtherFamily(t *testing.T) {
	payload := []byte("some payload of odd length.")
	tests := []struct {
		name   string
		v4, v6 []byte
	}{
		{"UDP", packettest.UDP(from4, to4, payload), packettest.UDP(from6, to6, payload)},
		{"UDP without payload", packettest.UDP(from4, to4, nil), packettest.UDP(from6, to6, nil)},
		{"TCP", packettest.TCP(from4, to4, 0x18, payload), packettest.TCP(from6, to6, 0x18, payload)},
		{"an echo request", packettest.Ping(client4, host4, 77, payload), packettest.Ping(client6, host6, 77, payload)},
		{"an echo reply", packettest.Pong(client4, host4, 77, payload), packettest.Pong(client6, host6, 77, payload)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := mustTranslate(t, tt.v4, outTo6)
			if !equalButZero(v.B, tt.v6) {
				t.Errorf("to IPv6:\n% x, want\n% x", v.B, tt.v6)
			}
			verify(t, "to IPv6", v.B, v.Protocol, v.Transport)

			v = mustTranslate(t, tt.v6, outTo4)
			want := slices.Clone(tt.v4)
			binary.BigEndian.PutUint16(want[4:], outTo4.ID)
			fixHeader(want)
			if !equalButZero(v.B, want) {
				t.Errorf("to IPv4:\n% x, want\n% x", v.B, want)
			}
			verify(t, "to IPv4", v.B, v.Protocol, v.Transport)
		})
	}
}

// fixHeader makes the checksum of an IPv4 header right.
func fixHeader(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], packettest.Checksum(p[:int(p[0]&15)*4]))
}

func TestTranslateKeepsTrafficClassAndHopLimit(t *testing.T) {
	p := packettest.UDP(from4, to4, nil)
	p[1], p[8] = 0xb9, 3
	fixHeader(p)
	v := mustTranslate(t, p, outTo6)
	if got := binary.BigEndian.Uint32(v.B); got != 0x6b90_0000 || v.B[7] != 3 {
		t.Errorf("IPv6 header begins with %08x, hop limit %d", got, v.B[7])
	}

	q := packettest.UDP(from6, to6, nil)
	binary.BigEndian.PutUint32(q, 0x6b9a_bcde) // with a flow label
	q[7] = 3
	if v := mustTranslate(t, q, outTo4); v.B[1] != 0xb9 || v.B[8] != 3 {
		t.Errorf("type of service %02x, TTL %d", v.B[1], v.B[8])
	}
}

func TestTranslateSetsIdentificationAndDontFragment(t *testing.T) {
	udp := func(size int) []byte { return packettest.UDP(from6, to6, make([]byte, size-ipv6Header-udpHeader)) }
	fragmented := func(p []byte) []byte {
		return packettest.Extend6(p, 44, []byte{p[6], 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd})
	}
	tests := []struct {
		name   string
		packet []byte
		id     uint16
		flags  uint16
	}{
		{"as large as may be fragmented", udp(1280), 0x1234, 0},
		{"small", udp(100), 0x1234, 0},
		{"with a fragment header", fragmented(udp(100)), 0xccdd, 0},
		{"large with a fragment header", fragmented(udp(1272)), 0xccdd, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := mustTranslate(t, tt.packet, outTo4)
			if id, flags := binary.BigEndian.Uint16(v.B[4:]), binary.BigEndian.Uint16(v.B[6:]); id != tt.id || flags != tt.flags {
				t.Errorf("identification %04x, flags %04x, want %04x, %04x", id, flags, tt.id, tt.flags)
			}
		})
	}
	// Only a quoted packet can be larger than that.
	quoted := udp(100)
	binary.BigEndian.PutUint16(quoted[4:], 1300-ipv6Header)
	v := mustTranslate(t, packettest.ICMP(host6, client6, packetTooBig6, 0, 1280, quoted), inTo4)
	if flags := binary.BigEndian.Uint16(v.B[28+6:]); flags != 0x4000 {
		t.Errorf("a quoted packet of 1280 bytes has flags %04x", flags)
	}
}

func TestTranslateLeavesOutOptionsAndExtensionHeaders(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("x")), packettest.UDP(from6, to6, []byte("x"))
	extend := func(first byte, header ...byte) []byte { return packettest.Extend6(udp6, first, header) }
	after := slices.Clone(udp4)
	binary.BigEndian.PutUint16(after[4:], outTo4.ID)
	fixHeader(after)
	pass := map[string][]byte{
		"no operation, end and what is behind": packettest.Options4(udp4, []byte{1, 0, 131, 7}),
		"a router alert":                       packettest.Options4(udp4, []byte{148, 4, 0, 0}),
		"a source route that is at its end":    packettest.Options4(udp4, []byte{131, 7, 8, 1, 2, 3, 4, 0}),
		"as many as there can be":              packettest.Options4(udp4, make([]byte, 40)),
		"hop-by-hop options":                   extend(0, 17, 0, 1, 4, 0, 0, 0, 0),
		"long destination options":             extend(60, append([]byte{17, 2, 1, 20}, make([]byte, 20)...)...),
		"a routing header without segments":    extend(43, 17, 0, 4, 0, 0, 0, 0, 0),
		"several extension headers":            extend(0, 60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0),
	}
	for name, p := range pass {
		t.Run(name, func(t *testing.T) {
			to, want := outTo6, udp6
			if p[0]>>4 == 6 {
				to, want = outTo4, after
			}
			if v := mustTranslate(t, p, to); !equalButZero(v.B, want) {
				t.Errorf("\n% x, want\n% x", v.B, want)
			}
		})
	}
}

func TestTranslateCompletesUDPChecksums(t *testing.T) {
	payload := []byte("odd")
	p := edit(packettest.UDP(from4, to4, payload), 26, 0, 0)
	v := mustTranslate(t, p, outTo6)
	if want := packettest.UDP(from6, to6, payload); !equalButZero(v.B, want) {
		t.Errorf("\n% x, want\n% x", v.B, want)
	}
	// One whose checksum computes to zero.
	for i := range 1 << 16 {
		p := packettest.UDP(from6, to6, []byte{byte(i >> 8), byte(i)})
		if p[46]&p[47] != 0xff {
			continue
		}
		zero := edit(packettest.UDP(from4, to4, []byte{byte(i >> 8), byte(i)}), 26, 0, 0)
		if v := mustTranslate(t, zero, outTo6); v.B[46]&v.B[47] != 0xff {
			t.Errorf("checksum %x", v.B[46:48])
		}
		return
	}
	t.Fatal("no payload with that checksum")
}

func TestTranslateLeavesTheChecksumOfUDPOut(t *testing.T) {
	v := mustTranslate(t, edit(packettest.UDP(from6, to6, []byte("x")), 46, 0, 0), outTo4)
	if v.B[26]|v.B[27] != 0 {
		t.Errorf("checksum %x", v.B[26:28])
	}
}

func TestTranslateKeepsWrongChecksumsWrong(t *testing.T) {
	udp4 := packettest.UDP(from4, to4, []byte("abc"))
	for name, p := range map[string][]byte{
		"UDP":   edit(udp4, 29, 'x'),
		"TCP":   edit(packettest.TCP(from6, to6, 2, []byte("abc")), 61, 'x'),
		"ping":  edit(packettest.Ping(client4, host4, 1, []byte("abc")), 29, 'x'),
		"error": edit(packettest.Unreachable(host4, client4, udp4), 58, 'x'),
	} {
		to := outTo6
		if p[0]>>4 == 6 {
			to = outTo4
		}
		if v := mustTranslate(t, p, to); packettest.Verify(v.B, byte(v.Protocol), v.Transport) == nil {
			t.Errorf("%s: the checksum became right", name)
		}
	}
}

func TestTranslateRefuses(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("x")), packettest.UDP(from6, to6, []byte("x"))
	extend := func(first byte, header ...byte) []byte { return packettest.Extend6(udp6, first, header) }
	large4 := packettest.UDP(from4, to4, make([]byte, MaxSize-28))
	tests := []struct {
		name   string
		packet []byte
		to     Translation
		want   drop.Reason
	}{
		{"addresses of the same family", udp4, outTo4, drop.NATUnsupported},
		{"addresses of two families", udp4, Translation{Src: client6, Dst: host4, Limit: MaxSize}, drop.NATUnsupported},
		{"no addresses", udp4, Translation{Limit: MaxSize}, drop.NATUnsupported},
		{"an opaque protocol", packettest.IP(client4, host4, 47, make([]byte, 8)), outTo6, drop.NATUnsupported},
		{"a wrong IPv4 header checksum", edit(udp4, 8, 63), outTo6, drop.Malformed},
		{"an option without length", packettest.Options4(udp4, []byte{1, 1, 1, 7}), outTo6, drop.Malformed},
		{"an option with too small a length", packettest.Options4(udp4, []byte{7, 1, 0, 0}), outTo6, drop.Malformed},
		{"an option that is longer than the header", packettest.Options4(udp4, []byte{7, 5, 0, 0}), outTo6, drop.Malformed},
		{"a loose source route", packettest.Options4(udp4, []byte{131, 7, 4, 1, 2, 3, 4, 0}), outTo6, drop.NATUnsupported},
		{"a strict source route", packettest.Options4(udp4, []byte{137, 7, 4, 1, 2, 3, 4, 0}), outTo6, drop.NATUnsupported},
		{"a source route with its last address ahead", packettest.Options4(udp4, []byte{131, 7, 7, 1, 2, 3, 4, 0}), outTo6, drop.NATUnsupported},
		{"a source route without pointer", packettest.Options4(udp4, []byte{131, 2, 0, 0}), outTo6, drop.NATUnsupported},
		{"segments left", extend(43, 17, 0, 4, 1, 0, 0, 0, 0), outTo4, drop.NATUnsupported},
		{"a mobility header", extend(135, 17, 0, 0, 0, 0, 0, 0, 0), outTo4, drop.NATUnsupported},
		{"an experimental header", extend(253, 17, 0, 0, 0, 0, 0, 0, 0), outTo4, drop.NATUnsupported},
		{"more than the limit", large4, inTo6, drop.Oversize},
		{"more than a small limit", udp6, Translation{Src: client4, Dst: host4, Limit: len(udp4) - 1}, drop.Oversize},
		{"an error that does not fit", packettest.Unreachable(host4, client4, udp4), Translation{Src: host6, Dst: client6, Limit: 95}, drop.Oversize},
		{"an error about nothing", packettest.Unreachable(host4, client4, nil), inTo6, drop.NATUnsupported},
		{"an error about an error", packettest.Unreachable(host4, client4, packettest.Unreachable(client4, host4, udp4)), inTo6, drop.NATUnsupported},
		{"an error about a wrong length", packettest.Unreachable(host4, client4, edit(udp4, 2, 0, 19)), inTo6, drop.Malformed},
		{"an error about a length that IPv4 does not have", packettest.Unreachable(host6, client6, edit(udp6, 4, 0xff, 0xff)), inTo4, drop.Malformed},
		{"an error about a packet with segments left", packettest.Unreachable(host6, client6, extend(43, 17, 0, 4, 1, 0, 0, 0, 0)), inTo4, drop.NATUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := translated(t, tt.packet, tt.to); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func TestTranslateNeedsRoom(t *testing.T) {
	udp4 := packettest.UDP(from4, to4, []byte("x"))
	for name, tt := range map[string]struct {
		packet []byte
		grows  int
	}{
		"a packet":           {udp4, 20},
		"one with options":   {packettest.Options4(udp4, make([]byte, 12)), 8},
		"an error":           {packettest.Unreachable(host4, client4, udp4), 40},
		"one about options":  {packettest.Unreachable(host4, client4, packettest.Options4(udp4, make([]byte, 12))), 28},
		"one that is shrunk": {packettest.Options4(udp4, make([]byte, 40)), -20},
	} {
		for _, room := range []int{max(tt.grows, 0) - 1, max(tt.grows, 0)} {
			if room < 0 {
				continue
			}
			buf := append(make([]byte, room), tt.packet...)
			v := mustParse(t, buf[room:])
			start, fault := v.Translate(buf, room, &inTo6)
			if fits := room >= tt.grows; fits != (fault == drop.None) || fits && start != room-tt.grows {
				t.Errorf("%s with %d bytes before it: begins at %d, %v", name, room, start, fault)
			}
		}
	}
}

func TestTranslateAllocatesNothing(t *testing.T) {
	for name, p := range translatable() {
		buf := make([]byte, MaxGrowth+len(p))
		var v View
		to := &inTo6
		if p[0]>>4 == 6 {
			to = &inTo4
		}
		if n := testing.AllocsPerRun(100, func() {
			copy(buf[MaxGrowth:], p)
			if v.Parse(buf[MaxGrowth:]) != drop.None {
				t.Fatal("refused")
			}
			if _, fault := v.Translate(buf, MaxGrowth, to); fault != drop.None {
				t.Fatal(name, fault)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// translatable are packets that have a counterpart.
func translatable() map[string][]byte {
	payload := make([]byte, 1200)
	udp4, udp6 := packettest.UDP(from4, to4, payload), packettest.UDP(from6, to6, payload)
	return map[string][]byte{
		"udp4": udp4, "udp6": udp6,
		"tcp4": packettest.TCP(from4, to4, 16, payload), "tcp6": packettest.TCP(from6, to6, 16, payload),
		"ping4": packettest.Ping(client4, host4, 1, payload), "ping6": packettest.Ping(client6, host6, 1, payload),
		"error4": packettest.Unreachable(host4, client4, udp4), "error6": packettest.Unreachable(host6, client6, udp6[:1200]),
	}
}

func BenchmarkTranslate(b *testing.B) {
	for name, p := range translatable() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, MaxGrowth+len(p))
			to := &inTo6
			if p[0]>>4 == 6 {
				to = &inTo4
			}
			copy(buf[MaxGrowth:], p)
			var parsed View
			if parsed.Parse(buf[MaxGrowth:]) != drop.None {
				b.Fatal("refused")
			}
			head := slices.Clone(p[:min(len(p), 100)])
			for b.Loop() {
				copy(buf[MaxGrowth:], head) // what translating changes
				v := parsed
				if _, fault := v.Translate(buf, MaxGrowth, to); fault != drop.None {
					b.Fatal(fault)
				}
			}
		})
	}
}

func TestFragmentationNeeded(t *testing.T) {
	p := packettest.UDP(from4, to4, make([]byte, 1252))
	v := mustParse(t, p)
	if got := AppendFragmentationNeeded(nil, v, 1260); got != nil {
		t.Errorf("answered a packet that may be fragmented: % x", got)
	}
	p[6] = 0x40
	fixHeader(p)
	got := AppendFragmentationNeeded([]byte("before"), v, 1260)[len("before"):]
	if want := packettest.ICMP(host4, client4, 3, 4, 1260, p[:28]); !slices.Equal(got[20:], want[20:]) {
		t.Errorf("% x, want % x", got[20:], want[20:])
	}
	a := mustParse(t, got)
	verify(t, "answer", got, a.Protocol, a.Transport)
	if a.Src != host4 || a.Dst != client4 || a.Kind != KindICMPError {
		t.Errorf("%v from %v to %v", a.Kind, a.Src, a.Dst)
	}
	for name, p := range map[string][]byte{
		"an IPv6 packet":        packettest.UDP(from6, to6, nil),
		"an ICMP error":         edit(packettest.Unreachable(client4, host4, p[:28]), 6, 0x40),
		"an unspecified source": edit(packettest.UDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 1), to4, nil), 6, 0x40),
		"a multicast":           edit(packettest.UDP(from4, netip.MustParseAddrPort("224.0.0.1:1"), nil), 6, 0x40),
	} {
		if got := AppendFragmentationNeeded(nil, mustParse(t, p), 1260); got != nil {
			t.Errorf("answered %s", name)
		}
	}
}
