package nat

import (
	"encoding/binary"
	"net/netip"

	"firezone-gateway/internal/packet"
)

// errorTTL is the TTL and hop limit of ICMP errors made by the gateway.
const errorTTL = 20

// Offsets in the headers that are edited.
const (
	ipv4ChecksumAt    = 10
	ipv4DestinationAt = 16
	ipv6DestinationAt = 24
	icmpChecksumAt    = 2
	echoIdentifierAt  = 4
)

// restoreQuote makes the packet that the ICMP error v quotes the one that the
// client sent, as far as it is quoted: its destination and its source port or
// identifier, the quoted checksums of the IPv4 header and of the transport
// header, and with them the checksum of v.
func restoreQuote(v *packet.View, q *packet.Quote, dst netip.Addr, port uint16) {
	e := edit{b: v.B}

	address := packet.Delta(0).Addr(q.Dst, dst)
	if dst.Is4() {
		a := dst.As4()
		e.words(q.Header+ipv4DestinationAt, a[:])
		e.correct(q.Header+ipv4ChecksumAt, address)
	} else {
		a := dst.As16()
		e.words(q.Header+ipv6DestinationAt, a[:])
	}

	at := q.Transport
	if q.Kind == packet.KindEcho {
		at += echoIdentifierAt
	}
	transport := packet.Delta(0).Word(q.SrcPort, port)
	e.word(at, port)
	// ICMPv4 is the one transport without a pseudo header.
	if q.Protocol != packet.ICMP {
		transport += address
	}
	e.correct(quotedChecksum(v.B, q), transport)

	sum := v.B[v.Transport+icmpChecksumAt:]
	binary.BigEndian.PutUint16(sum, e.delta.Apply(binary.BigEndian.Uint16(sum)))
}

// quotedChecksum returns the offset of the quoted transport checksum, 0 if the
// quote ends before it or the packet had none.
func quotedChecksum(b []byte, q *packet.Quote) int {
	at := q.Transport + icmpChecksumAt
	switch q.Kind {
	case packet.KindTCP:
		at = q.Transport + 16
	case packet.KindUDP:
		at = q.Transport + 6
	}
	if at+2 > len(b) || q.Kind == packet.KindUDP && b[at]|b[at+1] == 0 {
		return 0
	}
	return at
}

// makeError gives the ICMP error v the IP header of a message that the gateway
// made itself: from src, whoever reported the error (dataplane §3.7).
func makeError(v *packet.View, src netip.Addr) {
	v.SetSource(src)
	if v.Is6() {
		binary.BigEndian.PutUint32(v.B, 6<<28) // no traffic class, no flow label
		v.B[7] = errorTTL
		return
	}
	v.B[1] = 0                              // traffic class
	binary.BigEndian.PutUint32(v.B[4:8], 0) // identification and flags
	v.B[8] = errorTTL
	header := v.B[:int(v.B[0]&0x0f)*4]
	sum := header[ipv4ChecksumAt:]
	binary.BigEndian.PutUint16(sum, 0)
	binary.BigEndian.PutUint16(sum, packet.Sum(0).Bytes(header).Checksum())
}

// edit changes aligned 16-bit words and collects the changes for the checksum
// that covers them.
type edit struct {
	b     []byte
	delta packet.Delta
}

func (e *edit) word(at int, to uint16) {
	e.delta = e.delta.Word(binary.BigEndian.Uint16(e.b[at:]), to)
	binary.BigEndian.PutUint16(e.b[at:], to)
}

func (e *edit) words(at int, to []byte) {
	for i := 0; i < len(to); i += 2 {
		e.word(at+i, binary.BigEndian.Uint16(to[i:]))
	}
}

// correct applies d to the checksum at offset at, unless that is 0.
func (e *edit) correct(at int, d packet.Delta) {
	if at != 0 {
		e.word(at, d.Apply(binary.BigEndian.Uint16(e.b[at:])))
	}
}
