package packet

import (
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/packet/packettest"
)

// verifiers check the checksums of a packet. They share no code with this
// package nor with each other.
var verifiers = []func(p []byte, protocol byte, transport int) error{packettest.Verify}

func verify(t *testing.T, what string, p []byte, protocol Protocol, transport int) {
	t.Helper()
	for i, f := range verifiers {
		if err := f(p, byte(protocol), transport); err != nil {
			t.Fatalf("%s: verifier %d: %v, %x", what, i, err, p)
		}
	}
}

// shape selects what FuzzBuild builds.
type shape uint16

const (
	buildTCP shape = iota
	buildUDP
	buildUnsummed
	buildPing
	buildPong
	buildError
	buildMessage
	buildOpaque

	buildKinds        = 8
	build6      shape = 1 << 3
	buildLong   shape = 1 << 4 // with IPv4 options or IPv6 extension headers
	buildLonger shape = 3 << 5 // how many
	buildCut    shape = 1 << 7 // an error quotes the least it can
)

func (s shape) kind() shape { return s % buildKinds }
func (s shape) is6() bool   { return s&build6 != 0 }

// FuzzBuild builds packets of every kind out of the input, rewrites each of
// their fields to what else is in the input, and answers them. A rewritten packet
// is the one that would have been built with these fields.
func FuzzBuild(f *testing.F) { fuzzBuild(f) }

func TestHammerBuild(t *testing.T) { hammer.Test(t, "FuzzBuild", fuzzBuild) }

func fuzzBuild(f hammer.F) {
	addresses := slices.Concat(client6.AsSlice(), host6.AsSlice(), from6.Addr().AsSlice(), to6.Addr().AsSlice())
	for s := range shape(1 << 8) {
		if s&buildLong == 0 && s&buildLonger != 0 {
			continue
		}
		f.Add(uint16(s), addresses, uint64(0x1388_0035_ffff_0000), []byte("payload"))
	}
	f.Add(uint16(buildUDP), make([]byte, 64), uint64(0), []byte{})
	f.Add(uint16(buildUDP|build6), slices.Repeat([]byte{0xff}, 64), ^uint64(0), slices.Repeat([]byte{0xff}, 1001))
	f.Fuzz(func(t *testing.T, which uint16, addresses []byte, ports uint64, payload []byte) {
		s := shape(which)
		at := make([]byte, 64)
		copy(at, addresses)
		payload = payload[:min(len(payload), 1000)]
		from, to := s.address(at, 0), s.address(at, 1)
		sport, dport := uint16(ports>>48), uint16(ports>>32)
		if s.kind() == buildError {
			payload = s.quote(from, to, payload)
		}
		b := s.build(from, to, sport, dport, payload)

		var v View
		if r := v.Parse(b); r != drop.None {
			t.Fatalf("parse: %v, %x", r, b)
		}
		verify(t, "built", b, v.Protocol, v.Transport)
		if s.kind() != buildUnsummed && !v.ValidChecksums() {
			t.Fatalf("checksums count as wrong: %x", b)
		}
		checkView(t, &v, b)
		checkAnswer(t, &v)

		from, to = s.address(at, 2), s.address(at, 3)
		sport, dport = uint16(ports>>16), uint16(ports)
		if !v.SetSource(from) || !v.SetDestination(to) {
			t.Fatal("an address was refused")
		}
		if ported := s.kind() <= buildPong; v.SetSourcePort(sport) != ported || v.SetDestinationPort(dport) != ported {
			t.Fatal("ports are changed for TCP, UDP and echo only")
		}
		if s.kind() == buildPing || s.kind() == buildPong {
			sport = dport // both are the identifier
		}
		verify(t, "rewritten", b, v.Protocol, v.Transport)
		if want := s.build(from, to, sport, dport, payload); !equalButZero(b, want) {
			t.Fatalf("rewritten:\n%x, want\n%x", b, want)
		}
		checkView(t, &v, b)
		checkAnswer(t, &v)
	})
}

// address returns the i-th of the addresses in b.
func (s shape) address(b []byte, i int) netip.Addr {
	if s.is6() {
		return netip.AddrFrom16([16]byte(b[16*i:]))
	}
	return netip.AddrFrom4([4]byte(b[16*i:]))
}

// quote is what an error from src to dst quotes.
func (s shape) quote(src, dst netip.Addr, payload []byte) []byte {
	b := packettest.UDP(netip.AddrPortFrom(dst, 1), netip.AddrPortFrom(src, 2), payload)
	if s&buildCut != 0 {
		return b[:len(b)-len(payload)-4]
	}
	return b
}

func (s shape) build(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	from, to := netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	var b []byte
	switch s.kind() {
	case buildTCP:
		b = packettest.TCP(from, to, 0x12, payload)
	case buildUDP:
		b = packettest.UDP(from, to, payload)
	case buildUnsummed:
		b = packettest.UDP(from, to, payload)
		if !s.is6() {
			b[26], b[27] = 0, 0
		}
	case buildPing:
		b = packettest.Ping(src, dst, sport, payload)
	case buildPong:
		b = packettest.Pong(src, dst, sport, payload)
	case buildError:
		b = packettest.Unreachable(src, dst, payload)
	case buildMessage:
		b = packettest.ICMP(src, dst, 133, 1, 0, payload)
	case buildOpaque:
		b = packettest.IP(src, dst, 47, payload)
	}
	if s&buildLong == 0 {
		return b
	}
	n := 1 + int(s&buildLonger>>5)
	if !s.is6() {
		return packettest.Options4(b, make([]byte, 4*n))
	}
	var headers []byte
	for range n - 1 {
		headers = append(headers, 60, 0, 1, 4, 0, 0, 0, 0)
	}
	return packettest.Extend6(b, 60, append(headers, b[6], 0, 1, 4, 0, 0, 0, 0))
}

// equalButZero compares packets word by word, except that a checksum of 0 may be
// written in its other form, 0xffff.
func equalButZero(got, want []byte) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range got {
		at := i &^ 1
		zero := at+1 < len(want) && want[at]|want[at+1] == 0 && got[at]&got[at+1] == 0xff
		if got[i] != want[i] && !zero {
			return false
		}
	}
	return true
}
