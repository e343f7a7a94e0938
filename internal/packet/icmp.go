package packet

import (
	"encoding/binary"
	"net/netip"

	"firezone-gateway/internal/drop"
)

// ICMP message types used by this package (RFC 792, RFC 4443).
const (
	echoReply4       = 0
	unreachable4     = 3
	sourceQuench4    = 4
	redirect4        = 5
	echoRequest4     = 8
	timeExceeded4    = 11
	parameter4       = 12
	unreachable6     = 1
	packetTooBig6    = 2
	timeExceeded6    = 3
	firstInfo6       = 128 // smaller types are errors
	echoRequest6     = 128
	echoReply6       = 129
	redirect6        = 137
	quotedPortsBytes = 4 // of a quoted TCP or UDP header: both ports
)

// Quote describes the packet that an ICMP error quotes, as far as the quote
// goes. Offsets count from the start of the packet that carries the error.
type Quote struct {
	Src, Dst         netip.Addr
	Protocol         Protocol
	Kind             Kind // KindTCP, KindUDP or KindEcho (then an echo request)
	Header           int  // offset of the quoted IP header
	Transport        int  // offset of the quoted transport header
	SrcPort, DstPort uint16
}

// Quote returns what the ICMP error v quotes. The result is false unless
// v.Kind is KindICMPError.
func (v *View) Quote() (Quote, bool) {
	if v.Kind != KindICMPError {
		return Quote{}, false
	}
	at := v.Transport + icmpHeader
	q, ok := parseQuote(v.B[at:], v.Is6())
	q.Header += at
	q.Transport += at
	return q, ok
}

// classifyICMP sets the kind for the ICMP message t, which has at least its
// eight-byte header.
func (v *View) classifyICMP(t []byte) {
	v.Kind = KindICMPOther
	switch is6 := v.Protocol == ICMPv6; {
	case isEcho(t, is6):
		v.Kind = KindEcho
		v.SrcPort = binary.BigEndian.Uint16(t[4:6])
		v.DstPort = v.SrcPort
	case quotes(t[0], is6):
		if _, ok := parseQuote(t[icmpHeader:], is6); ok {
			v.Kind = KindICMPError
		}
	}
}

// isEcho reports whether the ICMP message t is an echo request or reply. Any
// code other than 0 makes it an unknown message (dataplane §1.3).
func isEcho(t []byte, is6 bool) bool {
	if t[1] != 0 {
		return false
	}
	if is6 {
		return t[0] == echoRequest6 || t[0] == echoReply6
	}
	return t[0] == echoRequest4 || t[0] == echoReply4
}

// quotes reports whether messages of that type quote a packet that failed and
// are supported. All codes are (dataplane §1.7).
func quotes(typ byte, is6 bool) bool {
	if is6 {
		return typ == unreachable6 || typ == packetTooBig6 || typ == timeExceeded6
	}
	return typ == unreachable4 || typ == timeExceeded4
}

// parseQuote reads the quoted packet q, which may be cut short anywhere after
// the first bytes of its transport header. Its own length fields are ignored:
// they describe the packet before it was cut. A fragment other than the first
// has no transport header and is refused.
func parseQuote(q []byte, is6 bool) (Quote, bool) {
	var r Quote
	if is6 {
		if len(q) < ipv6Header || q[0]>>4 != 6 {
			return r, false
		}
		p, off, reason := walkExtensions(q, notFirst)
		if reason != drop.None || p == ICMP {
			return r, false
		}
		r.Src = netip.AddrFrom16([16]byte(q[8:24]))
		r.Dst = netip.AddrFrom16([16]byte(q[24:40]))
		r.Protocol, r.Transport = p, off
	} else {
		if len(q) < ipv4MinHeader || q[0]>>4 != 4 {
			return r, false
		}
		header := int(q[0]&0x0f) * 4
		const offset = 0x1fff
		if header < ipv4MinHeader || header > len(q) || binary.BigEndian.Uint16(q[6:8])&offset != 0 {
			return r, false
		}
		r.Src = netip.AddrFrom4([4]byte(q[12:16]))
		r.Dst = netip.AddrFrom4([4]byte(q[16:20]))
		r.Protocol, r.Transport = Protocol(q[9]), header
		if r.Protocol == ICMPv6 {
			return r, false
		}
	}
	return r, r.readTransport(q[r.Transport:], is6)
}

// readTransport fills in kind and ports from the quoted transport header t.
func (q *Quote) readTransport(t []byte, is6 bool) bool {
	switch q.Protocol {
	case TCP:
		q.Kind = KindTCP
	case UDP:
		q.Kind = KindUDP
	case ICMP, ICMPv6:
		if len(t) < icmpHeader || !isEcho(t, is6) || t[0] == echoReply4 || t[0] == echoReply6 {
			return false
		}
		q.Kind = KindEcho
		q.SrcPort = binary.BigEndian.Uint16(t[4:6])
		q.DstPort = q.SrcPort
		return true
	default:
		return false
	}
	if len(t) < quotedPortsBytes {
		return false
	}
	q.SrcPort = binary.BigEndian.Uint16(t[0:2])
	q.DstPort = binary.BigEndian.Uint16(t[2:4])
	return true
}

// isICMPErrorType reports whether v is an ICMP error or redirect by its type
// alone, whatever it quotes. Such messages are never answered (RFC 1122
// §3.2.2, RFC 4443 §2.4 e).
func (v *View) isICMPErrorType() bool {
	switch v.Protocol {
	case ICMP:
		switch v.B[v.Transport] {
		case unreachable4, sourceQuench4, redirect4, timeExceeded4, parameter4:
			return true
		}
	case ICMPv6:
		typ := v.B[v.Transport]
		return typ < firstInfo6 || typ == redirect6
	}
	return false
}
