package nat

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// FuzzTranslate sends arbitrary packets through a table in both directions and,
// where they can be translated, takes them there and back again: the answer
// must arrive as if the client had reached the proxy address, an error must
// quote what the client sent.
func FuzzTranslate(f *testing.F) { fuzzTranslate(f) }

func TestHammerTranslate(t *testing.T) {
	hammer.Test(t, "FuzzTranslate", fuzzTranslate, func(args []any) { packettest.Repair(args[0].([]byte)) })
}

func fuzzTranslate(f hammer.F) {
	for _, proxy := range []netip.Addr{proxies4[0], proxies6[0]} {
		for _, kind := range kinds {
			b := out(kind, 5000, proxy, flagSYN)
			f.Add(b, uint16(0), uint16(60))
			f.Add(b, uint16(5000), uint16(48))
			f.Add(b, uint16(5000), uint16(47))
			f.Add(in(kind, addrOf(real4, real6, proxy), 7, flagFIN), uint16(7), uint16(1000))
			quoted := build(kind, clientOf(proxy), 7, addrOf(real4, real6, proxy), service, 0)
			f.Add(packettest.Unreachable(routerOf(proxy), clientOf(proxy), quoted), uint16(7), uint16(1000))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, taken, quote uint16) {
		var v packet.View
		if len(b) > packet.MaxSize || v.Parse(b) != drop.None {
			return
		}
		r := newRig(unhelped{t}, Config{})
		r.assign("example.com", slices.Concat(proxies4[:2], proxies6[:2]), []netip.Addr{real4, real6})
		// Another session holds an outside port of each kind and family.
		for _, kind := range kinds {
			r.sent(kind, taken, proxies4[1])
			r.sent(kind, taken, proxies6[1])
		}

		// As if the network had sent it.
		checkTranslation(t, b, func(v *packet.View) Result { return r.ToClient(v, r.now) })

		// As if the client had. The addresses are set so that more than a few
		// inputs get anywhere.
		b = slices.Clone(b)
		v.Parse(b)
		src, dst := client4, proxies4[0]
		if v.Is6() {
			src, dst = client6, proxies6[0]
		}
		v.SetSource(src)
		v.SetDestination(dst)
		sent := slices.Clone(b)
		after, got := checkTranslation(t, b, func(v *packet.View) Result { return r.Open(v, r.now) })
		if got != Translated {
			if got != Unsupported {
				t.Fatalf("open: %v", got)
			}
			return
		}
		if after.Dst != addrOf(real4, real6, dst) || after.Src != src {
			t.Fatalf("sent from %v to %v", after.Src, after.Dst)
		}
		checkError(t, r, sent, after.B, int(quote))
		back, got := checkTranslation(t, answer(after.B), func(v *packet.View) Result { return r.ToClient(v, r.now) })
		if got != Translated || !equalButZero(back.B, answer(sent)) {
			t.Fatalf("%v: got\n%x, want\n%x", got, back.B, answer(sent))
		}
	})
}

// unhelped is a test without Helper, which takes as long as most of the rest.
type unhelped struct{ *testing.T }

func (unhelped) Helper() {}

// checkTranslation translates a copy of b and checks what holds for every
// packet: its shape stays, right checksums stay right, and nothing changes
// unless the result says so.
func checkTranslation(t *testing.T, b []byte, translate func(*packet.View) Result) (*packet.View, Result) {
	b = slices.Clone(b)
	before := parse(unhelped{t}, slices.Clone(b))
	right := packettest.Verify(b, byte(before.Protocol), before.Transport) == nil
	v := parse(unhelped{t}, b)
	got := translate(v)
	after := parse(unhelped{t}, b)
	if after.Src != v.Src || after.Dst != v.Dst || after.SrcPort != v.SrcPort || after.DstPort != v.DstPort {
		t.Fatalf("view says %+v, bytes say %+v", v, after)
	}
	if after.Kind != before.Kind || after.Transport != before.Transport || len(after.B) != len(before.B) {
		t.Fatalf("shape was %+v, is %+v", before, after)
	}
	if got != Translated && !bytes.Equal(before.B, b) {
		t.Fatalf("%v packet was changed", got)
	}
	if err := packettest.Verify(b, byte(v.Protocol), v.Transport); right && err != nil {
		t.Fatal(err)
	}
	return v, got
}

// checkError has a router complain about the translated packet and checks that
// the client learns what it sent.
func checkError(t *testing.T, r *rig, sent, translated []byte, length int) {
	typ, room := byte(3), packet.MaxSize-28
	if sent[0]>>4 == 6 {
		typ, room = 1, packet.MaxSize-48
	}
	length = min(length, len(sent), room)
	b := errorAbout(translated, typ, 0, 0, length)
	var v packet.View
	if v.Parse(b) != drop.None || v.Kind != packet.KindICMPError {
		return // cut too short, or about an echo reply
	}
	got, result := checkTranslation(t, b, func(v *packet.View) Result { return r.ToClient(v, r.now) })
	quoted := got.B[len(got.B)-length:]
	if length < len(sent) {
		length &^= 1 // half a checksum stays as it is
	}
	if result != Translated || !equalButZero(quoted[:length], sent[:length]) {
		t.Fatalf("%v: quoted\n%x, want\n%x", result, quoted, sent[:length])
	}
}

// equalButZero compares packets word by word, except that a checksum of 0 comes
// back as its other form, 0xffff.
func equalButZero(got, want []byte) bool {
	if len(got) != len(want) {
		return false
	}
	for i := 0; i < len(got); i += 2 {
		end := min(i+2, len(got))
		same := bytes.Equal(got[i:end], want[i:end])
		if !same && (end-i < 2 || word(want, i) != 0 || word(got, i) != 0xffff) {
			return false
		}
	}
	return true
}

func addrOf(v4, v6, like netip.Addr) netip.Addr {
	if like.Is4() {
		return v4
	}
	return v6
}
