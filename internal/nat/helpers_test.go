package nat

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// second is the unit of test clocks. They start far from zero on purpose.
const (
	second = int64(time.Second)
	start  = 1000 * second
)

var (
	client4, client6 = addr("100.64.0.7"), addr("fd00:2021:1111::7")
	router4, router6 = addr("198.51.100.1"), addr("2001:db8:ffff::1")
	real4, real6     = addr("10.0.0.5"), addr("2001:db8::5")
	proxies4         = addrs("100.96.0.1", "100.96.0.2", "100.96.0.3", "100.96.0.4")
	proxies6         = addrs("fd00:2021:1111:8000::", "fd00:2021:1111:8000::1", "fd00:2021:1111:8000::2", "fd00:2021:1111:8000::3")
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range all {
		out = append(out, addr(s))
	}
	return out
}

// clientOf returns the client's address of a's family.
func clientOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return client4
	}
	return client6
}

func routerOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return router4
	}
	return router6
}

// kinds are the shapes of packets that are translated.
var kinds = []packet.Kind{packet.KindTCP, packet.KindUDP, packet.KindEcho}

const ack = flagACK

// build returns a packet of that kind. For TCP, flags is the flags byte. An echo
// message has the port of the client's end as identifier: a request carries it
// as source, a reply as destination.
func build(kind packet.Kind, src netip.Addr, srcPort uint16, dst netip.Addr, dstPort uint16, flags byte) []byte {
	payload := []byte("some payload of odd length.")
	a, b := netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	switch kind {
	case packet.KindTCP:
		return packettest.TCP(a, b, flags, payload)
	case packet.KindUDP:
		return packettest.UDP(a, b, payload)
	}
	if clientOf(src) == src {
		return packettest.Ping(src, dst, srcPort, payload)
	}
	return packettest.Pong(src, dst, dstPort, payload)
}

const service = 443

// out returns a packet of the client to a proxy address.
func out(kind packet.Kind, port uint16, proxy netip.Addr, flags byte) []byte {
	return build(kind, clientOf(proxy), port, proxy, service, flags)
}

// in returns a packet from the network to the client.
func in(kind packet.Kind, real netip.Addr, port uint16, flags byte) []byte {
	return build(kind, real, service, clientOf(real), port, flags)
}

func parse(t tester, b []byte) *packet.View {
	t.Helper()
	v := new(packet.View)
	if fault := v.Parse(b); fault != drop.None {
		t.Fatalf("packet refused: %v", fault)
	}
	return v
}

// verify checks that v still says what its bytes say, and every checksum by
// plain recomputation.
func verify(t tester, v *packet.View) {
	t.Helper()
	if again := parse(t, v.B); again.Src != v.Src || again.Dst != v.Dst || again.SrcPort != v.SrcPort ||
		again.DstPort != v.DstPort || again.Kind != v.Kind || again.Transport != v.Transport {
		t.Fatalf("view says %+v, bytes say %+v", v, again)
	}
	if err := packettest.Verify(v.B, byte(v.Protocol), v.Transport); err != nil {
		t.Fatal(err)
	}
}

// rig is a table in the hands of a test.
type rig struct {
	testing.TB
	*Table
	now int64
}

func newRig(t testing.TB, c Config) *rig { return &rig{t, New(c), start} }

func (r *rig) assign(domain string, proxies, reals []netip.Addr) Assigned {
	r.Helper()
	return r.assignTo("res", domain, proxies, reals)
}

func (r *rig) assignTo(resource, domain string, proxies, reals []netip.Addr) Assigned {
	r.Helper()
	got, err := r.Assign(Assignment{resource, domain, proxies, reals})
	if err != nil {
		r.Fatal(err)
	}
	return got
}

// send takes a packet of the client through the table as a gateway does and
// returns it translated.
func (r *rig) send(b []byte) *packet.View {
	r.Helper()
	v := parse(r, b)
	if got := r.ToResource(v, r.now); got != Translated && got != NeedSession {
		r.Fatalf("to resource: %v", got)
	} else if got == NeedSession {
		if got := r.Open(v, r.now); got != Translated {
			r.Fatalf("open: %v", got)
		}
	}
	verify(r, v)
	return v
}

// sent is send for a plain packet, and returns where it goes and from which
// port.
func (r *rig) sent(kind packet.Kind, port uint16, proxy netip.Addr) (netip.Addr, uint16) {
	r.Helper()
	v := r.send(out(kind, port, proxy, ack))
	return v.Dst, v.SrcPort
}

// received takes a packet from the network through the table.
func (r *rig) received(b []byte) (*packet.View, Result) {
	r.Helper()
	v := parse(r, b)
	before := slices.Clone(b)
	got := r.ToClient(v, r.now)
	verify(r, v)
	if got != Translated && !slices.Equal(before, v.B) {
		r.Fatalf("%v packet was changed", got)
	}
	return v, got
}

func (r *rig) wantToClient(b []byte, want Result) {
	r.Helper()
	if _, got := r.received(b); got != want {
		r.Fatalf("to client: got %v, want %v", got, want)
	}
}

func (r *rig) wantToResource(b []byte, want Result) {
	r.Helper()
	v := parse(r, slices.Clone(b))
	if got := r.ToResource(v, r.now); got != want {
		r.Fatalf("to resource: got %v, want %v", got, want)
	}
	if want != Translated && !slices.Equal(b, v.B) {
		r.Fatalf("%v packet was changed", want)
	}
}

func (r *rig) wait(d time.Duration) { r.now += int64(d) }

// real returns what a proxy address is mapped to.
func (r *rig) real(proxy netip.Addr) netip.Addr {
	r.Helper()
	if m := r.Lookup(proxy); m != nil {
		return m.Real
	}
	r.Fatalf("%v is not mapped", proxy)
	return netip.Addr{}
}

// cross translates a packet that changes its family, as a gateway does.
func cross(v *packet.View, translate func(*packet.View, Crossing, int64) (int, Result), now int64) Result {
	buf := slices.Concat(make([]byte, packet.MaxGrowth), v.B)
	other := client4
	if !v.Is6() {
		other = client6
	}
	v.B = buf[packet.MaxGrowth:]
	_, got := translate(v, Crossing{Buf: buf, At: packet.MaxGrowth, Client: other}, now)
	return got
}

// answer turns a packet around: what the other end replies with.
func answer(b []byte) []byte {
	out := slices.Clone(b)
	at, size, transport := 12, 4, int(b[0]&15)*4
	protocol := packet.Protocol(b[9])
	if b[0]>>4 == 6 {
		var v packet.View
		v.Parse(out)
		at, size, transport, protocol = 8, 16, v.Transport, v.Protocol
	}
	copy(out[at:], b[at+size:at+2*size])
	copy(out[at+size:], b[at:at+size])
	if protocol == packet.TCP || protocol == packet.UDP {
		copy(out[transport:], b[transport+2:transport+4])
		copy(out[transport+2:], b[transport:transport+2])
	}
	return out
}

func word(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }

// tester is what tests, benchmarks and properties have in common.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}
