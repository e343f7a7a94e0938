package stun

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"hash"
)

// Integrity verifies MESSAGE-INTEGRITY with one key (RFC 8489 §14.5). It keeps
// the keyed hash, so that verifying allocates nothing; it must not be used
// concurrently. Its String does not show the key.
type Integrity struct {
	mac     hash.Hash
	scratch [HeaderSize + sha1.Size]byte
}

// NewIntegrity returns a verifier for key: the password of a short-term
// credential, or the MD5 digest of a long-term one.
func NewIntegrity(key []byte) *Integrity {
	return &Integrity{mac: hmac.New(sha1.New, key)}
}

// Verify reports whether b, which Check accepted, carries a valid
// MESSAGE-INTEGRITY. It does not change b.
func (i *Integrity) Verify(b []byte) bool {
	if len(b) < HeaderSize {
		return false
	}
	for rest := b[HeaderSize:]; len(rest) > 0; {
		typ, value, next, ok := nextAttribute(rest)
		if !ok {
			return false
		}
		if typ == attrMessageIntegrity {
			return i.matches(b[:len(b)-len(rest)], value)
		}
		rest = next
	}
	return false
}

// String hides the key.
func (i *Integrity) String() string { return "stun.Integrity" }

// matches compares value with the digest over covered, whose length field reads
// as if the message ended with MESSAGE-INTEGRITY.
func (i *Integrity) matches(covered, value []byte) bool {
	header, sum := i.scratch[:HeaderSize], i.scratch[HeaderSize:]
	copy(header, covered)
	binary.BigEndian.PutUint16(header[2:], uint16(len(covered)-HeaderSize+attributeHeader+sha1.Size))
	i.mac.Reset()
	i.mac.Write(header)
	i.mac.Write(covered[HeaderSize:])
	return hmac.Equal(i.mac.Sum(sum[:0]), value)
}
