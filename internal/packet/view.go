package packet

import (
	"encoding/binary"
	"net/netip"

	"firezone-gateway/internal/drop"
)

const (
	ipv4MinHeader = 20
	ipv6Header    = 40
	udpHeader     = 8
	tcpMinHeader  = 20
	icmpHeader    = 8
)

// View is the parsed form of one packet. It borrows the packet's bytes and is
// valid as long as they are. A View is reused by calling Parse again; it must
// not be used by two goroutines at a time.
type View struct {
	B         []byte     // the packet, exactly as long as its IP header says
	Src, Dst  netip.Addr // never carry a zone; an IPv4-mapped address stays IPv6
	Protocol  Protocol   // the protocol at Transport
	Kind      Kind       // what filters and NAT can do with it
	Transport int        // offset in B of the first byte after IP header, options and extension headers

	// SrcPort and DstPort are the ports of TCP and UDP. For an echo message
	// both are its identifier. Otherwise they are 0.
	SrcPort, DstPort uint16
}

// Parse points v at the packet b and checks it by dataplane §1.2: lenient about
// protocols that are not understood, strict about every length that a filter or
// a rewrite relies on. It returns drop.None, or drop.Malformed, drop.Fragment
// or drop.Oversize, after which the contents of v mean nothing.
//
// b must end where the packet ends: padding that WireGuard adds is removed
// before. Checksums are not verified. Parse keeps b, never writes to it, never
// panics and never allocates.
func (v *View) Parse(b []byte) drop.Reason {
	if len(b) > MaxSize {
		return drop.Oversize
	}
	if len(b) < ipv4MinHeader {
		return drop.Malformed
	}
	v.B, v.SrcPort, v.DstPort = b, 0, 0
	switch b[0] >> 4 {
	case 4:
		return v.parse4(b)
	case 6:
		return v.parse6(b)
	}
	return drop.Malformed
}

// Is6 reports whether the packet is IPv6.
func (v *View) Is6() bool { return v.B[0]>>4 == 6 }

func (v *View) parse4(b []byte) drop.Reason {
	header := int(b[0]&0x0f) * 4
	if header < ipv4MinHeader || header > len(b) || int(binary.BigEndian.Uint16(b[2:4])) != len(b) {
		return drop.Malformed
	}
	const moreAndOffset = 0x3fff
	if binary.BigEndian.Uint16(b[6:8])&moreAndOffset != 0 {
		return drop.Fragment
	}
	v.Src = netip.AddrFrom4([4]byte(b[12:16]))
	v.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	v.Protocol, v.Transport = Protocol(b[9]), header
	if v.Protocol == ICMPv6 {
		return drop.Malformed
	}
	return v.parseTransport(b[header:])
}

func (v *View) parse6(b []byte) drop.Reason {
	if len(b) < ipv6Header || int(binary.BigEndian.Uint16(b[4:6]))+ipv6Header != len(b) {
		return drop.Malformed
	}
	v.Src = netip.AddrFrom16([16]byte(b[8:24]))
	v.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	p, off, reason := walkExtensions(b, notAtomic)
	if reason != drop.None {
		return reason
	}
	v.Protocol, v.Transport = p, off
	if p == ICMP {
		return drop.Malformed
	}
	return v.parseTransport(b[off:])
}

// parseTransport classifies the packet by its transport header; t is the rest
// of the packet from there on.
func (v *View) parseTransport(t []byte) drop.Reason {
	switch v.Protocol {
	case TCP:
		if len(t) < tcpMinHeader {
			return drop.Malformed
		}
		if header := int(t[12]>>4) * 4; header < tcpMinHeader || header > len(t) {
			return drop.Malformed
		}
		v.Kind = KindTCP
	case UDP:
		if len(t) < udpHeader || int(binary.BigEndian.Uint16(t[4:6])) != len(t) {
			return drop.Malformed
		}
		v.Kind = KindUDP
	case ICMP, ICMPv6:
		if len(t) < icmpHeader {
			return drop.Malformed
		}
		v.classifyICMP(t)
		return drop.None
	default:
		v.Kind = KindOther
		return drop.None
	}
	v.SrcPort = binary.BigEndian.Uint16(t[0:2])
	v.DstPort = binary.BigEndian.Uint16(t[2:4])
	return drop.None
}

// Bits of the fragment header's offset field that must be zero.
const (
	notAtomic uint16 = 0xfff9 // offset and the "more" bit: only atomic fragments pass (RFC 6946)
	notFirst  uint16 = 0xfff8 // offset alone: first fragments pass too
)

// walkExtensions finds the first header of the IPv6 packet b that is not an
// extension header and returns its protocol and offset. Length fields of the
// fixed header are not looked at; b must hold the whole fixed header. The
// number of steps is bounded by len(b)/8.
func walkExtensions(b []byte, fragmentMask uint16) (Protocol, int, drop.Reason) {
	p, off := Protocol(b[6]), ipv6Header
	for {
		switch p {
		case hopByHop, routing, fragment, destination, mobility, hostIdentity, shim6, experiment1, experiment2:
		default:
			return p, off, drop.None
		}
		if len(b)-off < 8 {
			return p, off, drop.Malformed
		}
		size := 8
		if p != fragment {
			size += int(b[off+1]) * 8
		} else if binary.BigEndian.Uint16(b[off+2:off+4])&fragmentMask != 0 {
			return p, off, drop.Fragment
		}
		p, off = Protocol(b[off]), off+size
		if off > len(b) {
			return p, off, drop.Malformed
		}
	}
}
