package actors

import (
	"crypto/ecdh"
	"testing"
)

// TestT56EachProcessHasItsOwnKeys has a plane in the place of each process.
func TestT56EachProcessHasItsOwnKeys(t *testing.T) {
	seen := make(map[[32]byte]bool)
	for range 4 {
		p := newTestPlane(t, "")
		keys := p.keys.load()
		key, err := ecdh.X25519().NewPrivateKey(keys.private[:])
		if err != nil {
			t.Fatal(err)
		}
		if public := [32]byte(key.PublicKey().Bytes()); public != keys.public || public != p.PublicKey() {
			t.Error("the public key is that of another private key")
		}
		if keys.private == ([32]byte{}) || seen[keys.private] || seen[keys.public] {
			t.Error("a key was in use before")
		}
		seen[keys.private], seen[keys.public] = true, true
	}
}
