package packet

import (
	"encoding/binary"

	"firezone-gateway/internal/drop"
)

// Codes and types that only translation needs.
const (
	parameter6 = 4

	noRoute6, prohibited6, beyondScope6, noAddress6, noPort6 = 0, 1, 2, 3, 4

	netUnreachable4, hostUnreachable4, protocolUnreachable4, portUnreachable4 = 0, 1, 2, 3

	fragmentationNeeded4, sourceRouteFailed4          = 4, 5
	netUnknown4, hostUnknown4, hostIsolated4          = 6, 7, 8
	netProhibited4, hostProhibited4                   = 9, 10
	netUnreachableTOS4, hostUnreachableTOS4           = 11, 12
	prohibited4, precedenceViolation4, precedenceCut4 = 13, 14, 15

	badHeader6, unknownHeader6 = 0, 1 // of parameter6
	pointed4, badLength4       = 0, 2 // of parameter4
)

// translateError translates an ICMP error with the packet it quotes. buf[at:] is
// the packet; the new message is buf[head:end]. Nothing is changed unless fault is
// drop.None.
func (v *View) translateError(buf []byte, at int, to *Translation) (head, end int, fault drop.Reason) {
	t := v.B[v.Transport:]
	from6 := v.Is6()
	m, ok := errorHeader{t[0], t[1], binary.BigEndian.Uint32(t[4:])}.counterpart(from6)
	if !ok {
		return 0, 0, drop.NATUnsupported
	}
	quoted := t[icmpHeader:original(t, from6)]
	q, ok := parseQuote(quoted, from6)
	if !ok {
		return 0, 0, drop.NATUnsupported
	}
	h, length, fault := readQuoted(quoted, q.Transport, from6)
	if fault != drop.None {
		return 0, 0, fault
	}
	size := headerSize(!from6)
	rest := quoted[q.Transport:]
	if room := to.Limit - 2*size - icmpHeader; len(rest) > room {
		if room < icmpHeader {
			return 0, 0, drop.Oversize
		}
		rest = rest[:room]
	}
	transport := at + v.Transport + icmpHeader + q.Transport
	head, end = transport-size-icmpHeader, transport+len(rest)
	if head < size {
		return 0, 0, drop.Oversize
	}

	// From here on, what is written may lie over what was read.
	sum := fold(uint64(pseudo(v.Protocol, v.Src, v.Dst, len(t)).Bytes(t)))
	protocol := counterpart(q.Protocol)
	translateChecked(rest, q.Kind, removed(pseudo(q.Protocol, q.Src, q.Dst, length))+added(pseudo(protocol, to.Dst, to.Src, length)))
	h.write(buf[transport-size:], protocol, to.Dst, to.Src, length)
	t = buf[head:end]
	t[0], t[1], t[2], t[3] = m.typ, m.code, 0, 0
	binary.BigEndian.PutUint32(t[4:], m.rest)
	now := pseudo(counterpart(v.Protocol), to.Src, to.Dst, len(t)).Bytes(t)
	binary.BigEndian.PutUint16(t[2:], Delta(sum).Apply(now.Checksum()))
	return head, end, drop.None
}

// original returns where the quoted packet ends in the ICMP message t and
// extensions begin (RFC 4884 §4).
func original(t []byte, is6 bool) int {
	end := len(t)
	switch {
	case is6 && (t[0] == unreachable6 || t[0] == timeExceeded6):
		end = icmpHeader + int(t[4])*8
	case !is6 && (t[0] == unreachable4 || t[0] == timeExceeded4 || t[0] == parameter4):
		end = icmpHeader + int(t[5])*4
	}
	if end == icmpHeader || end > len(t) {
		return len(t)
	}
	return end
}

// readQuoted reads the header of a quoted packet and how many bytes it said that
// were behind it.
func readQuoted(q []byte, transport int, is6 bool) (h ipHeader, length int, fault drop.Reason) {
	if is6 {
		h, fault = readHeader6(q, transport)
		length = int(binary.BigEndian.Uint16(q[4:])) + ipv6Header - transport
	} else {
		h = readHeader4(q)
		length = int(binary.BigEndian.Uint16(q[2:])) - transport
	}
	if fault == drop.None && (length < 0 || length > 0xffff-ipv4MinHeader) {
		fault = drop.Malformed
	}
	return h, length, fault
}

// errorHeader is the header of an ICMP error without its checksum.
type errorHeader struct {
	typ, code byte
	rest      uint32
}

// counterpart returns the header in the other family. The result is false for
// what is left out.
func (e errorHeader) counterpart(from6 bool) (errorHeader, bool) {
	if from6 {
		return e.to4()
	}
	return e.to6()
}

// to6 follows RFC 7915 §4.2.
func (e errorHeader) to6() (errorHeader, bool) {
	switch e.typ {
	case unreachable4:
		switch e.code {
		case netUnreachable4, hostUnreachable4, sourceRouteFailed4, netUnknown4, hostUnknown4, hostIsolated4, netUnreachableTOS4, hostUnreachableTOS4:
			return errorHeader{unreachable6, noRoute6, 0}, true
		case protocolUnreachable4:
			const nextHeaderAt = 6
			return errorHeader{parameter6, unknownHeader6, nextHeaderAt}, true
		case portUnreachable4:
			return errorHeader{unreachable6, noPort6, 0}, true
		case fragmentationNeeded4:
			// The larger of 1280 and the smallest MTU around, of which one is that of
			// the tunnel, 1280.
			return errorHeader{packetTooBig6, 0, MaxSize}, true
		case netProhibited4, hostProhibited4, prohibited4, precedenceCut4:
			return errorHeader{unreachable6, prohibited6, 0}, true
		case precedenceViolation4: // has no counterpart, as what is unknown
		}
	case timeExceeded4:
		return errorHeader{timeExceeded6, e.code, 0}, true
	case parameter4:
		if pointer := e.rest >> 24; e.code == pointed4 || e.code == badLength4 {
			if at, ok := pointerTo6(pointer); ok {
				return errorHeader{parameter6, badHeader6, at}, true
			}
		}
	}
	return e, false
}

// to4 follows RFC 7915 §5.2.
func (e errorHeader) to4() (errorHeader, bool) {
	switch e.typ {
	case unreachable6:
		switch e.code {
		case noRoute6, beyondScope6, noAddress6:
			return errorHeader{unreachable4, hostUnreachable4, 0}, true
		case prohibited6:
			return errorHeader{unreachable4, hostProhibited4, 0}, true
		case noPort6:
			return errorHeader{unreachable4, portUnreachable4, 0}, true
		}
	case packetTooBig6:
		mtu := min(max(e.rest, leastMTU4+headerGap)-headerGap, MaxSize)
		return errorHeader{unreachable4, fragmentationNeeded4, mtu}, true
	case timeExceeded6:
		return errorHeader{timeExceeded4, e.code, 0}, true
	case parameter6:
		switch e.code {
		case badHeader6:
			if at, ok := pointerTo4(e.rest); ok {
				return errorHeader{parameter4, pointed4, at << 24}, true
			}
		case unknownHeader6:
			return errorHeader{unreachable4, protocolUnreachable4, 0}, true
		}
	}
	return e, false
}

// leastMTU4 is what every IPv4 link carries (RFC 791 §3.2).
const leastMTU4 = 68

// pointerTo6 translates the offset of a field of the IPv4 header (RFC 7915 figure
// 3).
func pointerTo6(at uint32) (uint32, bool) {
	switch {
	case at <= 1: // version, type of service
		return at, true
	case at <= 3: // length
		return 4, true
	case at == 8: // TTL
		return 7, true
	case at == 9: // protocol
		return 6, true
	case at >= 12 && at <= 15:
		return sourceAt6, true
	case at >= 16 && at <= 19:
		return destinationAt6, true
	}
	return 0, false
}

// pointerTo4 translates the offset of a field of the IPv6 header (RFC 7915 figure
// 6).
func pointerTo4(at uint32) (uint32, bool) {
	switch {
	case at <= 1: // version, traffic class
		return at, true
	case at == 4 || at == 5: // length
		return 2, true
	case at == 6: // next header
		return 9, true
	case at == 7: // hop limit
		return 8, true
	case at >= 8 && at <= 23:
		return sourceAt4, true
	case at >= 24 && at <= 39:
		return destinationAt4, true
	}
	return 0, false
}

// echoCounterpart returns the type of an echo message in the other family.
func echoCounterpart(typ byte) byte {
	switch typ {
	case echoRequest4:
		return echoRequest6
	case echoReply4:
		return echoReply6
	case echoRequest6:
		return echoRequest4
	}
	return echoReply4
}
