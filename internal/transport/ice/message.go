package ice

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"net/netip"

	"firezone-gateway/internal/transport/stun"
)

// Message types, attributes and constants of Binding (RFC 8489 §5, §14 and
// §18.3, RFC 8445 §16.1).
const (
	bindingRequest = 0x0001
	bindingSuccess = 0x0101

	attrUsername     = 0x0006
	attrIntegrity    = 0x0008
	attrXORMapped    = 0x0020
	attrPriority     = 0x0024
	attrUseCandidate = 0x0025
	attrFingerprint  = 0x8028
	attrControlled   = 0x8029
	magicCookie      = 0x2112a442
	fingerprintMask  = 0x5354554e
	integritySize    = 4 + sha1.Size
	fingerprintSize  = 4 + 4

	prflxPriority = prflxType<<24 + prflxLocal<<8 + 255 // of IPv4
)

// signer finishes messages with one password. It must not be used concurrently.
type signer struct {
	mac hash.Hash
	sum [sha1.Size]byte
}

func newSigner(password string) *signer {
	return &signer{mac: hmac.New(sha1.New, []byte(password))}
}

// appendCheck appends a Binding request to b, which is empty. A check of a
// controlled agent never has USE-CANDIDATE (T-10, T-12); its PRIORITY is that of
// a peer-reflexive candidate (RFC 8445 §7.1.1).
func (s *signer) appendCheck(b []byte, id stun.TransactionID, username string, tie uint64, six bool) []byte {
	b = appendHeader(b, bindingRequest, id)
	b = appendAttribute(b, attrUsername, len(username))
	b = append(b, username...)
	b = append(b, make([]byte, -len(username)&3)...)
	b = appendAttribute(b, attrControlled, 8)
	b = binary.BigEndian.AppendUint64(b, tie)
	b = appendAttribute(b, attrPriority, 4)
	b = binary.BigEndian.AppendUint32(b, prflxPriority+b2u(six)<<8)
	return s.seal(b)
}

// appendAnswer appends the success response to a request from remote to b, which
// is empty (T-13).
func (s *signer) appendAnswer(b []byte, id stun.TransactionID, remote netip.AddrPort) []byte {
	b = appendHeader(b, bindingSuccess, id)
	ip := remote.Addr().Unmap()
	port := remote.Port() ^ magicCookie>>16
	if ip.Is4() {
		v := ip.As4()
		b = appendAttribute(b, attrXORMapped, 8)
		b = append(b, 0, 1, byte(port>>8), byte(port))
		b = binary.BigEndian.AppendUint32(b, binary.BigEndian.Uint32(v[:])^magicCookie)
		return s.seal(b)
	}
	v := ip.As16()
	b = appendAttribute(b, attrXORMapped, 20)
	b = append(b, 0, 2, byte(port>>8), byte(port))
	for i := range v { // cookie and transaction id are next to each other
		v[i] ^= b[4+i]
	}
	return s.seal(append(b, v[:]...))
}

// seal appends MESSAGE-INTEGRITY and FINGERPRINT (RFC 8489 §14.5, §14.7).
func (s *signer) seal(b []byte) []byte {
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-stun.HeaderSize+integritySize))
	s.mac.Reset()
	s.mac.Write(b)
	b = appendAttribute(b, attrIntegrity, sha1.Size)
	b = append(b, s.mac.Sum(s.sum[:0])...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-stun.HeaderSize+fingerprintSize))
	sum := crc32.ChecksumIEEE(b) ^ fingerprintMask
	b = appendAttribute(b, attrFingerprint, 4)
	return binary.BigEndian.AppendUint32(b, sum)
}

func appendHeader(b []byte, typ uint16, id stun.TransactionID) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, magicCookie)
	return append(b, id[:]...)
}

func appendAttribute(b []byte, typ uint16, size int) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint16(b, uint16(size))
}

// wishes reads PRIORITY and USE-CANDIDATE of a request that stun.Check accepted,
// so that lengths fit and nothing that is not authenticated follows. A request
// without PRIORITY gets that of a peer-reflexive candidate.
func wishes(b []byte) (priority uint32, use bool) {
	priority = prflxPriority
	for rest := b[stun.HeaderSize:]; len(rest) >= 4; {
		size := int(binary.BigEndian.Uint16(rest[2:]))
		switch binary.BigEndian.Uint16(rest) {
		case attrPriority:
			priority = binary.BigEndian.Uint32(rest[4:])
		case attrUseCandidate:
			use = true
		}
		rest = rest[4+(size+3)&^3:]
	}
	return priority, use
}
