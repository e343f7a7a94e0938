package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum is an unfinished Internet checksum (RFC 1071): a one's-complement sum of
// big-endian 16-bit words. The zero value is an empty sum.
type Sum uint64

// Bytes returns the sum with b added. Unless it is the last piece, b must have
// an even length; an odd last byte counts as if followed by a zero.
func (s Sum) Bytes(b []byte) Sum {
	acc := uint64(s)
	var carry uint64
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:32]), carry)
		acc += carry
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(rest[:]), 0)
		acc += carry
	}
	return Sum(acc)
}

// PseudoHeader returns the sum with the pseudo header added that TCP, UDP and
// ICMPv6 cover (RFC 9293 §3.1, RFC 8200 §8.1). Both addresses are of one
// family, length is that of transport header and payload in bytes.
func (s Sum) PseudoHeader(src, dst netip.Addr, p Protocol, length int) Sum {
	tail := uint64(length) + uint64(p)
	acc, carry := bits.Add64(uint64(s), tail, 0)
	s = Sum(acc + carry)
	if src.Is4() {
		a, b := src.As4(), dst.As4()
		return s.Bytes(a[:]).Bytes(b[:])
	}
	a, b := src.As16(), dst.As16()
	return s.Bytes(a[:]).Bytes(b[:])
}

// Checksum folds the sum and returns its complement, the value of a checksum
// field. Over data that includes a correct field the result is 0.
func (s Sum) Checksum() uint16 {
	return ^fold(uint64(s))
}

// Delta collects changes to checksummed data so that a checksum field can be
// corrected without reading the rest (RFC 1624 equation 3). The zero value is
// no change, and the sum of two is both. It holds 2^28 changes.
type Delta uint64

// Word returns the delta with one aligned 16-bit word changed.
func (d Delta) Word(from, to uint16) Delta {
	return d + Delta(^from) + Delta(to)
}

// Addr returns the delta with one address changed to another one of the same
// family. It adds 32 bits at a time, which folds to the same checksum.
func (d Delta) Addr(from, to netip.Addr) Delta {
	if from.Is4() {
		f, t := from.As4(), to.As4()
		return d + Delta(^binary.BigEndian.Uint32(f[:])) + Delta(binary.BigEndian.Uint32(t[:]))
	}
	f, t := from.As16(), to.As16()
	return d + halves(^binary.BigEndian.Uint64(f[:8])) + halves(^binary.BigEndian.Uint64(f[8:])) +
		halves(binary.BigEndian.Uint64(t[:8])) + halves(binary.BigEndian.Uint64(t[8:]))
}

// Apply returns the checksum field corrected by d. It never returns 0: 0xffff
// stands for the same value, verifies in every case, and does not mean "no
// checksum" in UDP (dataplane §1.4).
func (d Delta) Apply(field uint16) uint16 {
	sum := ^fold(uint64(^field) + uint64(d))
	if sum == 0 {
		return 0xffff
	}
	return sum
}

func halves(x uint64) Delta { return Delta(x>>32) + Delta(uint32(x)) }

// ValidChecksums reports whether the IPv4 header checksum and the checksum of
// TCP, UDP, ICMP or ICMPv6 are right. A UDP checksum of 0 over IPv4 counts as
// right, as does the absence of a checksum that is understood.
func (v *View) ValidChecksums() bool {
	is6 := v.Is6()
	if !is6 {
		header := int(v.B[0]&0x0f) * 4
		if Sum(0).Bytes(v.B[:header]).Checksum() != 0 {
			return false
		}
	}
	t := v.B[v.Transport:]
	switch v.Protocol {
	case ICMP:
		return Sum(0).Bytes(t).Checksum() == 0
	case UDP:
		if !is6 && binary.BigEndian.Uint16(t[6:8]) == 0 {
			return true
		}
	case TCP, ICMPv6:
	default:
		return true
	}
	return Sum(0).PseudoHeader(v.Src, v.Dst, v.Protocol, len(t)).Bytes(t).Checksum() == 0
}

// checksumField returns the offset in B of the transport checksum, or 0 when
// there is none to keep right: an opaque protocol, or UDP without checksum.
func (v *View) checksumField() int {
	switch v.Protocol {
	case TCP:
		return v.Transport + 16
	case UDP:
		if at := v.Transport + 6; binary.BigEndian.Uint16(v.B[at:]) != 0 {
			return at
		}
	case ICMP, ICMPv6:
		return v.Transport + 2
	}
	return 0
}

func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}
