package packet

import (
	"bytes"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/packet/packettest"
)

// FuzzTranslate translates any packet to the other family and back again. On the
// way checksums that were right stay right; what comes back is what went, but
// for what translation leaves out.
func FuzzTranslate(f *testing.F) { fuzzTranslate(f) }

func TestHammerTranslate(t *testing.T) {
	hammer.Test(t, "FuzzTranslate", fuzzTranslate, func(args []any) { packettest.Repair(args[0].([]byte)) })
}

func fuzzTranslate(f hammer.F) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("hello")), packettest.UDP(from6, to6, []byte("hello"))
	tcp4, tcp6 := packettest.TCP(from4, to4, 2, nil), packettest.TCP(from6, to6, 2, nil)
	ping4, ping6 := packettest.Ping(client4, host4, 1, nil), packettest.Ping(client6, host6, 1, nil)
	for _, p := range [][]byte{
		udp4, udp6, tcp4, tcp6, ping4, ping6,
		edit(udp4, 26, 0, 0), edit(udp6, 46, 0, 0),
		packettest.Options4(udp4, []byte{131, 4, 8, 0}),
		packettest.Extend6(udp6, 0, []byte{44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 1}),
		packettest.Extend6(tcp6, 43, []byte{60, 0, 4, 0, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0}),
		packettest.UDP(from4, to4, make([]byte, MaxSize-28)), packettest.UDP(from6, to6, make([]byte, MaxSize-48)),
		packettest.ICMP(host4, client4, 3, 4, 1200, tcp4), packettest.ICMP(host6, client6, 2, 0, 1300, tcp6),
		packettest.ICMP(host4, client4, 11, 0, 32<<16, append(ping4, make([]byte, 120)...)),
		packettest.ICMP(host6, client6, 3, 0, 16<<24, append(ping6, make([]byte, 120)...)),
		packettest.ICMP(host4, client4, 12, 0, 9<<24, udp4), packettest.ICMP(host6, client6, 4, 0, 6, udp6),
		packettest.Unreachable(host4, client4, packettest.Options4(udp4, []byte{1, 1, 1, 1})),
		packettest.Unreachable(host6, client6, packettest.UDP(from6, to6, make([]byte, MaxSize-96))),
	} {
		f.Add(p, uint8(MaxGrowth), uint16(MaxSize+MaxGrowth))
	}
	f.Add(udp4, uint8(0), uint16(MaxSize))
	f.Add(udp4, uint8(20), uint16(len(udp6)))
	f.Fuzz(func(t *testing.T, b []byte, room uint8, limit uint16) {
		var v View
		if v.Parse(b) != drop.None {
			return
		}
		there := Translation{Src: host6, Dst: client6, ID: 0xabcd, Limit: int(limit)}
		back := Translation{Src: v.Src, Dst: v.Dst, ID: 0xabcd, Limit: MaxSize + MaxGrowth}
		if v.Is6() {
			there.Src, there.Dst = host4, client4
		}
		right := wholesome(&v)

		at := int(room)
		buf := slices.Concat(bytes.Repeat([]byte{spoil}, at), b, bytes.Repeat([]byte{spoil}, 8))
		w := v
		w.B = buf[at : at+len(b)]
		start, fault := w.Translate(buf[:at+len(b)], at, &there)
		if !bytes.Equal(buf[at+len(b):], bytes.Repeat([]byte{spoil}, 8)) {
			t.Fatal("wrote behind the packet")
		}
		if fault != drop.None {
			if !bytes.Equal(buf[at:at+len(b)], b) {
				t.Fatal("refused and changed")
			}
			return
		}
		if start < 0 || len(w.B) > int(limit) || len(w.B) > len(b)+MaxGrowth || &buf[start] != &w.B[0] {
			t.Fatalf("begins at %d with %d bytes of at most %d", start, len(w.B), limit)
		}
		if !bytes.Equal(buf[:min(start, at)], bytes.Repeat([]byte{spoil}, min(start, at))) {
			t.Fatal("wrote before the packet")
		}
		checkTranslated(t, &w, &there, right)

		// The way back has no more room than the way there used up.
		half := w
		if len(half.B) > MaxSize {
			return // Parse would refuse it
		}
		kind, types := w.Kind, [2]byte{w.B[w.Transport], w.B[w.Transport+1]}
		again := slices.Concat(make([]byte, MaxGrowth), half.B)
		half.B = again[MaxGrowth:]
		if _, fault = half.Translate(again, MaxGrowth, &back); fault != drop.None {
			t.Fatalf("there and not back: %v, %v of type %v", fault, kind, types)
		}
		checkTranslated(t, &half, &back, right)
		if kind == KindICMPError {
			return // several errors become one
		}
		if got, want := half.B[half.Transport:], v.B[v.Transport:]; !sameButChecksum(got, want, v.Kind) {
			t.Fatalf("went and came back\n% x, was\n% x", got, want)
		}
		if traffic(&half) != traffic(&v) || traffic(&half) != traffic(&w) {
			t.Fatal("traffic class or hop limit changed")
		}
	})
}

// wholesome reports whether all checksums are right that translation builds on.
func wholesome(v *View) bool {
	for _, f := range verifiers {
		if f(v.B, byte(v.Protocol), v.Transport) != nil {
			return false
		}
	}
	return true
}

func checkTranslated(t *testing.T, v *View, to *Translation, right bool) {
	t.Helper()
	if right {
		verify(t, "translated", v.B, v.Protocol, v.Transport)
	}
	if !v.Is6() && packettest.Checksum(v.B[:20]) != 0 {
		t.Fatal("IPv4 header checksum")
	}
	if len(v.B) > MaxSize {
		return
	}
	var again View
	if r := again.Parse(v.B); r != drop.None {
		t.Fatalf("translated to what is refused: %v, % x", r, v.B)
	}
	if again.Kind == KindICMPOther {
		again.Kind = KindICMPError
	}
	again.B = v.B
	if again.Src != to.Src || again.Dst != to.Dst || again.Kind != v.Kind || again.Protocol != v.Protocol ||
		again.Transport != v.Transport || again.SrcPort != v.SrcPort || again.DstPort != v.DstPort {
		t.Fatalf("the view is %+v, parsing yields %+v", v, &again)
	}
	if q, ok := v.Quote(); ok && (q.Src != to.Dst || q.Dst != to.Src) {
		t.Fatalf("quotes %v to %v", q.Src, q.Dst)
	}
}

// sameButChecksum compares transport headers and what follows. UDP without
// checksum gets one, and zero has two forms.
func sameButChecksum(a, b []byte, k Kind) bool {
	if k == KindUDP && b[6]|b[7] == 0 {
		a, b = edit(a, 6, 0, 0), edit(b, 6, 0, 0)
	}
	return equalButZero(a, b)
}

// traffic returns traffic class and hop limit.
func traffic(v *View) [2]byte {
	if v.Is6() {
		return [2]byte{v.B[0]<<4 | v.B[1]>>4, v.B[7]}
	}
	return [2]byte{v.B[1], v.B[8]}
}
