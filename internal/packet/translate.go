package packet

import (
	"encoding/binary"
	"net/netip"

	"firezone-gateway/internal/drop"
)

// MaxGrowth bounds by how many bytes Translate makes a packet longer: each of
// two IPv6 headers is 20 bytes longer than an IPv4 header, that of the packet
// and, in an ICMP error, that of the packet it quotes.
const MaxGrowth = 2 * headerGap

const headerGap = ipv6Header - ipv4MinHeader

// Translation says what Translate makes of a packet.
type Translation struct {
	// Src and Dst are the new addresses, both of the other family. The packet
	// that an ICMP error quotes gets them the other way round.
	Src, Dst netip.Addr
	ID       uint16 // identification of an IPv4 packet that had none as IPv6
	Limit    int    // size in bytes that the result must not exceed
}

// Translate makes an IPv4 packet an IPv6 packet or the other way round, by the
// IP/ICMP Translation Algorithm (RFC 7915, which includes the errata of RFC
// 6145). buf[at:] is the packet, v.B. The payload stays in its place and the
// headers before it are replaced, so the packet begins at buf[start:]
// afterwards, up to MaxGrowth bytes before at, or behind it; v is the view of
// that.
//
// Fields are treated as the RFC says, with these particulars:
//
//   - TTL and hop limit stay: the kernel forwards the packet before or after, and
//     one gateway is one hop.
//   - IPv4 options and the IPv6 extension headers that the RFC names are left
//     out. Other extension headers and source routes that are not at their end
//     are refused.
//   - Checksums are corrected, so that a wrong one stays wrong. A UDP packet
//     without checksum gets one as IPv6. Since an IPv6 header has none, the IPv4
//     header checksum must be right.
//   - An ICMP error loses its extensions (RFC 4884), and of the quoted packet what
//     exceeds the limit. Afterwards its kind is KindICMPError, whatever its type.
//
// It returns drop.None, or, with nothing changed, drop.Malformed for a wrong IPv4
// header, drop.Oversize if the result exceeds the limit or lacks room before at,
// or drop.NATUnsupported for what has no counterpart in the other family. It
// never panics and never allocates.
func (v *View) Translate(buf []byte, at int, to *Translation) (start int, fault drop.Reason) {
	to6 := !v.Is6()
	if to.Src.Is6() != to6 || to.Dst.Is6() != to6 {
		return at, drop.NATUnsupported
	}
	h, fault := v.readHeader()
	if fault != drop.None {
		return at, fault
	}
	size := headerSize(to6)
	head, end := at+v.Transport, at+len(v.B)
	switch v.Kind {
	case KindTCP, KindUDP, KindEcho:
		if size+end-head > to.Limit || head < size {
			return at, drop.Oversize
		}
		v.translateTransport(to)
	case KindICMPError, KindICMPOther:
		head, end, fault = v.translateError(buf, at, to)
		if fault != drop.None {
			return at, fault
		}
		v.Kind = KindICMPError
	default:
		return at, drop.NATUnsupported
	}
	start = head - size
	h.id = identification{to.ID, false}.or(h.id)
	v.B, v.Transport, v.Protocol = buf[start:end], size, counterpart(v.Protocol)
	v.Src, v.Dst = to.Src, to.Dst
	h.write(v.B, v.Protocol, v.Src, v.Dst, end-head)
	return start, drop.None
}

// translateTransport corrects the checksum of TCP, UDP and echo messages, and
// the type of the latter.
func (v *View) translateTransport(to *Translation) {
	t := v.B[v.Transport:]
	if v.Kind == KindUDP && t[6]|t[7] == 0 {
		if to.Src.Is6() {
			sum := pseudo(UDP, to.Src, to.Dst, len(t)).Bytes(t)
			binary.BigEndian.PutUint16(t[6:], Delta(0).Apply(sum.Checksum()))
		}
		return
	}
	d := removed(pseudo(v.Protocol, v.Src, v.Dst, len(t))) + added(pseudo(counterpart(v.Protocol), to.Src, to.Dst, len(t)))
	translateChecked(t, v.Kind, d)
}

// translateChecked corrects the checksum in the transport header t, which may be
// cut short, for a pseudo header that changed by d, and the type of an echo
// message.
func translateChecked(t []byte, k Kind, d Delta) {
	at := 2
	switch k {
	case KindTCP:
		at = 16
	case KindUDP:
		at = 6
	case KindEcho:
		from := binary.BigEndian.Uint16(t)
		t[0] = echoCounterpart(t[0])
		d = d.Word(from, binary.BigEndian.Uint16(t))
	}
	if at+2 > len(t) || k == KindUDP && t[at]|t[at+1] == 0 {
		return
	}
	binary.BigEndian.PutUint16(t[at:], d.Apply(binary.BigEndian.Uint16(t[at:])))
}

// ipHeader is what survives of an IP header in translation, apart from what
// Translation has.
type ipHeader struct {
	class, hops byte
	id          identification
}

// identification is that of a fragment header, if there was one. Such a packet
// may be fragmented again (RFC 7915 §5.1.1).
type identification struct {
	value uint16
	given bool
}

func (i identification) or(other identification) identification {
	if other.given {
		return other
	}
	return i
}

// readHeader reads the header of the packet.
func (v *View) readHeader() (ipHeader, drop.Reason) {
	if v.Is6() {
		return readHeader6(v.B, v.Transport)
	}
	if Sum(0).Bytes(v.B[:v.Transport]).Checksum() != 0 {
		return ipHeader{}, drop.Malformed
	}
	for o := v.B[ipv4MinHeader:v.Transport]; len(o) > 0 && o[0] != optionEnd; {
		if o[0] == optionNone {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return ipHeader{}, drop.Malformed
		}
		// The third byte points to the address of the next hop, behind the last of
		// them at the end of the route (RFC 791 §3.1).
		if (o[0] == optionLooseRoute || o[0] == optionStrictRoute) && (o[1] < 3 || o[2] <= o[1]) {
			return ipHeader{}, drop.NATUnsupported
		}
		o = o[o[1]:]
	}
	return readHeader4(v.B), drop.None
}

// Types of IPv4 options (RFC 791 §3.1).
const (
	optionEnd         = 0
	optionNone        = 1
	optionLooseRoute  = 131
	optionStrictRoute = 137
)

func readHeader4(b []byte) ipHeader { return ipHeader{class: b[1], hops: b[8]} }

// readHeader6 reads the header of b, whose extension headers, up to transport,
// were walked before.
func readHeader6(b []byte, transport int) (ipHeader, drop.Reason) {
	h := ipHeader{class: b[0]<<4 | b[1]>>4, hops: b[7]}
	p := Protocol(b[6])
	for off := ipv6Header; off < transport; {
		x := b[off:]
		size := 8
		switch p {
		case fragment:
			h.id = identification{binary.BigEndian.Uint16(x[6:]), true}
		case routing:
			if segmentsLeft := x[3]; segmentsLeft != 0 {
				return h, drop.NATUnsupported
			}
			size += int(x[1]) * 8
		case hopByHop, destination:
			size += int(x[1]) * 8
		default:
			return h, drop.NATUnsupported
		}
		p = Protocol(x[0])
		off += size
	}
	return h, drop.None
}

// write writes the header of a packet with n bytes behind it to b. The family is
// that of the addresses.
func (h *ipHeader) write(b []byte, p Protocol, src, dst netip.Addr, n int) {
	if src.Is6() {
		binary.BigEndian.PutUint32(b, 6<<28|uint32(h.class)<<20)
		binary.BigEndian.PutUint16(b[4:], uint16(n))
		b[6], b[7] = byte(p), h.hops
		s, d := src.As16(), dst.As16()
		copy(b[sourceAt6:], s[:])
		copy(b[destinationAt6:], d[:])
		return
	}
	// What may become too large for an IPv6 link on its way must not be fragmented
	// (RFC 7915 §5.1).
	flags := uint16(0)
	if n += ipv4MinHeader; n > MaxSize-headerGap && !h.id.given {
		flags = dontFragment
	}
	b[0], b[1] = 0x45, h.class
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	binary.BigEndian.PutUint16(b[4:], h.id.value)
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9], b[10], b[11] = h.hops, byte(p), 0, 0
	s, d := src.As4(), dst.As4()
	copy(b[sourceAt4:], s[:])
	copy(b[destinationAt4:], d[:])
	binary.BigEndian.PutUint16(b[checksumAt4:], Sum(0).Bytes(b[:ipv4MinHeader]).Checksum())
}

const dontFragment = 0x4000

func headerSize(is6 bool) int {
	if is6 {
		return ipv6Header
	}
	return ipv4MinHeader
}

// counterpart returns the protocol that takes the part of p in the other family.
func counterpart(p Protocol) Protocol {
	switch p {
	case ICMP:
		return ICMPv6
	case ICMPv6:
		return ICMP
	}
	return p
}

// pseudo returns the sum of the pseudo header that p covers; ICMP has none.
func pseudo(p Protocol, src, dst netip.Addr, n int) Sum {
	if p == ICMP {
		return 0
	}
	return Sum(0).PseudoHeader(src, dst, p, n)
}

// added and removed are the changes of a checksum for data that came or went.
func added(s Sum) Delta   { return Delta(^s.Checksum()) }
func removed(s Sum) Delta { return Delta(s.Checksum()) }
