package relay

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v3"
)

const (
	stunHeader    = 20
	channelHeader = 4
	// attrAdditionalAddressFamily is of RFC 8656 §18.13, unknown to pion/stun.
	attrAdditionalAddressFamily = stun.AttrType(0x8000)
	familyIPv4                  = 1
	familyIPv6                  = 2
	protocolUDP                 = 17
)

// families of the addresses that an allocation has.
type families uint8

const (
	onlyIPv4 families = iota
	onlyIPv6
	bothFamilies
)

// include reports whether there is an address of the family, in STUN's numbers.
func (f families) include(family byte) bool {
	return f == bothFamilies || (f == onlyIPv6) == (family == familyIPv6)
}

// familiesOf returns the families that an Allocate request gets, or the code
// of the refusal (transport §4.4).
func (s *Server) familiesOf(m *stun.Message) (families, stun.ErrorCode) {
	requested, hasRequested := m.Attributes.Get(stun.AttrRequestedAddressFamily)
	additional, hasAdditional := m.Attributes.Get(attrAdditionalAddressFamily)
	has4, has6 := s.options.IPv4.IsValid(), s.options.IPv6.IsValid()
	switch {
	case hasRequested && hasAdditional,
		hasRequested && len(requested.Value) != 4,
		hasAdditional && (len(additional.Value) != 4 || additional.Value[0] != familyIPv6):
		return 0, stun.CodeBadRequest
	case hasAdditional && has4 && has6:
		return bothFamilies, 0
	case hasAdditional && has6:
		return onlyIPv6, 0
	case hasRequested && requested.Value[0] == familyIPv6 && has6:
		return onlyIPv6, 0
	case hasRequested && requested.Value[0] != familyIPv4, !has4:
		return 0, stun.CodeAddrFamilyNotSupported
	}
	return onlyIPv4, 0
}

// sound reports whether the attributes whose length pion takes for granted
// have the length of their address family (RFC 8489 §14.1).
func sound(m *stun.Message) bool {
	for _, a := range m.Attributes {
		switch a.Type {
		case stun.AttrXORPeerAddress, stun.AttrXORMappedAddress, stun.AttrXORRelayedAddress:
			if len(a.Value) != 8 && len(a.Value) != 20 {
				return false
			}
			if (a.Value[1] == familyIPv4) != (len(a.Value) == 8) {
				return false
			}
		}
	}
	return true
}

// withoutIntegrity cuts MESSAGE-INTEGRITY, and what follows it, off a
// well-formed STUN message in place and returns the length left.
func withoutIntegrity(p []byte) int {
	at := offsetOf(p, stun.AttrMessageIntegrity)
	binary.BigEndian.PutUint16(p[2:], uint16(at-stunHeader))
	return at
}

// spoilNonce makes the NONCE of a well-formed STUN message one that nobody has
// issued, in place.
func spoilNonce(p []byte) {
	if at := offsetOf(p, stun.AttrNonce); at < len(p) {
		clear(p[at+4:][:binary.BigEndian.Uint16(p[at+2:])])
	}
}

// offsetOf returns where in a well-formed STUN message an attribute begins, the
// message's length if it has none of the type.
func offsetOf(p []byte, attribute stun.AttrType) int {
	at := stunHeader
	for at+4 <= len(p) && stun.AttrType(binary.BigEndian.Uint16(p[at:])) != attribute {
		at += 4 + (int(binary.BigEndian.Uint16(p[at+2:]))+3)&^3
	}
	return min(at, len(p))
}

// isResponse reports whether p is a STUN message of one of the two response
// classes, whose common bit is the lowest of the first byte.
func isResponse(p []byte) bool {
	return len(p) >= stunHeader && p[0]>>6 == 0 && p[0]&1 == 1
}

// payloadOf returns the channel number and the payload of a datagram of
// ChannelData. A strict relay accepts no padding and nothing else behind the
// payload, a lenient one cuts it off (RFC 8656 §12.5).
func payloadOf(b []byte, lenient bool) (number uint16, payload []byte, ok bool) {
	if len(b) < channelHeader {
		return 0, nil, false
	}
	number = binary.BigEndian.Uint16(b)
	n := int(binary.BigEndian.Uint16(b[2:]))
	payload = b[channelHeader:]
	if number < minChannel || number > maxChannel || n > len(payload) || n < len(payload) && !lenient {
		return 0, nil, false
	}
	return number, payload[:n], true
}

// bindingOf returns the channel number and the peer that a ChannelBind request
// is about.
func bindingOf(m *stun.Message) (number uint16, peer netip.AddrPort, ok bool) {
	var address stun.XORMappedAddress
	value, err := m.Get(stun.AttrChannelNumber)
	if err != nil || len(value) < 2 || address.GetFromAs(m, stun.AttrXORPeerAddress) != nil {
		return 0, netip.AddrPort{}, false
	}
	ip, ok := netip.AddrFromSlice(address.IP)
	return binary.BigEndian.Uint16(value), netip.AddrPortFrom(ip.Unmap(), uint16(address.Port)), ok
}
