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

// FuzzCross sends arbitrary packets through a table whose sessions lead to the
// other family, in both directions. What is translated has right checksums if it
// had them before, and its answer arrives where the packet came from.
func FuzzCross(f *testing.F) { fuzzCross(f) }

func TestHammerCross(t *testing.T) {
	hammer.Test(t, "FuzzCross", fuzzCross, func(args []any) { packettest.Repair(args[0].([]byte)) })
}

func fuzzCross(f hammer.F) {
	for _, tt := range crossings {
		for _, kind := range kinds {
			f.Add(out(kind, 5000, tt.proxy, flagSYN), uint16(0))
			f.Add(out(kind, 5000, tt.proxy, flagSYN), uint16(5000))
			f.Add(in(kind, tt.real, 7, flagFIN), uint16(7))
			quoted := build(kind, clientOf(tt.real), 7, tt.real, service, 0)
			f.Add(packettest.Unreachable(tt.router, clientOf(tt.real), quoted), uint16(7))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, taken uint16) {
		var v packet.View
		if len(b) > packet.MaxSize || v.Parse(b) != drop.None {
			return
		}
		r := newRig(unhelped{t}, Config{NAT64: true})
		for i, tt := range crossings {
			r.assign([]string{"six.test", "four.test"}[i], []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
			for _, kind := range kinds {
				r.crossed(out(kind, taken, tt.proxy, ack))
			}
		}

		// As if the network had sent it.
		checkCrossing(t, b, func(v *packet.View) Result {
			got := r.ToClient(v, r.now)
			if got == OtherFamily {
				got = cross(v, r.CrossToClient, r.now)
			}
			return got
		})

		// As if the client had.
		b = slices.Clone(b)
		v.Parse(b)
		tt := crossings[0]
		if v.Is6() {
			tt = crossings[1]
		}
		v.SetSource(clientOf(tt.proxy))
		v.SetDestination(tt.proxy)
		sport, dport := v.SrcPort, v.DstPort
		there, got := checkCrossing(t, b, func(v *packet.View) Result {
			got := r.Open(v, r.now)
			if got == OtherFamily {
				got = cross(v, r.CrossToResource, r.now)
			}
			return got
		})
		if got != Translated {
			if got != Unsupported {
				t.Fatalf("open: %v", got)
			}
			return
		}
		if there.Src != clientOf(tt.real) || there.Dst != tt.real {
			t.Fatalf("sent from %v to %v", there.Src, there.Dst)
		}
		if len(there.B) > packet.MaxSize {
			return // the answer need not be as large
		}
		back, got := checkCrossing(t, answer(there.B), func(v *packet.View) Result { return cross(v, r.CrossToClient, r.now) })
		if got != Translated || back.Src != tt.proxy || back.Dst != clientOf(tt.proxy) || back.DstPort != sport || back.Kind != packet.KindEcho && back.SrcPort != dport {
			t.Fatalf("%v: the answer comes from %v port %d to %v port %d", got, back.Src, back.SrcPort, back.Dst, back.DstPort)
		}
	})
}

// checkCrossing translates a copy of b and checks what holds for every packet.
func checkCrossing(t *testing.T, b []byte, translate func(*packet.View) Result) (*packet.View, Result) {
	before := parse(unhelped{t}, slices.Clone(b))
	right := packettest.Verify(b, byte(before.Protocol), before.Transport) == nil
	v := parse(unhelped{t}, slices.Clone(b))
	got := translate(v)
	if got != Translated {
		if !bytes.Equal(before.B, v.B) {
			t.Fatalf("%v packet was changed", got)
		}
		return v, got
	}
	if err := packettest.Verify(v.B, byte(v.Protocol), v.Transport); right && err != nil {
		t.Fatal(err)
	}
	if len(v.B) <= packet.MaxSize {
		if after := parse(unhelped{t}, v.B); after.Src != v.Src || after.Dst != v.Dst || after.SrcPort != v.SrcPort || after.DstPort != v.DstPort {
			t.Fatalf("view says %+v, bytes say %+v", v, after)
		}
	}
	return v, got
}
