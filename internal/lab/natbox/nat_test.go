package natbox

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_800_000_000, 0)

// nat returns a NAT and what it does to one packet at a time.
type rig struct {
	*testing.T
	*NAT
	now time.Time
}

func newRig(t *testing.T, b Behaviour) *rig {
	return &rig{t, New(external, b, 1), start}
}

// out sends a datagram and returns the public endpoint it comes from.
func (r *rig) out(from, to netip.AddrPort) netip.AddrPort {
	r.Helper()
	b := build(protoUDP, 0, from, to, "out")
	if verdict := r.Outbound(b, r.now); verdict != Forward {
		r.Fatalf("%v to %v: %v", from, to, verdict)
	}
	expectSound(r.T, b)
	src, dst := ends(r.T, b)
	if dst != to {
		r.Fatalf("destination became %v", dst)
	}
	return src
}

// in sends a datagram to a public endpoint and returns whether it came to the
// private one.
func (r *rig) in(from, to netip.AddrPort) bool {
	r.Helper()
	b := build(protoUDP, 0, from, to, "in")
	switch verdict := r.Inbound(b, r.now); verdict {
	case Forward:
		expectSound(r.T, b)
		src, dst := ends(r.T, b)
		if src != from || (dst != inside && dst != inside6) {
			r.Fatalf("%v to %v became %v to %v", from, to, src, dst)
		}
		return true
	case Filtered:
		return false
	default:
		r.Fatalf("%v to %v: %v", from, to, verdict)
		return false
	}
}

func TestMappingsDependOnWhatTheBehaviourDistinguishes(t *testing.T) {
	for _, c := range []struct {
		mapping         Dependence
		port2, address2 bool // whether another port, or address, makes another mapping
	}{
		{EndpointIndependent, false, false},
		{AddressDependent, false, true},
		{AddressAndPortDependent, true, true},
	} {
		t.Run(c.mapping.String(), func(t *testing.T) {
			r := newRig(t, Behaviour{Mapping: c.mapping, Filtering: AddressAndPortDependent})
			first := r.out(inside, alice)
			if again := r.out(inside, alice); again != first {
				t.Errorf("the same flow is mapped to %v and %v", first, again)
			}
			if got := r.out(inside, alice2) != first; got != c.port2 {
				t.Errorf("another port makes another mapping: %v", got)
			}
			if got := r.out(inside, bob) != first; got != c.address2 {
				t.Errorf("another address makes another mapping: %v", got)
			}
			if first.Addr() != external {
				t.Errorf("mapped to %v", first)
			}
		})
	}
}

func TestFiltersAdmitWhatTheBehaviourDistinguishes(t *testing.T) {
	for _, c := range []struct {
		filtering       Dependence
		port2, address2 bool // whether another port, or address, is admitted
	}{
		{EndpointIndependent, true, true},
		{AddressDependent, true, false},
		{AddressAndPortDependent, false, false},
	} {
		t.Run(c.filtering.String(), func(t *testing.T) {
			r := newRig(t, Behaviour{Filtering: c.filtering, Preserving: true})
			for _, family := range []struct{ inside, a, a2, b netip.AddrPort }{
				{inside, alice, alice2, bob},
				{inside6, alice6, netip.AddrPortFrom(alice6.Addr(), 1), netip.MustParseAddrPort("[2001:db8::9]:3478")},
			} {
				at := family.inside
				if at.Addr().Is4() {
					at = netip.AddrPortFrom(external, at.Port())
				}
				if r.in(family.a, at) {
					t.Error("a datagram nobody asked for is admitted")
				}
				if mapped := r.out(family.inside, family.a); mapped != at {
					t.Fatalf("mapped to %v, want %v", mapped, at)
				}
				if !r.in(family.a, at) {
					t.Error("the answer is not admitted")
				}
				if got := r.in(family.a2, at); got != c.port2 {
					t.Errorf("another port is admitted: %v", got)
				}
				if got := r.in(family.b, at); got != c.address2 {
					t.Errorf("another address is admitted: %v", got)
				}
			}
		})
	}
}

func TestMappingsEndWithoutOutboundPackets(t *testing.T) {
	r := newRig(t, Behaviour{Preserving: true})
	mapped := r.out(inside, alice)
	r.now = r.now.Add(UDPLifetime)
	if !r.in(alice, mapped) {
		t.Error("mapping ended too early")
	}
	r.out(inside, alice)
	r.now = r.now.Add(UDPLifetime)
	if !r.in(alice, mapped) {
		t.Error("an outbound packet did not refresh the mapping")
	}
	r.now = r.now.Add(time.Nanosecond)
	if r.in(alice, mapped) {
		t.Error("inbound packets keep the mapping")
	}
	r.now = r.now.Add(sweepEvery)
	r.out(netip.AddrPortFrom(inside.Addr(), 1), alice)
	if r.Mappings() != 1 {
		t.Errorf("%d mappings, the expired one is still there", r.Mappings())
	}
}

func TestFiltersEndByThemselves(t *testing.T) {
	r := newRig(t, Behaviour{Filtering: AddressDependent, Preserving: true})
	mapped := r.out(inside, alice)
	r.now = r.now.Add(UDPLifetime / 2)
	r.out(inside, bob)
	r.now = r.now.Add(UDPLifetime/2 + time.Second)
	if r.in(alice, mapped) {
		t.Error("a remote that was not sent to for long is admitted")
	}
	if !r.in(bob, mapped) {
		t.Error("a remote that was sent to is not admitted")
	}
}

func TestPortsAreTakenOnce(t *testing.T) {
	r := newRig(t, Behaviour{Preserving: true})
	neighbour := netip.AddrPortFrom(netip.MustParseAddr("192.168.7.3"), inside.Port())
	first, second := r.out(inside, alice), r.out(neighbour, alice)
	if first.Port() != inside.Port() {
		t.Errorf("port %d is not preserved", first.Port())
	}
	if second == first {
		t.Error("two private endpoints share a public one")
	}
}

func TestAFullTableRefuses(t *testing.T) {
	r := newRig(t, Behaviour{Mapping: AddressAndPortDependent})
	for i := range maxMappings {
		r.out(inside, netip.AddrPortFrom(alice.Addr(), uint16(i)))
	}
	b := build(protoUDP, 0, inside, bob, "")
	if verdict := r.Outbound(b, r.now); verdict != Exhausted {
		t.Errorf("one more mapping: %v", verdict)
	}
	r.now = r.now.Add(UDPLifetime + sweepEvery)
	r.out(inside, bob)
}

func TestAFullFilterRefuses(t *testing.T) {
	r := newRig(t, Behaviour{Filtering: AddressAndPortDependent})
	for i := range maxAllowed {
		r.out(inside, netip.AddrPortFrom(alice.Addr(), uint16(i)))
	}
	if verdict := r.Outbound(build(protoUDP, 0, inside, bob, ""), r.now); verdict != Exhausted {
		t.Errorf("one more remote: %v", verdict)
	}
}

func TestTCPAndEchoAreTranslatedToo(t *testing.T) {
	n := New(external, Behaviour{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent}, 1)
	syn := build(protoTCP, 0, inside, alice, "")
	if verdict := n.Outbound(syn, start); verdict != Forward {
		t.Fatal(verdict)
	}
	expectSound(t, syn)
	mapped, _ := ends(t, syn)
	answer := build(protoTCP, 0, alice, mapped, "welcome")
	if verdict := n.Inbound(answer, start); verdict != Forward {
		t.Fatal(verdict)
	}
	expectSound(t, answer)
	if _, dst := ends(t, answer); dst != inside {
		t.Errorf("answer goes to %v", dst)
	}
	if verdict := n.Inbound(build(protoTCP, 0, bob, netip.AddrPortFrom(external, 22), ""), start); verdict != Local {
		t.Errorf("a connection to the router: %v", verdict)
	}

	who, at := netip.AddrPortFrom(inside.Addr(), 77), netip.AddrPortFrom(alice.Addr(), 0)
	ping := build(protoICMP, 8, who, at, "ping")
	if verdict := n.Outbound(ping, start); verdict != Forward {
		t.Fatal(verdict)
	}
	expectSound(t, ping)
	mapped, _ = ends(t, ping)
	pong := build(protoICMP, 0, at, mapped, "ping")
	if verdict := n.Inbound(pong, start); verdict != Forward {
		t.Fatal(verdict)
	}
	expectSound(t, pong)
	if _, dst := ends(t, pong); dst != who {
		t.Errorf("echo reply goes to %v", dst)
	}
	if verdict := n.Inbound(build(protoICMP, 8, at, netip.AddrPortFrom(external, 0), ""), start); verdict != Local {
		t.Errorf("an echo request to the router: %v", verdict)
	}
}

func TestErrorsReachWhomTheyConcern(t *testing.T) {
	r := newRig(t, Behaviour{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent})
	datagram := build(protoUDP, 0, inside, alice, "a datagram that is too big")
	original := bytes.Clone(datagram)
	if verdict := r.Outbound(datagram, start); verdict != Forward {
		t.Fatal(verdict)
	}
	router := netip.MustParseAddr("203.0.113.1")
	for _, length := range []int{minIPv4 + 8, len(datagram)} {
		b := quoting(3, router, external, datagram[:length])
		if verdict := r.Inbound(b, start); verdict != Forward {
			t.Fatalf("error with %d bytes quoted: %v", length, verdict)
		}
		expectSound(t, b)
		if !bytes.Equal(b[minIPv4+lenICMP:], original[:length]) {
			t.Errorf("%d bytes quoted are\n%x, the private side sent\n%x", length, b[minIPv4+lenICMP:], original[:length])
		}
		if got := netip.AddrFrom4([4]byte(b[16:20])); got != inside.Addr() {
			t.Errorf("error goes to %v", got)
		}
	}
	stranger := quoting(3, router, external, build(protoUDP, 0, netip.AddrPortFrom(external, 9), alice, ""))
	if verdict := r.Inbound(stranger, start); verdict != Local {
		t.Errorf("an error about nothing: %v", verdict)
	}

	mapped, _ := ends(t, datagram)
	came := build(protoUDP, 0, alice, mapped, "in")
	want := bytes.Clone(came)
	if verdict := r.Inbound(came, start); verdict != Forward {
		t.Fatal(verdict)
	}
	refusal := quoting(3, inside.Addr(), alice.Addr(), came)
	if verdict := r.Outbound(refusal, start); verdict != Forward {
		t.Fatal(verdict)
	}
	expectSound(t, refusal)
	if !bytes.Equal(refusal[minIPv4+lenICMP:], want) || netip.AddrFrom4([4]byte(refusal[12:16])) != external {
		t.Errorf("refusal tells of the private side: %x", refusal)
	}
	unasked := quoting(3, inside.Addr(), bob.Addr(), build(protoUDP, 0, bob, inside, ""))
	if verdict := r.Outbound(unasked, start); verdict != Filtered {
		t.Errorf("a refusal of what never came: %v", verdict)
	}
}

func TestIPv6IsNotRewritten(t *testing.T) {
	r := newRig(t, Behaviour{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent})
	b := build(protoUDP, 0, inside6, alice6, "out")
	want := bytes.Clone(b)
	if verdict := r.Outbound(b, start); verdict != Forward || !bytes.Equal(b, want) {
		t.Fatalf("%v, %x", verdict, b)
	}
	about := quoting(2, netip.MustParseAddr("2001:db8::1"), inside6.Addr(), b)
	if verdict := r.Inbound(about, start); verdict != Forward {
		t.Errorf("an error about it: %v", verdict)
	}
	ping := build(protoICMPv6, 128, netip.AddrPortFrom(alice6.Addr(), 7), netip.AddrPortFrom(inside6.Addr(), 0), "")
	if verdict := r.Inbound(ping, start); verdict != Filtered {
		t.Errorf("an echo request to the private side: %v", verdict)
	}
}

func TestPacketsWithoutUseAreNamed(t *testing.T) {
	valid := build(protoUDP, 0, inside, alice, "payload")
	change := func(f func([]byte)) []byte {
		b := bytes.Clone(valid)
		f(b)
		return b
	}
	for _, c := range []struct {
		name    string
		packet  []byte
		outward Verdict
		inward  Verdict
	}{
		{"nothing", nil, Malformed, Malformed},
		{"another version", change(func(b []byte) { b[0] = 0x55 }), Malformed, Malformed},
		{"a header longer than the packet", change(func(b []byte) { b[0] = 0x4f }), Malformed, Malformed},
		{"a length beyond the end", change(func(b []byte) { b[3] += 1 }), Malformed, Malformed},
		{"a part of a fragment header", append(header(fragmentHeader, inside6.Addr(), alice6.Addr(), 4), 0, 0, 0, 0), Malformed, Malformed},
		{"an error in pieces", change(func(b []byte) { b[6], b[9], b[20] = 0x20, protoICMP, 3 }), Unsupported, Unsupported},
		{"a later fragment alone", change(func(b []byte) { b[7] = 1 }), Unsupported, Filtered},
		{"a protocol without ports", change(func(b []byte) { b[9] = 47 }), Unsupported, Unsupported},
		{"half a UDP header", change(func(b []byte) { b[3] = minIPv4 + 4 })[:minIPv4+4], Malformed, Malformed},
		{"ICMPv6 in IPv4", change(func(b []byte) { b[9] = protoICMPv6 }), Unsupported, Unsupported},
		{"somebody else's address", build(protoUDP, 0, alice, bob, ""), Forward, Filtered},
		{"an echo reply", build(protoICMP, 0, inside, alice, ""), Filtered, Filtered},
		{"an error that quotes nothing", quoting(3, alice.Addr(), external, nil), Malformed, Malformed},
		{"an error about an error", quoting(3, alice.Addr(), external, quoting(3, external, alice.Addr(), valid)), Unsupported, Unsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := New(external, Behaviour{}, 1)
			if got := n.Inbound(bytes.Clone(c.packet), start); got != c.inward {
				t.Errorf("inbound %v, want %v", got, c.inward)
			}
			if got := n.Outbound(bytes.Clone(c.packet), start); got != c.outward {
				t.Errorf("outbound %v, want %v", got, c.outward)
			}
		})
	}
}

func TestTooBigAnswersTheSender(t *testing.T) {
	router := netip.MustParseAddr("192.168.7.1")
	b := build(protoUDP, 0, inside, alice, string(make([]byte, 1300)))
	answer := TooBig(b, 1280, router)
	if answer == nil {
		t.Fatal("no answer")
	}
	expectSound(t, answer)
	v, _ := parse(answer, false)
	if v.src.Addr() != router || v.dst.Addr() != inside.Addr() || v.icmpError == 0 {
		t.Errorf("answer is %x", answer)
	}
	if answer[v.l4+1] != 4 || int(answer[v.l4+6])<<8|int(answer[v.l4+7]) != 1280 {
		t.Errorf("answer does not tell the MTU: %x", answer)
	}
	if !bytes.Equal(answer[v.icmpError:], b[:28]) {
		t.Error("answer quotes something else")
	}
	free := bytes.Clone(b)
	free[6] = 0
	for name, packet := range map[string][]byte{
		"a packet that may be fragmented": free,
		"a packet that fits":              build(protoUDP, 0, inside, alice, ""),
		"an error":                        quoting(3, inside.Addr(), alice.Addr(), b),
		"IPv6":                            build(protoUDP, 0, inside6, alice6, string(make([]byte, 1300))),
		"rubbish":                         make([]byte, 1400),
	} {
		if TooBig(packet, 1280, router) != nil {
			t.Errorf("%s is answered", name)
		}
	}
}

// Whatever passes in both directions, public endpoints are never shared, and
// what is admitted was asked for.
func TestNATAgainstAModel(t *testing.T) {
	remotes := []netip.AddrPort{alice, alice2, bob, netip.AddrPortFrom(bob.Addr(), alice2.Port())}
	rapid.Check(t, func(rt *rapid.T) {
		b := Behaviour{
			Mapping: Dependence(rapid.IntRange(0, 2).Draw(rt, "mapping")), Filtering: Dependence(rapid.IntRange(0, 2).Draw(rt, "filtering")),
			Preserving: rapid.Bool().Draw(rt, "preserving"),
		}
		n := New(external, b, rapid.Uint64().Draw(rt, "seed"))
		owners := map[netip.AddrPort]netip.AddrPort{} // by public endpoint
		asked := map[string]bool{}
		pair := func(at, remote netip.AddrPort) string { return fmt.Sprint(at, b.Filtering.of(remote)) }
		for range rapid.IntRange(1, 40).Draw(rt, "packets") {
			remote := rapid.SampledFrom(remotes).Draw(rt, "remote")
			if rapid.Bool().Draw(rt, "outbound") {
				from := netip.AddrPortFrom(inside.Addr(), uint16(rapid.IntRange(2000, 2003).Draw(rt, "port")))
				packet := build(protoUDP, 0, from, remote, "x")
				if verdict := n.Outbound(packet, start); verdict != Forward {
					rt.Fatal(verdict)
				}
				at, _ := ends(t, packet)
				if owner, taken := owners[at]; taken && owner != from {
					rt.Fatalf("%v is of %v and %v", at, owner, from)
				}
				owners[at], asked[pair(at, remote)] = from, true
				continue
			}
			for at, owner := range owners {
				packet := build(protoUDP, 0, remote, at, "x")
				verdict := n.Inbound(packet, start)
				if (verdict == Forward) != asked[pair(at, remote)] {
					rt.Fatalf("%v to %v: %v", remote, at, verdict)
				}
				if _, dst := ends(t, packet); verdict == Forward && dst != owner {
					rt.Fatalf("%v to %v goes to %v, not to %v", remote, at, dst, owner)
				}
			}
		}
	})
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		AddressDependent.String(): "address-dependent", Dependence(9).String(): "Dependence(9)",
		Filtered.String(): "filtered", Verdict(99).String(): "Verdict(99)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if len(verdictNames) != Verdicts {
		t.Error("a verdict has no name")
	}
}

func FuzzNAT(f *testing.F) {
	f.Add(build(protoUDP, 0, inside, alice, "hello"), true)
	f.Add(build(protoTCP, 0, alice, netip.AddrPortFrom(external, 5000), "hello"), false)
	f.Add(build(protoICMP, 8, inside, alice, "ping"), true)
	f.Add(quoting(3, alice.Addr(), external, build(protoUDP, 0, netip.AddrPortFrom(external, inside.Port()), alice, "")), false)
	f.Add(quoting(1, alice6.Addr(), inside6.Addr(), build(protoUDP, 0, inside6, alice6, "")), false)
	f.Fuzz(func(t *testing.T, packet []byte, outbound bool) {
		n := New(external, Behaviour{Preserving: true}, 1)
		if verdict := n.Outbound(build(protoUDP, 0, inside, alice, ""), start); verdict != Forward {
			t.Fatal(verdict)
		}
		before := bytes.Clone(packet)
		verdict := n.Inbound
		if outbound {
			verdict = n.Outbound
		}
		got := verdict(packet, start)
		if got != Forward && !bytes.Equal(packet, before) {
			t.Errorf("a packet that is %v was changed", got)
		}
		if v, _ := parse(before, false); got == Forward && v.is4() && checksum(before[:v.l4]) == 0 && checksum(packet[:v.l4]) != 0 {
			t.Error("the header's checksum was spoilt")
		}
		_ = TooBig(packet, 28, external)
	})
}

func BenchmarkOutbound(b *testing.B) {
	n := New(external, Behaviour{Filtering: AddressAndPortDependent, Preserving: true}, 1)
	packet := build(protoUDP, 0, inside, alice, string(make([]byte, 1200)))
	original := bytes.Clone(packet)
	b.ReportAllocs()
	for b.Loop() {
		copy(packet, original[:32])
		if n.Outbound(packet, start) != Forward {
			b.Fatal("not forwarded")
		}
	}
}

// cut returns a packet in two fragments, the way a router cuts it.
func cut(packet []byte, at int) (head, tail []byte) {
	v, _ := parse(packet, false)
	body := packet[v.l4:]
	if v.is4() {
		head = append(bytes.Clone(packet[:v.l4]), body[:at]...)
		tail = append(bytes.Clone(packet[:v.l4]), body[at:]...)
		head[6], tail[6], tail[7] = 0x20, 0, byte(at/8)
		for _, b := range [][]byte{head, tail} {
			b[2], b[3], b[5] = byte(len(b)>>8), byte(len(b)), 99
			setSum(b[:v.l4], 10)
		}
		return head, tail
	}
	piece := func(part []byte, offset uint16) []byte {
		b := append(bytes.Clone(packet[:lenIPv6]), packet[6], 0, byte(offset>>8), byte(offset), 0, 0, 0, 99)
		b = append(b, part...)
		b[6], b[4], b[5] = fragmentHeader, byte((len(b)-lenIPv6)>>8), byte(len(b)-lenIPv6)
		return b
	}
	return piece(body[:at], 1), piece(body[at:], uint16(at))
}

func TestFragmentsFollowTheFirst(t *testing.T) {
	payload := string(bytes.Repeat([]byte("fragment"), 30))
	for _, c := range []struct {
		name         string
		inside, with netip.AddrPort
	}{{"IPv4", inside, alice}, {"IPv6", inside6, alice6}} {
		t.Run(c.name, func(t *testing.T) {
			n := New(external, Behaviour{Filtering: AddressAndPortDependent}, 1)
			head, tail := cut(build(protoUDP, 0, c.inside, c.with, payload), 80)
			if verdict := n.Outbound(bytes.Clone(tail), start); verdict != Unsupported {
				t.Errorf("a later fragment alone: %v", verdict)
			}
			whole := together(t, n.Outbound, head, tail)
			expectSound(t, whole)
			mapped, _ := ends(t, whole)

			head, tail = cut(build(protoUDP, 0, c.with, mapped, payload), 160)
			whole = together(t, n.Inbound, head, tail)
			expectSound(t, whole)
			if _, dst := ends(t, whole); dst != c.inside {
				t.Errorf("comes to %v", dst)
			}
			if verdict := n.Inbound(bytes.Clone(tail), start.Add(time.Hour)); verdict != Unsupported && verdict != Filtered {
				t.Errorf("a fragment of long ago: %v", verdict)
			}
		})
	}
}

// together passes both fragments through the NAT and puts them together.
func together(t *testing.T, pass func([]byte, time.Time) Verdict, head, tail []byte) []byte {
	t.Helper()
	for _, b := range [][]byte{head, tail} {
		if verdict := pass(b, start); verdict != Forward {
			t.Fatal(verdict)
		}
	}
	v, _ := parse(head, false)
	later, _ := parse(tail, false)
	if v.src.Addr() != later.src.Addr() || v.dst.Addr() != later.dst.Addr() {
		t.Fatalf("fragments of %v to %v and of %v to %v", v.src, v.dst, later.src, later.dst)
	}
	if !v.is4() {
		b := header(v.protocol, v.src.Addr(), v.dst.Addr(), len(head)-v.l4+len(tail)-v.l4)
		return append(append(b, head[v.l4:]...), tail[v.l4:]...)
	}
	b := append(head, tail[v.l4:]...)
	b[2], b[3], b[6] = byte(len(b)>>8), byte(len(b)), 0
	if checksum(tail[:v.l4]) != 0 {
		t.Error("the later fragment's checksum is wrong")
	}
	setSum(b[:v.l4], 10)
	return b
}

func TestFragmentsAreForgotten(t *testing.T) {
	n := New(external, Behaviour{}, 1)
	head, tail := cut(build(protoUDP, 0, inside, alice, string(make([]byte, 200))), 80)
	tagged := func(b []byte, id int) []byte {
		b = bytes.Clone(b)
		b[4], b[5] = byte(id>>8), byte(id)
		setSum(b[:minIPv4], 10)
		return b
	}
	for i := range maxPieces {
		n.Outbound(tagged(head, i), start)
	}
	n.Outbound(tagged(head, maxPieces), start)
	if verdict := n.Outbound(tagged(tail, maxPieces), start); verdict != Unsupported {
		t.Errorf("one more packet in pieces: %v", verdict)
	}
	late := start.Add(pieceLifetime + 1)
	n.Outbound(tagged(head, maxPieces), late)
	if verdict := n.Outbound(tagged(tail, maxPieces), late); verdict != Forward {
		t.Errorf("after the others ended: %v", verdict)
	}
}
