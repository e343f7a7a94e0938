package relay

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Realm is the realm of every relay's long-term credentials.
const Realm = "firezone"

// NewSecret returns a stamp secret as a relay makes one at its start: 32
// random bytes in hexadecimal.
func NewSecret() string {
	var secret [32]byte
	rand.Read(secret[:])
	return hex.EncodeToString(secret[:])
}

// ID returns the relay id that follows from a stamp secret: the first 16 bytes
// of its SHA-256 as a UUID of version 4 (portal-protocol §6.4).
func ID(secret string) uuid.UUID {
	sum := sha256.Sum256([]byte(secret))
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Credentials returns the TURN username and password of a client or gateway
// with the given base64 public key (portal-protocol §6.4).
func Credentials(secret, publicKey string, expires time.Time) (username, password string) {
	salt := digest(publicKey)
	expiry := strconv.FormatInt(expires.Unix(), 10)
	return expiry + ":" + salt, digest(expiry + ":" + secret + ":" + salt)
}

// passwordOf returns the password that belongs to a username "<exp>:<salt>",
// and when it ends. The password of an expired username is returned as well:
// refusals are signed with it.
func passwordOf(secret, username string) (password string, expires time.Time, err error) {
	expiry, salt, ok := strings.Cut(username, ":")
	if !ok {
		return "", time.Time{}, fmt.Errorf("username is not <expiry>:<salt>")
	}
	seconds, err := strconv.ParseInt(expiry, 10, 64)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("username: expiry is not a number")
	}
	return digest(expiry + ":" + secret + ":" + salt), time.Unix(seconds, 0), nil
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}
