package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/packet/packettest"
)

func FuzzParse(f *testing.F) { fuzzParse(f) }

func TestHammerParse(t *testing.T) { hammer.Test(t, "FuzzParse", fuzzParse, repair) }

func repair(args []any) { packettest.Repair(args[0].([]byte)) }

func fuzzParse(f hammer.F) {
	udp4, udp6 := packettest.UDP(from4, to4, []byte("hello")), packettest.UDP(from6, to6, []byte("hello"))
	for _, p := range [][]byte{
		nil, {0x45}, udp4, udp6,
		packettest.TCP(from4, to4, 2, []byte("x")), packettest.TCP(from6, to6, 2, []byte("x")),
		packettest.Ping(client4, host4, 1, nil), packettest.Ping(client6, host6, 1, nil),
		packettest.Unreachable(host4, client4, udp4), packettest.Unreachable(host6, client6, udp6),
		packettest.Options4(udp4, []byte{1, 1, 1, 1}),
		packettest.Extend6(udp6, 0, []byte{44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 1}),
		packettest.UDP(from6, to6, make([]byte, MaxSize-48)),
		packettest.IP(client4, host4, 47, nil),
		AppendGoodbye(nil),
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		var v View
		switch r := v.Parse(b); r {
		case drop.None:
			checkView(t, &v, b)
			checkAnswer(t, &v)
			checkRewrite(t, &v)
		case drop.Malformed, drop.Fragment, drop.Oversize:
		default:
			t.Fatalf("reason %v", r)
		}
		if !bytes.Equal(b, before) {
			t.Fatal("the packet changed")
		}
	})
}

// checkView checks the lengths that the rest of the gateway relies on.
func checkView(t *testing.T, v *View, b []byte) {
	if len(v.B) != len(b) || len(b) > MaxSize || v.Transport > len(b) {
		t.Fatalf("%d bytes seen of %d, transport at %d", len(v.B), len(b), v.Transport)
	}
	is6 := b[0]>>4 == 6
	if is6 != v.Is6() || v.Src.Is6() != is6 || v.Dst.Is6() != is6 {
		t.Fatal("families differ")
	}
	if !is6 && (v.Transport != int(b[0]&15)*4 || v.Transport < 20) || is6 && v.Transport < 40 {
		t.Fatalf("transport at %d", v.Transport)
	}
	rest := len(b) - v.Transport
	least, known := 0, true
	isICMP := v.Protocol == ICMP || v.Protocol == ICMPv6
	switch v.Kind {
	case KindTCP:
		least, known = 20, v.Protocol == TCP
	case KindUDP:
		least, known = 8, v.Protocol == UDP
	case KindEcho, KindICMPOther:
		least, known = 8, isICMP
	case KindICMPError:
		least, known = 8+20+4, isICMP
	case KindOther:
		known = v.Protocol != TCP && v.Protocol != UDP && !isICMP
	}
	if rest < least || !known {
		t.Fatalf("%v of protocol %v with %d bytes", v.Kind, v.Protocol, rest)
	}
	if is6 && v.Protocol == ICMP || !is6 && v.Protocol == ICMPv6 {
		t.Fatal("ICMP of the other family")
	}
	if v.Kind == KindTCP && (b[v.Transport+12]>>4 < 5 || int(b[v.Transport+12]>>4)*4 > rest) {
		t.Fatal("TCP header")
	}
	if v.Kind == KindUDP && int(binary.BigEndian.Uint16(b[v.Transport+4:])) != rest {
		t.Fatal("UDP length")
	}
	if q, ok := v.Quote(); ok != (v.Kind == KindICMPError) || ok && (q.Transport+4 > len(b) || q.Src.Is6() != is6) {
		t.Fatalf("quote %+v, %v", q, ok)
	}
	if IsControl(b) != (is6 && b[6] == 255 && v.Src.IsUnspecified() && v.Dst.IsUnspecified() && rest >= 8) {
		t.Fatal("control packet")
	}
}

func checkAnswer(t *testing.T, v *View) {
	for _, u := range []Unreachable{Prohibited, NoRoute} {
		answer := AppendUnreachable(nil, v, u)
		if v.Kind == KindICMPError && answer != nil {
			t.Fatal("an ICMP error was answered")
		}
		if answer == nil {
			continue
		}
		var a View
		if r := a.Parse(answer); r != drop.None {
			t.Fatalf("answer: %v", r)
		}
		if a.Src != v.Dst || a.Dst != v.Src {
			t.Fatalf("answer from %v to %v", a.Src, a.Dst)
		}
		if !a.ValidChecksums() {
			t.Fatal("answer: checksum")
		}
		verify(t, "answer", answer, a.Protocol, a.Transport)
		if again := AppendUnreachable(nil, &a, u); again != nil {
			t.Fatal("an answer was answered")
		}
	}
}

// checkRewrite rewrites a copy: checksums that were right stay right.
func checkRewrite(t *testing.T, v *View) {
	right := packettest.Verify(v.B, byte(v.Protocol), v.Transport) == nil
	w := *v
	w.B = slices.Clone(v.B)
	src, dst := host4, client4
	if v.Is6() {
		src, dst = host6, client6
	}
	if !w.SetSource(src) || !w.SetDestination(dst) {
		t.Fatal("an address was refused")
	}
	w.SetSourcePort(1)
	w.SetDestinationPort(2)
	w.LimitMSS(1220)
	var again View
	if r := again.Parse(w.B); r != drop.None || again.Kind != w.Kind || again.SrcPort != w.SrcPort || again.DstPort != w.DstPort {
		t.Fatalf("after rewriting: %v, %v", r, again.Kind)
	}
	if right {
		verify(t, "after rewriting", w.B, w.Protocol, w.Transport)
	}
}

func FuzzControl(f *testing.F) { fuzzControl(f) }

func TestHammerControl(t *testing.T) { hammer.Test(t, "FuzzControl", fuzzControl) }

func fuzzControl(f hammer.F) {
	p, _ := AppendDomainStatus(nil, DomainStatusEvent{Resource: resourceID, Domain: "example.com", Status: Active})
	f.Add(p)
	f.Add(AppendGoodbye(nil))
	f.Add(AppendControl(nil, AssignedIPs, []byte(`{"resource":"`+resourceID+`","domain":"a.b","proxy_ips":["100.96.0.1","::1"]}`)))
	f.Add(AppendControl(nil, 9, []byte(`{}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		typ, body, ok := ParseControl(b)
		if ok != IsControl(b) || ok && len(body) != len(b)-48 {
			t.Fatalf("%v with %d bytes of body in %d", ok, len(body), len(b))
		}
		if !ok {
			body = b
		}
		if e, err := DecodeAssignedIPs(body); err == nil && typ == AssignedIPs {
			p, err := AppendAssignedIPs(nil, e)
			if err != nil {
				return // longer than the body was, because of escapes
			}
			_, body, _ := ParseControl(p)
			again, err := DecodeAssignedIPs(body)
			if err != nil || again.Resource != e.Resource || again.Domain != e.Domain || !slices.Equal(again.ProxyIPs, e.ProxyIPs) {
				t.Fatalf("%+v came back as %+v, %v", e, again, err)
			}
		}
		if e, err := DecodeDomainStatus(body); err == nil {
			p, err := AppendDomainStatus(nil, e)
			if err != nil {
				return
			}
			_, body, _ := ParseControl(p)
			if again, err := DecodeDomainStatus(body); err != nil || again != e {
				t.Fatalf("%+v came back as %+v, %v", e, again, err)
			}
		}
	})
}
