package stun

import "encoding/binary"

// Attribute types whose form Check knows (RFC 8489 §18.3, RFC 8656 §18.2,
// RFC 8445 §16.1, RFC 5780, and RFC 3489 for the retired address attributes
// that libraries still decode).
const (
	attrMappedAddress      = 0x0001
	attrResponseAddress    = 0x0002
	attrSourceAddress      = 0x0004
	attrChangedAddress     = 0x0005
	attrUsername           = 0x0006
	attrMessageIntegrity   = 0x0008
	attrErrorCode          = 0x0009
	attrUnknownAttributes  = 0x000a
	attrReflectedFrom      = 0x000b
	attrChannelNumber      = 0x000c
	attrLifetime           = 0x000d
	attrXORPeerAddress     = 0x0012
	attrRealm              = 0x0014
	attrNonce              = 0x0015
	attrXORRelayedAddress  = 0x0016
	attrRequestedFamily    = 0x0017
	attrRequestedTransport = 0x0019
	attrIntegritySHA256    = 0x001c
	attrXORMappedAddress   = 0x0020
	attrPriority           = 0x0024
	attrUseCandidate       = 0x0025
	attrAdditionalFamily   = 0x8000
	attrXORMappedCompat    = 0x8020
	attrSoftware           = 0x8022
	attrAlternateServer    = 0x8023
	attrFingerprint        = 0x8028
	attrICEControlled      = 0x8029
	attrICEControlling     = 0x802a
	attrResponseOrigin     = 0x802b
	attrOtherAddress       = 0x802c
)

const (
	attributeHeader = 4
	maxUsername     = 512 // RFC 8489 §14.3: fewer than 513 bytes
	maxText         = 763 // RFC 8489 §14.8 to §14.10, §14.14
)

// nextAttribute splits the first attribute, with its padding, off b.
func nextAttribute(b []byte) (typ uint16, value, rest []byte, ok bool) {
	if len(b) < attributeHeader {
		return 0, nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	end := attributeHeader + (n+3)&^3
	if end > len(b) {
		return 0, nil, nil, false
	}
	return binary.BigEndian.Uint16(b), b[attributeHeader : attributeHeader+n], b[end:], true
}

// attribute returns the value of the first attribute of the given type.
func attribute(b []byte, want uint16) ([]byte, bool) {
	if len(b) < HeaderSize {
		return nil, false
	}
	for rest := b[HeaderSize:]; len(rest) > 0; {
		typ, value, next, ok := nextAttribute(rest)
		if !ok {
			return nil, false
		}
		if typ == want {
			return value, true
		}
		rest = next
	}
	return nil, false
}

// fits reports whether a value has the length that its type demands. Unknown
// types pass: they are bounded by the message.
func fits(typ uint16, v []byte) bool {
	n := len(v)
	switch typ {
	case attrMappedAddress, attrResponseAddress, attrSourceAddress, attrChangedAddress, attrReflectedFrom,
		attrXORPeerAddress, attrXORRelayedAddress, attrXORMappedAddress, attrXORMappedCompat,
		attrAlternateServer, attrResponseOrigin, attrOtherAddress:
		return isAddress(v)
	case attrErrorCode:
		return n >= 4 && n <= 4+maxText
	case attrMessageIntegrity:
		return n == 20
	case attrIntegritySHA256:
		return n >= 16 && n <= 32 && n%4 == 0
	case attrFingerprint, attrPriority, attrLifetime, attrChannelNumber, attrRequestedTransport,
		attrRequestedFamily, attrAdditionalFamily:
		return n == 4
	case attrICEControlled, attrICEControlling:
		return n == 8
	case attrUseCandidate:
		return n == 0
	case attrUnknownAttributes:
		return n%2 == 0
	case attrUsername:
		return n <= maxUsername
	case attrRealm, attrNonce, attrSoftware:
		return n <= maxText
	}
	return true
}

// isAddress checks family against length (RFC 8489 §14.1).
func isAddress(v []byte) bool {
	switch len(v) {
	case 8:
		return v[1] == 1
	case 20:
		return v[1] == 2
	}
	return false
}
