package natbox

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	fragmentHeader = 44 // of IPv6
)

// Lengths of headers, in bytes.
const (
	minIPv4     = 20
	lenIPv6     = 40
	lenFragment = 8
	lenICMP     = 8
)

// view is the parsed form of one IP packet. For ICMP queries the identifier
// stands for the port of the private side, whichever that is, and the other
// port is 0.
type view struct {
	b        []byte
	protocol byte
	l4       int // offset of the transport header
	src, dst netip.AddrPort
	// icmpError is the offset of the packet that an ICMP error quotes; 0 for
	// everything else.
	icmpError int

	piece piece
	id    uint32 // that all pieces of a packet share
}

// piece says which part of a packet it is.
type piece uint8

const (
	whole piece = iota
	first       // with the transport header
	later       // without; the ports are 0
)

// parse checks the lengths that everything else relies on. With quoted set, b is
// what an ICMP error quotes: the beginning of a packet, of which eight bytes
// after the IP header must be there (RFC 792, RFC 4443 §3).
func parse(b []byte, quoted bool) (view, Verdict) {
	v := view{b: b}
	var verdict Verdict
	switch {
	case len(b) >= minIPv4 && b[0]>>4 == 4:
		verdict = v.parse4(quoted)
	case len(b) >= lenIPv6 && b[0]>>4 == 6:
		verdict = v.parse6(quoted)
	default:
		verdict = Malformed
	}
	switch {
	case verdict != Forward:
		return v, verdict
	case v.piece == later && quoted:
		return v, Unsupported
	case v.piece == later:
		return v, Forward
	}
	return v, v.parsePorts(quoted)
}

func (v *view) parse4(quoted bool) Verdict {
	b := v.b
	v.l4 = int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if v.l4 < minIPv4 || v.l4 > len(b) || total < v.l4 || (!quoted && total > len(b)) {
		return Malformed
	}
	if !quoted {
		v.b = b[:total]
	}
	fragment := binary.BigEndian.Uint16(b[6:])
	v.cut(fragment&0x1fff, fragment&0x2000 != 0, uint32(binary.BigEndian.Uint16(b[4:])))
	v.protocol = b[9]
	v.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
	v.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
	return Forward
}

func (v *view) parse6(quoted bool) Verdict {
	b := v.b
	v.l4 = lenIPv6
	total := lenIPv6 + int(binary.BigEndian.Uint16(b[4:]))
	if !quoted {
		if total > len(b) {
			return Malformed
		}
		v.b = b[:total]
	}
	v.protocol = b[6]
	if v.protocol == fragmentHeader {
		h := v.b[lenIPv6:]
		if len(h) < lenFragment {
			return Malformed
		}
		v.protocol, v.l4 = h[0], lenIPv6+lenFragment
		fragment := binary.BigEndian.Uint16(h[2:])
		v.cut(fragment>>3, fragment&1 != 0, binary.BigEndian.Uint32(h[4:]))
	}
	v.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
	v.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
	return Forward
}

// cut notes which piece of a packet this is.
func (v *view) cut(offset uint16, more bool, id uint32) {
	v.id = id
	switch {
	case offset != 0:
		v.piece = later
	case more:
		v.piece = first
	}
}

func (v *view) parsePorts(quoted bool) Verdict {
	need := 8 // a UDP header, an ICMP header, what errors quote at least
	if v.protocol == protoTCP && !quoted {
		need = 20
	}
	switch v.protocol {
	case protoTCP, protoUDP:
	case protoICMP, protoICMPv6:
		if (v.protocol == protoICMP) != v.is4() {
			return Unsupported
		}
	default:
		return Unsupported
	}
	t := v.b[v.l4:]
	if len(t) < need {
		return Malformed
	}
	if v.protocol == protoTCP || v.protocol == protoUDP {
		v.src = netip.AddrPortFrom(v.src.Addr(), binary.BigEndian.Uint16(t))
		v.dst = netip.AddrPortFrom(v.dst.Addr(), binary.BigEndian.Uint16(t[2:]))
		return Forward
	}
	id := binary.BigEndian.Uint16(t[4:])
	switch kind := t[0]; {
	case kind == v.echo(request):
		v.src = netip.AddrPortFrom(v.src.Addr(), id)
	case kind == v.echo(reply):
		v.dst = netip.AddrPortFrom(v.dst.Addr(), id)
	case v.isError(kind) && !quoted && v.piece == whole:
		v.icmpError = v.l4 + lenICMP
	default:
		return Unsupported
	}
	return Forward
}

func (v *view) is4() bool { return v.src.Addr().Is4() }

type query uint8

const (
	request query = iota
	reply
)

// echo returns the type number of an echo message.
func (v *view) echo(q query) byte {
	switch {
	case v.protocol == protoICMPv6:
		return 128 + byte(q)
	case q == request:
		return 8
	default:
		return 0
	}
}

// isError reports whether the type is one of those that quote a packet:
// unreachable, time exceeded, parameter problem, and packet too big.
func (v *view) isError(kind byte) bool {
	if v.protocol == protoICMPv6 {
		return kind >= 1 && kind <= 4
	}
	return kind == 3 || kind == 11 || kind == 12
}

// isQuery reports whether the packet is an echo request or reply.
func (v *view) isQuery() bool {
	return v.icmpError == 0 && (v.protocol == protoICMP || v.protocol == protoICMPv6)
}
