package portal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

const (
	refPrefix   = "LAB."
	refNonceLen = 24
	refTagLen   = 16
)

// refSigner issues the opaque refs that travel with an authorization. A ref
// carries its own authenticator, so that one which was issued and is over can
// be told from one that was never issued without remembering either
// (portal-protocol §6.3: refs are signed and have no expiry).
type refSigner struct {
	key [sha256.Size]byte
}

func newRefSigner() *refSigner {
	s := new(refSigner)
	rand.Read(s.key[:])
	return s
}

func (s *refSigner) issue() string {
	b := make([]byte, refNonceLen, refNonceLen+refTagLen)
	rand.Read(b)
	return refPrefix + base64.RawURLEncoding.EncodeToString(append(b, s.tag(b)...))
}

// issued reports whether ref came from issue.
func (s *refSigner) issued(ref string) bool {
	body, ok := strings.CutPrefix(ref, refPrefix)
	if !ok {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || len(b) != refNonceLen+refTagLen {
		return false
	}
	return hmac.Equal(b[refNonceLen:], s.tag(b[:refNonceLen]))
}

func (s *refSigner) tag(nonce []byte) []byte {
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write(nonce)
	return mac.Sum(nil)[:refTagLen]
}
