package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet/packettest"
)

// errorTo is what becomes of an ICMP error: type, code and the rest of its header.
type errorTo struct {
	typ, code byte
	rest      uint32
}

// The tables of RFC 7915 §4.2 and §5.2. Whatever they do not name is left out.
var (
	errorsTo6 = map[[2]byte]errorTo{
		{3, 0}: {1, 0, 0}, {3, 1}: {1, 0, 0}, // network, host unreachable
		{3, 2}: {4, 1, 6}, // protocol unreachable: the next header is not known
		{3, 3}: {1, 4, 0}, // port unreachable
		{3, 4}: {2, 0, 1280},
		{3, 5}: {1, 0, 0}, {3, 6}: {1, 0, 0}, {3, 7}: {1, 0, 0}, {3, 8}: {1, 0, 0},
		{3, 9}: {1, 1, 0}, {3, 10}: {1, 1, 0}, // prohibited
		{3, 11}: {1, 0, 0}, {3, 12}: {1, 0, 0},
		{3, 13}: {1, 1, 0}, {3, 15}: {1, 1, 0},
	}
	errorsTo4 = map[[2]byte]errorTo{
		{1, 0}: {3, 1, 0}, {1, 2}: {3, 1, 0}, {1, 3}: {3, 1, 0},
		{1, 1}: {3, 10, 0}, // prohibited
		{1, 4}: {3, 3, 0},
		{4, 1}: {3, 2, 0}, // next header not known
	}
)

func TestEveryICMPErrorHasTheCounterpartOfTheRFC(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("payload")), packettest.UDP(from6, to6, []byte("payload"))
	check := func(p []byte, to Translation, want errorTo, has bool) {
		t.Helper()
		v, fault := translated(t, p, to)
		if !has {
			if fault != drop.NATUnsupported {
				t.Errorf("%d bytes, % x: %v", len(p), p[:60], fault)
			}
			return
		}
		if fault != drop.None {
			t.Errorf("% x: %v", p[:60], fault)
			return
		}
		m := v.B[v.Transport:]
		if got := (errorTo{m[0], m[1], binary.BigEndian.Uint32(m[4:])}); got != want {
			t.Errorf("% x: %+v, want %+v", p[:60], got, want)
		}
		verify(t, "error", v.B, v.Protocol, v.Transport)
	}
	for typ := range 256 {
		for code := range 256 {
			key := [2]byte{byte(typ), byte(code)}
			p := packettest.ICMP(host4, client4, key[0], key[1], 0, udp4)
			if v := mustParse(t, p); v.Kind == KindEcho {
				continue
			}
			want, has := errorsTo6[key]
			switch {
			case typ == 11: // the code stays
				want, has = errorTo{3, key[1], 0}, true
			case typ == 12 && (code == 0 || code == 2): // points to the version
				want, has = errorTo{4, 0, 0}, true
			}
			check(p, inTo6, want, has)
		}
	}
	for typ := range 256 {
		for code := range 256 {
			key := [2]byte{byte(typ), byte(code)}
			p := packettest.ICMP(host6, client6, key[0], key[1], 0, udp6)
			if v := mustParse(t, p); v.Kind == KindEcho {
				continue
			}
			want, has := errorsTo4[key]
			switch {
			case typ == 2: // whatever its code (RFC 4443 §3.2)
				want, has = errorTo{3, 4, 68}, true
			case typ == 3:
				want, has = errorTo{11, key[1], 0}, true
			case typ == 4 && code == 0:
				want, has = errorTo{12, 0, 0}, true
			}
			check(p, inTo4, want, has)
		}
	}
}

func TestMTUsAreThoseOfTheOtherFamily(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("payload")), packettest.UDP(from6, to6, []byte("payload"))
	for mtu, want := range map[uint32]uint32{
		1280: 1260, 1300: 1280, 1299: 1279, 1500: 1280, 9000: 1280, 1<<32 - 1: 1280,
		1000: 980, 88: 68, 87: 68, 20: 68, 19: 68, 0: 68,
	} {
		v := mustTranslate(t, packettest.ICMP(host6, client6, 2, 0, mtu, udp6), inTo4)
		if got := binary.BigEndian.Uint32(v.B[v.Transport+4:]); got != want {
			t.Errorf("packet too big, MTU %d: became %d, want %d", mtu, got, want)
		}
	}
	// IPv6 knows no smaller one, and the tunnel no larger one.
	for _, mtu := range []uint32{0, 68, 576, 1259, 1260, 1261, 1400, 1500, 65535} {
		v := mustTranslate(t, packettest.ICMP(host4, client4, 3, 4, mtu, udp4), inTo6)
		if got := binary.BigEndian.Uint32(v.B[v.Transport+4:]); got != 1280 {
			t.Errorf("fragmentation needed, MTU %d: became %d", mtu, got)
		}
	}
}

func TestPointersAreToTheSameField(t *testing.T) {
	fields6 := map[uint32]uint32{0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6, 12: 8, 13: 8, 14: 8, 15: 8, 16: 24, 17: 24, 18: 24, 19: 24}
	fields4 := map[uint32]uint32{0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8}
	for at := range uint32(16) {
		fields4[8+at], fields4[24+at] = 12, 16
	}
	udp4, udp6 := packettest.UDP(from4, to4, []byte("payload")), packettest.UDP(from6, to6, []byte("payload"))
	for at := range uint32(256) {
		v, fault := translated(t, packettest.ICMP(host4, client4, 12, 0, at<<24, udp4), inTo6)
		want, has := fields6[at]
		if has != (fault == drop.None) || has && binary.BigEndian.Uint32(v.B[v.Transport+4:]) != want {
			t.Errorf("to byte %d of an IPv4 header: %v, %x, want %d", at, fault, v.B[v.Transport+4:][:4], want)
		}
		v, fault = translated(t, packettest.ICMP(host6, client6, 4, 0, at, udp6), inTo4)
		want, has = fields4[at]
		if has != (fault == drop.None) || has && binary.BigEndian.Uint32(v.B[v.Transport+4:]) != want<<24 {
			t.Errorf("to byte %d of an IPv6 header: %v, %x, want %d", at, fault, v.B[v.Transport+4:][:4], want)
		}
	}
	if _, fault := translated(t, packettest.ICMP(host6, client6, 4, 0, 1<<24, udp6), inTo4); fault != drop.NATUnsupported {
		t.Errorf("to a byte far behind: %v", fault)
	}
}

func TestQuotedPacketsAreTranslated(t *testing.T) {
	payload := []byte("quoted payload")
	tests := []struct {
		name         string
		sent, became []byte // by the client, and as the network saw it
	}{
		{"UDP", packettest.UDP(from4, to4, payload), packettest.UDP(from6, to6, payload)},
		{"TCP", packettest.TCP(from4, to4, 2, payload), packettest.TCP(from6, to6, 2, payload)},
		{"a ping", packettest.Ping(client4, host4, 9, payload), packettest.Ping(client6, host6, 9, payload)},
	}
	for _, tt := range tests {
		// From all of the packet down to what an error has to quote.
		for cut := 0; cut <= len(payload)+12; cut++ {
			quote6, quote4 := tt.became[:len(tt.became)-cut], tt.sent[:len(tt.sent)-cut]
			if len(quote4) < 28 {
				break
			}
			if tt.name == "TCP" && len(quote4) == 20+17 {
				continue // half a checksum is of no use
			}
			t.Run(fmt.Sprintf("%s without %d bytes", tt.name, cut), func(t *testing.T) {
				v := mustTranslate(t, packettest.ICMP(host6, client6, 3, 0, 0, quote6), inTo4)
				checkQuote(t, v, quote4)
				v = mustTranslate(t, packettest.ICMP(host4, client4, 11, 0, 0, quote4), inTo6)
				checkQuote(t, v, quote6)
			})
		}
	}
}

// checkQuote checks that v quotes want, but for the identification.
func checkQuote(t *testing.T, v *View, want []byte) {
	t.Helper()
	verify(t, "error", v.B, v.Protocol, v.Transport)
	if got := v.B[v.Transport+icmpHeader:]; !equalButZero(got, want) {
		t.Errorf("quotes\n% x, want\n% x", got, want)
	}
}

func TestAQuoteWithoutChecksumStaysWithout(t *testing.T) {
	quote := edit(packettest.UDP(from4, to4, []byte("x")), 26, 0, 0)
	v := mustTranslate(t, packettest.ICMP(host4, client4, 11, 0, 0, quote), inTo6)
	if q, _ := v.Quote(); v.B[q.Transport+6]|v.B[q.Transport+7] != 0 {
		t.Errorf("quoted checksum %x", v.B[q.Transport+6:][:2])
	}
}

func TestQuotedHeadersLoseWhatIsLeftOut(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("x")), packettest.UDP(from6, to6, []byte("x"))
	options := packettest.Options4(udp4, []byte{1, 1, 1, 1})
	v := mustTranslate(t, packettest.ICMP(host4, client4, 11, 0, 0, options), inTo6)
	checkQuote(t, v, udp6)

	first := packettest.Extend6(udp6, 44, []byte{17, 0, 0, 1, 0, 0, 0xaa, 0xbb}) // the first of several fragments
	v = mustTranslate(t, packettest.ICMP(host6, client6, 3, 1, 0, first), inTo4)
	want := slices.Clone(udp4)
	binary.BigEndian.PutUint16(want[4:], 0xaabb)
	fixHeader(want)
	checkQuote(t, v, want)
}

func TestErrorsAreCutToTheLimit(t *testing.T) {
	quote := packettest.UDP(from4, to4, bytes.Repeat([]byte{7}, 1200))
	v := mustTranslate(t, packettest.ICMP(host4, client4, 11, 0, 0, quote), inTo6)
	if len(v.B) != MaxSize {
		t.Errorf("%d bytes", len(v.B))
	}
	checkQuote(t, v, packettest.UDP(from6, to6, bytes.Repeat([]byte{7}, 1200))[:MaxSize-48])
}

func TestErrorsLoseTheirExtensions(t *testing.T) {
	udp4, udp6 := packettest.UDP(from4, to4, make([]byte, 100)), packettest.UDP(from6, to6, make([]byte, 80))
	extension := []byte{0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4}
	quote4, quote6 := udp4[:128], udp6[:128]
	with4 := packettest.ICMP(host4, client4, 11, 0, 128/4<<16, slices.Concat(quote4, extension))
	v := mustTranslate(t, with4, inTo6)
	checkQuote(t, v, packettest.UDP(from6, to6, make([]byte, 100))[:148])
	if rest := binary.BigEndian.Uint32(v.B[v.Transport+4:]); rest != 0 {
		t.Errorf("the header ends with %08x", rest)
	}
	v = mustTranslate(t, packettest.ICMP(host6, client6, 3, 0, 128/8<<24, slices.Concat(quote6, extension)), inTo4)
	checkQuote(t, v, packettest.UDP(from4, to4, make([]byte, 80)))

	// A length behind the end says nothing.
	v = mustTranslate(t, packettest.ICMP(host4, client4, 11, 0, 255<<16, quote4), inTo6)
	checkQuote(t, v, packettest.UDP(from6, to6, make([]byte, 100))[:148])
	// Nor is there one in a message that tells an MTU.
	v = mustTranslate(t, packettest.ICMP(host6, client6, 2, 0, 128/8<<24, slices.Concat(quote6, extension)), inTo4)
	if got, want := len(v.B), 20+8+128-20+len(extension); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
}
