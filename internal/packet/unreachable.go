package packet

import (
	"encoding/binary"
	"net/netip"
)

// Unreachable selects one of the two ICMP answers that a gateway gives
// (dataplane §2.4). The zero value is no answer.
type Unreachable uint8

const (
	// Prohibited tells a client that its authorisation does not cover the
	// packet: ICMP 3/13, ICMPv6 1/1. Clients react by asking the portal again.
	Prohibited Unreachable = iota + 1
	// NoRoute tells a client that the destination cannot be reached although
	// it may be authorised: ICMP 3/0, ICMPv6 1/3.
	NoRoute
)

// String returns the name of the answer.
func (u Unreachable) String() string {
	switch u {
	case 0:
		return "none"
	case Prohibited:
		return "prohibited"
	case NoRoute:
		return "no_route"
	}
	return "invalid"
}

const (
	answerTTL     = 20
	quotedPayload = 8 // bytes of IPv4 payload that an answer quotes
)

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// AppendUnreachable appends the ICMP answer u to the packet v and returns the
// extended slice: at most 96 bytes for IPv4, at most MaxSize for IPv6. It
// allocates only if dst lacks room. dst must not overlap v.B.
//
// The answer comes from the packet's destination, goes to its source, and
// quotes the IPv4 header with eight bytes, or as much of an IPv6 packet as
// fits. dst is returned as it was if u is not one of the two answers, or if
// the packet must not be answered (RFC 1122 §3.2.2, RFC 4443 §2.4 e): an ICMP
// error or redirect, a destination that is multicast or broadcast, a source
// that is not one host.
func AppendUnreachable(dst []byte, v *View, u Unreachable) []byte {
	if (u != Prohibited && u != NoRoute) || !v.answerable() {
		return dst
	}
	if v.Is6() {
		return appendUnreachable6(dst, v, u)
	}
	code := byte(prohibited4)
	if u == NoRoute {
		code = netUnreachable4
	}
	return appendUnreachable4(dst, v, code, 0)
}

// AppendFragmentationNeeded appends the ICMP message that tells the sender of the
// IPv4 packet v to send at most mtu bytes, like AppendUnreachable. dst is returned
// as it was if v may be fragmented, or is IPv6.
func AppendFragmentationNeeded(dst []byte, v *View, mtu uint16) []byte {
	if v.Is6() || binary.BigEndian.Uint16(v.B[6:])&dontFragment == 0 || !v.answerable() {
		return dst
	}
	return appendUnreachable4(dst, v, fragmentationNeeded4, mtu)
}

func (v *View) answerable() bool {
	return !v.isICMPErrorType() &&
		!v.Dst.IsMulticast() && v.Dst != broadcast4 &&
		!v.Src.IsMulticast() && v.Src != broadcast4 && !v.Src.IsUnspecified()
}

func appendUnreachable4(dst []byte, v *View, code byte, mtu uint16) []byte {
	quote := v.B[:min(v.Transport+quotedPayload, len(v.B))]
	start := len(dst)
	dst = append(dst,
		0x45, 0, 0, 0, // version and header length, DSCP, total length
		0, 0, 0, 0, // identification, flags
		answerTTL, byte(ICMP), 0, 0)
	dst = append(dst, v.B[destinationAt4:destinationAt4+4]...)
	dst = append(dst, v.B[sourceAt4:sourceAt4+4]...)
	dst = append(dst, unreachable4, code, 0, 0, 0, 0, byte(mtu>>8), byte(mtu))
	dst = append(dst, quote...)

	p := dst[start:]
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[checksumAt4:], Sum(0).Bytes(p[:ipv4MinHeader]).Checksum())
	icmp := p[ipv4MinHeader:]
	binary.BigEndian.PutUint16(icmp[2:], Sum(0).Bytes(icmp).Checksum())
	return dst
}

func appendUnreachable6(dst []byte, v *View, u Unreachable) []byte {
	code := byte(prohibited6)
	if u == NoRoute {
		code = noAddress6
	}
	quote := v.B[:min(MaxSize-ipv6Header-icmpHeader, len(v.B))]
	length := icmpHeader + len(quote)
	start := len(dst)
	dst = append(dst, 0x60, 0, 0, 0, byte(length>>8), byte(length), byte(ICMPv6), answerTTL)
	dst = append(dst, v.B[destinationAt6:destinationAt6+16]...)
	dst = append(dst, v.B[sourceAt6:sourceAt6+16]...)
	dst = append(dst, unreachable6, code, 0, 0, 0, 0, 0, 0)
	dst = append(dst, quote...)

	icmp := dst[start+ipv6Header:]
	sum := Sum(0).PseudoHeader(v.Dst, v.Src, ICMPv6, length).Bytes(icmp).Checksum()
	binary.BigEndian.PutUint16(icmp[2:], sum)
	return dst
}
