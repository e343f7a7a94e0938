package nat

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// crossing is a proxy address of each family and what the other family has.
var crossings = []struct {
	name                string
	proxy, real, router netip.Addr
}{
	{"IPv4 proxy of an IPv6 host", proxies4[0], real6, router6},
	{"IPv6 proxy of an IPv4 host", proxies6[0], real4, router4},
}

func TestWithoutNAT64TheOtherFamilyIsUnresolved(t *testing.T) {
	for _, tt := range crossings {
		r := newRig(t, Config{})
		r.assign("example.com", []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
		r.wantToResource(out(packet.KindUDP, 5000, tt.proxy, 0), Unresolved)
	}
}

func TestNAT64TakesTheOtherFamilyOnlyWhereThereIsNone(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	both := slices.Concat(proxies4[:2], proxies6[:2])
	if got := r.assign("example.com", both, []netip.Addr{real4, real6}); got.Resolved != 4 {
		t.Errorf("%+v", got)
	}
	for _, p := range both {
		if got := r.real(p); got.Is4() != p.Is4() {
			t.Errorf("%v stands for %v", p, got)
		}
	}
	hosts := addrs("2001:db8::1", "2001:db8::2", "2001:db8::3")
	if got := r.assign("example.com", both, slices.Concat(hosts, addrs("127.0.0.1"))); got.Resolved != 4 || got.Unresolved != 0 || got.Refused != 1 {
		t.Errorf("%+v", got)
	}
	// Each family counts for itself.
	for i, p := range []netip.Addr{proxies4[0], proxies4[1], proxies6[0], proxies6[1]} {
		if got := r.real(p); got != hosts[i%2] {
			t.Errorf("%v stands for %v", p, got)
		}
	}
	if got := r.assign("example.com", both, nil); got.Unresolved != 4 {
		t.Errorf("%+v", got)
	}
}

// crossed sends a packet of the client through the table, opening its session.
func (r *rig) crossed(b []byte) *packet.View {
	r.Helper()
	v := parse(r, slices.Clone(b))
	got := r.ToResource(v, r.now)
	if got == NeedSession {
		got = r.Open(v, r.now)
	}
	if got != OtherFamily {
		r.Fatalf("to resource: %v", got)
	}
	if !slices.Equal(v.B, b) {
		r.Fatal("changed before there was room")
	}
	if got := cross(v, r.CrossToResource, r.now); got != Translated {
		r.Fatalf("cross to resource: %v", got)
	}
	verify(r, v)
	return v
}

// crossedBack sends a packet from the network through the table.
func (r *rig) crossedBack(b []byte) *packet.View {
	r.Helper()
	v := parse(r, slices.Clone(b))
	if got := r.ToClient(v, r.now); got != OtherFamily {
		r.Fatalf("to client: %v", got)
	}
	if !slices.Equal(v.B, b) {
		r.Fatal("changed before there was room")
	}
	if got := cross(v, r.CrossToClient, r.now); got != Translated {
		r.Fatalf("cross to client: %v", got)
	}
	return v
}

func TestNAT64TranslatesBothWays(t *testing.T) {
	for _, tt := range crossings {
		for _, kind := range kinds {
			t.Run(tt.name+" "+kind.String(), func(t *testing.T) {
				r := newRig(t, Config{NAT64: true})
				r.assign("example.com", []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
				there := r.crossed(out(kind, 5000, tt.proxy, flagSYN))
				if there.Src != clientOf(tt.real) || there.Dst != tt.real || there.SrcPort != 5000 || there.Kind != kind {
					t.Fatalf("sent %v from %v port %d to %v", there.Kind, there.Src, there.SrcPort, there.Dst)
				}
				back := r.crossedBack(in(kind, tt.real, 5000, flagSYN|flagACK))
				verify(t, back)
				if back.Src != tt.proxy || back.Dst != clientOf(tt.proxy) || back.DstPort != 5000 || back.Kind != kind {
					t.Fatalf("received %v from %v to %v port %d", back.Kind, back.Src, back.Dst, back.DstPort)
				}
				// The second packet of the flow.
				r.crossed(out(kind, 5000, tt.proxy, ack))
			})
		}
	}
}

func TestNAT64SessionsShareThePortsOfTheRealAddress(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", []netip.Addr{proxies4[0], proxies6[0]}, []netip.Addr{real6})
	for _, kind := range kinds {
		if _, port := r.sent(kind, 5000, proxies6[0]); port != 5000 {
			t.Fatalf("port %d", port)
		}
		there := r.crossed(out(kind, 5000, proxies4[0], ack))
		if there.SrcPort != 5001 {
			t.Fatalf("a second session towards the same host has port %d", there.SrcPort)
		}
		if back := r.crossedBack(in(kind, real6, 5001, ack)); back.Dst != client4 || back.DstPort != 5000 {
			t.Fatalf("its answer goes to %v port %d", back.Dst, back.DstPort)
		}
		if back, got := r.received(in(kind, real6, 5000, ack)); got != Translated || back.Dst != client6 || back.Src != proxies6[0] {
			t.Fatalf("%v: the answer of the first goes to %v", got, back.Dst)
		}
	}
}

func TestNAT64SessionsStayWhereTheyAre(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", proxies4[:1], []netip.Addr{real6})
	r.crossed(out(packet.KindTCP, 5000, proxies4[0], flagSYN))
	// The domain has got an IPv4 address.
	r.assign("example.com", proxies4[:1], []netip.Addr{real4, real6})
	if there := r.crossed(out(packet.KindTCP, 5000, proxies4[0], ack)); there.Dst != real6 {
		t.Errorf("the session moved to %v", there.Dst)
	}
	if dst, _ := r.sent(packet.KindTCP, 5001, proxies4[0]); dst != real4 {
		t.Errorf("a new session goes to %v", dst)
	}
}

func TestNAT64SessionsEndLikeOthers(t *testing.T) {
	for _, tt := range crossings {
		r := newRig(t, Config{NAT64: true})
		r.assign("example.com", []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
		r.crossed(out(packet.KindTCP, 5000, tt.proxy, flagSYN))
		r.crossedBack(in(packet.KindTCP, tt.real, 5000, flagFIN|flagACK))
		r.crossed(out(packet.KindTCP, 5000, tt.proxy, flagFIN|flagACK))
		r.wait(Finished)
		late := parse(t, in(packet.KindTCP, tt.real, 5000, ack))
		if got := cross(late, r.CrossToClient, r.now); got != Ended {
			t.Errorf("%s: after both FIN: %v", tt.name, got)
		}
		r.wantToClient(in(packet.KindTCP, tt.real, 5000, ack), Ended)
		if got := cross(parse(t, out(packet.KindTCP, 5000, tt.proxy, ack)), r.CrossToResource, r.now); got != NeedSession {
			t.Errorf("%s: after both FIN: %v", tt.name, got)
		}
		if n := r.Sweep(r.now); n != 1 {
			t.Errorf("%s: %d sessions ended", tt.name, n)
		}
		if got := cross(late, r.CrossToClient, r.now); got != Ended {
			t.Errorf("%s: once swept: %v", tt.name, got)
		}
	}
}

func TestNAT64SessionsEndWithTheirResource(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", proxies4[:1], []netip.Addr{real6})
	r.crossed(out(packet.KindUDP, 5000, proxies4[0], 0))
	if n := r.Invalidate("res"); n != 1 {
		t.Fatalf("%d sessions ended", n)
	}
	if got := cross(parse(t, in(packet.KindUDP, real6, 5000, 0)), r.CrossToClient, r.now); got != Ended {
		t.Error(got)
	}
}

func TestRepairLeavesTheOtherFamilyToNAT64(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", proxies4[:1], []netip.Addr{real6})
	r.crossed(out(packet.KindUDP, 5000, proxies4[0], 0))
	if got := r.Repair(); got != (Repaired{}) {
		t.Errorf("%+v of a table without faults", got)
	}
	r.max.NAT64 = false // as if it had never been on
	if got := r.Repair(); got != (Repaired{Mappings: 1, Sessions: 1}) {
		t.Errorf("%+v", got)
	}
}

func TestNAT64TranslatesErrors(t *testing.T) {
	for _, tt := range crossings {
		for _, kind := range kinds {
			t.Run(tt.name+" "+kind.String(), func(t *testing.T) {
				r := newRig(t, Config{NAT64: true})
				r.assign("example.com", []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
				r.crossed(out(kind, 4999, tt.proxy, flagSYN)) // takes the port that the next wants
				sent := out(kind, 5000, tt.proxy, flagSYN)
				there := r.crossed(sent)
				r.wantToClient(in(kind, tt.real, 4998, ack), Untouched)

				typ, want := byte(3), byte(11) // hop limit exceeded
				if tt.real.Is4() {
					typ, want = 11, 3
				}
				v := r.crossedBack(packettest.ICMP(tt.router, clientOf(tt.real), typ, 0, 0, there.B))
				if err := packettest.Verify(v.B, byte(v.Protocol), v.Transport); err != nil {
					t.Fatal(err)
				}
				if v.Src != tt.proxy || v.Dst != clientOf(tt.proxy) || v.B[v.Transport] != want || hops(v) != errorTTL {
					t.Errorf("type %d from %v to %v with TTL %d", v.B[v.Transport], v.Src, v.Dst, hops(v))
				}
				q, ok := v.Quote()
				if !ok || q.Src != clientOf(tt.proxy) || q.Dst != tt.proxy || q.SrcPort != 5000 {
					t.Fatalf("quotes %+v, %v", q, ok)
				}
				if got, sent := v.B[q.Transport:], sent[parse(t, sent).Transport:]; !equalButZero(got, sent) {
					t.Errorf("quotes\n% x, sent was\n% x", got, sent)
				}
			})
		}
	}
}

func hops(v *packet.View) byte {
	if v.Is6() {
		return v.B[7]
	}
	return v.B[8]
}

func TestNAT64RestoresThePortThatAnErrorQuotes(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", []netip.Addr{proxies4[0], proxies6[0]}, []netip.Addr{real6})
	r.sent(packet.KindUDP, 5000, proxies6[0])
	sent := out(packet.KindUDP, 5000, proxies4[0], 0)
	there := r.crossed(sent)
	v := r.crossedBack(packettest.ICMP(router6, client6, 2, 0, 1280, there.B))
	if err := packettest.Verify(v.B, byte(v.Protocol), v.Transport); err != nil {
		t.Fatal(err)
	}
	q, _ := v.Quote()
	if q.SrcPort != 5000 || !equalButZero(v.B[q.Transport:], sent[20:]) {
		t.Errorf("quotes port %d", q.SrcPort)
	}
	if mtu := word(v.B, v.Transport+6); v.B[v.Transport] != 3 || v.B[v.Transport+1] != 4 || mtu != 1260 {
		t.Errorf("type %d code %d MTU %d", v.B[v.Transport], v.B[v.Transport+1], mtu)
	}
}

func TestNAT64RefusesWhatHasNoCounterpart(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", []netip.Addr{proxies4[0], proxies6[0]}, []netip.Addr{real6})
	r.wantToResource(packettest.ICMP(client4, proxies4[0], 13, 0, 0, nil), Unsupported)

	route := packettest.Options4(out(packet.KindUDP, 5000, proxies4[0], 0), []byte{131, 7, 4, 1, 2, 3, 4, 0})
	v := parse(t, route)
	if got := r.Open(v, r.now); got != OtherFamily {
		t.Fatal(got)
	}
	if got := cross(v, r.CrossToResource, r.now); got != Unsupported {
		t.Errorf("a source route: %v", got)
	}
	v = parse(t, out(packet.KindUDP, 5000, proxies4[0], 0))
	if start, got := r.CrossToResource(v, Crossing{Buf: v.B}, r.now); got != Unresolved || start != 0 {
		t.Errorf("a client without IPv6 address: %v", got)
	}
	back := parse(t, in(packet.KindUDP, real6, 5000, 0))
	if _, got := r.CrossToClient(back, Crossing{Buf: back.B}, r.now); got != Unsupported {
		t.Errorf("to a client without IPv4 address: %v", got)
	}
}

func TestNAT64TellsWhatIsTooBig(t *testing.T) {
	r := newRig(t, Config{NAT64: true})
	r.assign("example.com", proxies6[:1], []netip.Addr{real4})
	udp := func(src, dst netip.Addr, sport, dport uint16, size int) []byte {
		header := 28
		if src.Is6() {
			header = 48
		}
		return packettest.UDP(netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), make([]byte, size-header))
	}
	// Whatever the client sends shrinks.
	if there := r.crossed(udp(client6, proxies6[0], 5000, service, packet.MaxSize)); len(there.B) != packet.MaxSize-20 {
		t.Errorf("%d bytes", len(there.B))
	}
	if back := r.crossedBack(udp(real4, client4, service, 5000, packet.MaxSize-20)); len(back.B) != packet.MaxSize {
		t.Errorf("%d bytes", len(back.B))
	}
	v := parse(t, udp(real4, client4, service, 5000, packet.MaxSize-19))
	if got := cross(v, r.CrossToClient, r.now); got != TooBig {
		t.Errorf("one byte more: %v", got)
	}

	r.assign("example.com", proxies6[:1], nil)
	r.assign("six.example.com", proxies4[:1], []netip.Addr{real6})
	v = parse(t, udp(client4, proxies4[0], 5000, service, packet.MaxSize))
	if got := r.Open(v, r.now); got != OtherFamily {
		t.Fatal(got)
	}
	if got := cross(v, r.CrossToResource, r.now); got != Translated || len(v.B) != packet.MaxSize+20 {
		t.Errorf("to a resource: %v, %d bytes", got, len(v.B))
	}
}

func TestNAT64AnnouncesWhatFits(t *testing.T) {
	syn := func(src, dst netip.Addr) []byte { // with an MSS of 1240
		p := packettest.TCP(netip.AddrPortFrom(src, 5000), netip.AddrPortFrom(dst, service), flagSYN, []byte{2, 4, 4, 0xd8})
		at := parse(t, p).Transport
		p[at+12] = 0x60
		sum := packet.Delta(0).Word(0x5000|flagSYN, 0x6000|flagSYN)
		copy(p[at+16:], binary.BigEndian.AppendUint16(nil, sum.Apply(word(p, at+16))))
		return p
	}
	for _, tt := range crossings {
		r := newRig(t, Config{NAT64: true})
		r.assign("example.com", []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
		want := uint16(1220)
		if tt.real.Is4() {
			want = 1240
		}
		there := r.crossed(syn(clientOf(tt.proxy), tt.proxy))
		if got := word(there.B, there.Transport+22); got != want {
			t.Errorf("%s: announces %d, want %d", tt.name, got, want)
		}
	}
}

func TestNAT64NumbersThePacketsItMakes(t *testing.T) {
	r := newRig(t, Config{NAT64: true, Seed: 7})
	r.assign("example.com", proxies6[:1], []netip.Addr{real4})
	seen := map[uint16]bool{}
	for range 100 {
		seen[word(r.crossed(out(packet.KindUDP, 5000, proxies6[0], 0)).B, 4)] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d identifications of 100 packets", len(seen))
	}
}

func TestCrossingAllocatesNothing(t *testing.T) {
	for _, tt := range crossings {
		r := newRig(t, Config{NAT64: true})
		r.assign("example.com", []netip.Addr{tt.proxy}, []netip.Addr{tt.real})
		r.crossed(out(packet.KindTCP, 5000, tt.proxy, flagSYN))
		there, back := out(packet.KindTCP, 5000, tt.proxy, ack), in(packet.KindTCP, tt.real, 5000, ack)
		buf := make([]byte, packet.MaxGrowth+max(len(there), len(back)))
		var v packet.View
		run := func(b []byte, client netip.Addr, translate func(*packet.View, Crossing, int64) (int, Result)) {
			buf := buf[:packet.MaxGrowth+copy(buf[packet.MaxGrowth:], b)]
			if v.Parse(buf[packet.MaxGrowth:]) != drop.None {
				t.Fatal("refused")
			}
			if _, got := translate(&v, Crossing{buf, packet.MaxGrowth, client}, r.now); got != Translated {
				t.Fatal(got)
			}
		}
		toResource, toClient := r.CrossToResource, r.CrossToClient
		if n := testing.AllocsPerRun(100, func() {
			run(there, clientOf(tt.real), toResource)
			run(back, clientOf(tt.proxy), toClient)
		}); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}
