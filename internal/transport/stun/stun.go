// Package stun looks at STUN messages before any library parses them.
//
// Check is the border: what it accepts is bounded in size and in number of
// attributes, of a method and class that the gateway uses, and has only
// attributes whose lengths fit their types, so that the parsers behind it
// cannot be led out of their buffers. The package is pure: no clock, no socket,
// no goroutine, and no allocation on its paths.
package stun

import (
	"encoding/binary"
	"errors"
)

// Limits of an acceptable message. MaxSize is the largest datagram that peers
// and relays of the gateway send (transport §1.3); MaxAttributes is several
// times what RFC 8445 and RFC 8656 messages carry.
const (
	HeaderSize    = 20
	MaxSize       = 1316
	MaxAttributes = 24
)

// TransactionIDSize is the length of a transaction id in bytes.
const TransactionIDSize = 12

// TransactionID names one request and its response (RFC 8489 §5).
type TransactionID [TransactionIDSize]byte

// Method is a STUN method (RFC 8489 §18.2, RFC 8656 §18.1).
type Method uint16

// The methods the gateway takes part in.
const (
	Binding     Method = 0x001
	Allocate    Method = 0x003
	Refresh     Method = 0x004
	ChannelBind Method = 0x009
)

// Class is the class of a STUN message (RFC 8489 §5).
type Class uint8

// The four classes, with their values on the wire.
const (
	Request    Class = 0
	Indication Class = 1
	Success    Class = 2
	Error      Class = 3
)

// Header is the fixed part of a checked message.
type Header struct {
	Method        Method
	Class         Class
	TransactionID TransactionID
}

// The ways in which Check refuses a message.
var (
	ErrSize      = errors.New("stun: length does not fit the datagram")
	ErrCookie    = errors.New("stun: no magic cookie")
	ErrType      = errors.New("stun: method and class are not in use")
	ErrAttribute = errors.New("stun: attribute length does not fit its type")
	ErrCount     = errors.New("stun: too many attributes")
	ErrOrder     = errors.New("stun: attribute behind the integrity of a request")
)

const magicCookie = 0x2112A442

// Is reports whether b has the outline of a STUN message: type bits and magic
// cookie (RFC 8489 §5). It is the demultiplexer's test; Check is the proof.
func Is(b []byte) bool {
	return len(b) >= HeaderSize && b[0] < 4 && binary.BigEndian.Uint32(b[4:]) == magicCookie
}

// Check validates one datagram as a STUN message and returns its header.
//
// Accepted are Binding requests, and success and error responses of Binding,
// Allocate, Refresh and ChannelBind. Indications are refused: nothing that the
// gateway talks to sends them (transport §2.2, §4.4). Requests may have nothing
// but FINGERPRINT behind MESSAGE-INTEGRITY, because what follows it is not
// authenticated while parsers would still find it. The errors are the package's
// sentinels.
func Check(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize || len(b) > MaxSize {
		return h, ErrSize
	}
	if b[0] > 3 || binary.BigEndian.Uint32(b[4:]) != magicCookie {
		return h, ErrCookie
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n%4 != 0 || n != len(b)-HeaderSize {
		return h, ErrSize
	}
	h.Method, h.Class = splitType(binary.BigEndian.Uint16(b))
	if !inUse(h.Method, h.Class) {
		return h, ErrType
	}
	copy(h.TransactionID[:], b[8:HeaderSize])

	sealed := false
	count := 0
	for rest := b[HeaderSize:]; len(rest) > 0; count++ {
		if count == MaxAttributes {
			return h, ErrCount
		}
		typ, value, next, ok := nextAttribute(rest)
		if !ok || !fits(typ, value) {
			return h, ErrAttribute
		}
		if sealed && h.Class == Request && typ != attrFingerprint {
			return h, ErrOrder
		}
		sealed = sealed || typ == attrMessageIntegrity || typ == attrFingerprint
		rest = next
	}
	return h, nil
}

// ID returns the transaction id of a message that Check accepted.
func ID(b []byte) TransactionID {
	var id TransactionID
	if len(b) >= HeaderSize {
		copy(id[:], b[8:HeaderSize])
	}
	return id
}

// Username returns both halves of the USERNAME attribute of a message that
// Check accepted: for a Binding request the receiver's and then the sender's
// ufrag (RFC 8445 §7.2.2). Both halves alias b. It reports false when there is
// no USERNAME, no colon, or an empty half.
func Username(b []byte) (local, remote []byte, ok bool) {
	name, found := attribute(b, attrUsername)
	if !found {
		return nil, nil, false
	}
	for i, c := range name {
		if c == ':' {
			return name[:i], name[i+1:], i > 0 && i+1 < len(name)
		}
	}
	return nil, nil, false
}

func splitType(t uint16) (Method, Class) {
	// RFC 8489 §5, figure 3: M11-M7 C1 M6-M4 C0 M3-M0.
	method := t&0x000f | t&0x00e0>>1 | t&0x3e00>>2
	class := t&0x0010>>4 | t&0x0100>>7
	return Method(method), Class(class)
}

func inUse(m Method, c Class) bool {
	switch m {
	case Binding:
		return c != Indication
	case Allocate, Refresh, ChannelBind:
		return c == Success || c == Error
	}
	return false
}
