package tunnel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"firezone-gateway/internal/packet/packettest"
)

// kind is what a packet of the model test is.
type kind int

const (
	kindTCP kind = iota
	kindUDP
	kindEcho
	kindError   // an ICMP error that quotes a packet
	kindMessage // any other ICMP message
	kindOpaque  // another protocol
	kindControl // what a control packet looks like, if the addresses agree
)

// fault makes a packet one that nobody can parse.
type fault int

const (
	sound fault = iota
	truncated
	overlong
	fragmented
	versionless
	outsize
	misjudged // the transport header says another length than there is
	faults    // their number
)

// letter is a packet in words. The model changes the words, and the bytes that
// follow from them are compared with those of the real packet.
type letter struct {
	kind         kind
	src, dst     netip.Addr
	sport, dport uint16 // an echo message has its identifier in both
	reply        bool   // of an echo message
	flags        byte   // of TCP
	typ, code    byte   // of an error or another message
	protocol     byte   // of kindOpaque
	size         int    // of the payload in bytes
	quote        *letter
	quoted       int    // bytes of the quote
	mtu          uint32 // of an error, or what else is in the second half of its header
	ttl, tos     byte
	identified   bool // IPv4 has an identification
	unsummed     bool // UDP over IPv4 without a checksum
	extended     bool // with IPv4 options or an IPv6 extension header
	crossed      bool // changed its IP version, and if it is IPv4, its identification may be any
	fault        fault
}

func (l *letter) is6() bool { return l.src.Is6() }

func (l *letter) String() string {
	return fmt.Sprintf("{kind %d from %v:%d to %v:%d flags %#x type %d/%d fault %d quote %v}",
		l.kind, l.src, l.sport, l.dst, l.dport, l.flags, l.typ, l.code, l.fault, l.quote)
}

// bytes returns the packet.
func (l *letter) bytes() []byte {
	payload := make([]byte, l.size, 1300)
	for i := range payload {
		payload[i] = byte(i + 1)
	}
	if l.fault == outsize {
		payload = payload[:1281]
	}
	from, to := netip.AddrPortFrom(l.src, l.sport), netip.AddrPortFrom(l.dst, l.dport)
	var b []byte
	switch l.kind {
	case kindTCP:
		b = packettest.TCP(from, to, l.flags, payload)
	case kindUDP:
		b = packettest.UDP(from, to, payload)
		if l.unsummed && !l.is6() {
			b[26], b[27] = 0, 0
		} else if l.unsummed && l.crossed { // quoted
			b[46], b[47] = 0, 0
		}
	case kindEcho:
		b = packettest.Ping(l.src, l.dst, l.sport, payload)
		if l.reply {
			b = packettest.Pong(l.src, l.dst, l.sport, payload)
		}
	case kindError:
		b = packettest.ICMP(l.src, l.dst, l.typ, l.code, l.mtu, l.quote.bytes()[:l.quoted])
	case kindMessage:
		b = packettest.ICMP(l.src, l.dst, l.typ, l.code, 0, payload)
	case kindOpaque, kindControl:
		b = packettest.IP(l.src, l.dst, l.protocol, payload)
	}
	if l.extended {
		if l.is6() {
			b = packettest.Extend6(b, 60, []byte{b[6], 0, 1, 4, 0, 0, 0, 0})
		} else {
			b = packettest.Options4(b, []byte{1, 1, 1, 0})
		}
	}
	l.header(b)
	return l.spoil(b)
}

// head is the length of the IP header.
func (l *letter) head() int {
	n := 20 << family(l.src)
	if l.extended {
		n += 4 << family(l.src)
	}
	return n
}

// header writes the fields that the gateway must leave alone.
func (l *letter) header(b []byte) {
	if l.is6() {
		b[0], b[1] = 0x60|l.tos>>4, l.tos<<4
		b[7] = l.ttl
		return
	}
	b[1], b[8] = l.tos, l.ttl
	if l.identified {
		b[4], b[5], b[6] = 0x12, 0x34, 0x40
	}
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], packettest.Checksum(b[:int(b[0]&15)*4]))
}

func (l *letter) spoil(b []byte) []byte {
	switch l.fault {
	case misjudged:
		at := l.head()
		switch l.kind {
		case kindUDP:
			binary.BigEndian.PutUint16(b[at+4:], uint16(len(b)-at-1))
		case kindTCP:
			b[at+12] = 0x40
		default:
			return b[:len(b)-1]
		}
	case truncated:
		return b[:len(b)-1]
	case overlong:
		return append(b, 0)
	case versionless:
		b[0] = 0x50 | b[0]&15
	case fragmented:
		if !l.is6() {
			b[6] |= 0x20
			break
		}
		return packettest.Extend6(b, 44, []byte{b[6], 0, 0, 1, 0, 0, 0, 7})
	}
	return b
}

// about returns the ICMP error of a router about l, as far as it is quoted.
func (l *letter) about(router, dst netip.Addr, typ, code byte, quoted int) *letter {
	return &letter{
		kind: kindError, src: router, dst: dst, typ: typ, code: code, quote: l,
		quoted: min(quoted, len(l.bytes())), mtu: 1280, ttl: 55, tos: 4, identified: true,
	}
}

// answer returns the ICMP error of the gateway about l (dataplane §2.4), nil if
// there must be none (RFC 1122 §3.2.2, RFC 4443 §2.4 e).
func (l *letter) answer(code4, code6 byte) *letter {
	multicast := l.src.IsMulticast() || l.dst.IsMulticast()
	everyone := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	failure := l.kind == kindError || l.kind == kindMessage && l.complains()
	if failure || multicast || l.src.IsUnspecified() || l.src == everyone || l.dst == everyone {
		return nil
	}
	b := l.bytes()
	a := &letter{kind: kindError, src: l.dst, dst: l.src, ttl: 20, quote: l}
	if l.is6() {
		a.typ, a.code, a.quoted = 1, code6, min(len(b), 1280-48)
	} else {
		a.typ, a.code, a.quoted = 3, code4, min(len(b), int(b[0]&15)*4+8)
	}
	return a
}

// complains reports whether an ICMP message is an error or a redirect.
func (l *letter) complains() bool {
	if l.is6() {
		return l.typ < 128 || l.typ == 137
	}
	return slices.Contains([]byte{3, 4, 5, 11, 12}, l.typ)
}

// answerBytes are those of an answer, which says nothing in the second half of
// the ICMP header.
func (l *letter) answerBytes() []byte {
	b := packettest.ICMP(l.src, l.dst, l.typ, l.code, 0, l.quote.bytes()[:l.quoted])
	l.header(b)
	return b
}

// numbered returns the packet with the identifications of got, as far as
// translation has made them up.
func (l *letter) numbered(got []byte) []byte {
	b := l.bytes()
	if !l.crossed || l.is6() || len(got) != len(b) {
		return b
	}
	take := func(at int) {
		copy(b[at+4:at+6], got[at+4:])
		b[at+10], b[at+11] = 0, 0
		binary.BigEndian.PutUint16(b[at+10:], packettest.Checksum(b[at:at+20]))
	}
	if l.kind != kindError {
		take(0)
		return b
	}
	take(28)
	b[22], b[23] = 0, 0
	binary.BigEndian.PutUint16(b[22:], packettest.Checksum(b[20:]))
	return b
}

// samePacket compares packets word by word, except that a checksum of 0 may be
// written in its other form, 0xffff.
func samePacket(got, want []byte) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range got {
		if got[i] == want[i] {
			continue
		}
		at := i &^ 1
		if at+1 >= len(got) || want[at]|want[at+1] != 0 || got[at]&got[at+1] != 0xff {
			return false
		}
	}
	return true
}
