package transport

import "encoding/binary"

// MaxDatagram is the longest UDP payload that is sent or accepted, in bytes:
// an inner packet of 1280, 32 of WireGuard and 4 of ChannelData (T-03).
const MaxDatagram = 1316

// channelHeader is the length of a ChannelData header (RFC 8656 section 12.4).
const channelHeader = 4

// Kind says what a datagram is by its shape alone.
type Kind uint8

// The kinds of datagrams.
const (
	KindUnknown Kind = iota
	KindWireGuard
	KindSTUN
	KindChannelData
)

// Lengths of WireGuard messages; a transport message has at least its header
// and tag (spec transport §1.6, step 5).
const (
	initiationLength   = 148
	responseLength     = 92
	cookieReplyLength  = 64
	minTransportLength = 32
)

const (
	stunHeader = 20
	stunCookie = 0x2112A442
)

// Classify tells the kind of the datagram b, which may be empty. WireGuard is
// tested first, because a session index may equal the STUN cookie, while no STUN
// message has a length that its first four bytes would give to WireGuard.
// ChannelData must have exactly the length it declares (spec transport §1.6).
// A size limit is not applied.
func Classify(b []byte) Kind {
	if len(b) < channelHeader {
		return KindUnknown
	}
	head := binary.BigEndian.Uint32(b)
	switch head {
	case 0x01000000:
		if len(b) == initiationLength {
			return KindWireGuard
		}
	case 0x02000000:
		if len(b) == responseLength {
			return KindWireGuard
		}
	case 0x03000000:
		if len(b) == cookieReplyLength {
			return KindWireGuard
		}
	case 0x04000000:
		if len(b) >= minTransportLength {
			return KindWireGuard
		}
	}
	switch {
	case isChannelData(b):
		return KindChannelData
	case b[0]&0xc0 == 0 && len(b) >= stunHeader:
		length := int(head & 0xffff)
		if length%4 == 0 && length == len(b)-stunHeader && binary.BigEndian.Uint32(b[4:]) == stunCookie {
			return KindSTUN
		}
	}
	return KindUnknown
}

func isChannelData(b []byte) bool {
	return len(b) >= channelHeader && b[0]&0xf0 == 0x40 && int(binary.BigEndian.Uint16(b[2:])) == len(b)-channelHeader
}
