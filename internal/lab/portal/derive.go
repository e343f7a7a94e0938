package portal

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// TURNExpiry is the expiry that gateways get with TURN credentials,
// 2038-01-01T00:00:00Z in Unix seconds. It is a constant so that credentials
// survive re-connects (portal-protocol §6.4).
const TURNExpiry int64 = 2145916800

// pskLen is the length of a WireGuard preshared key in bytes.
const pskLen = 32

// Endpoint is one side of a client-gateway pair as the derivations see it: the
// device id (lowercase UUID) and the public key (44 characters of padded base64).
type Endpoint struct {
	ID        string
	PublicKey string
}

// ICECredentials is a user name fragment and password of RFC 8445.
type ICECredentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// String hides the password.
func (c ICECredentials) String() string { return "ICECredentials{" + c.Username + "}" }

// DeriveICE returns the ICE credentials of a pair (portal-protocol §6.1). They
// stay the same until one side changes its key, which lets a gateway keep the
// connection when a client is authorized again.
func DeriveICE(client, gateway Endpoint) (clientSide, gatewaySide ICECredentials) {
	sum := sha256.Sum256([]byte(strings.Join(
		[]string{client.ID, client.PublicKey, gateway.ID, gateway.PublicKey}, ":")))
	h := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
	return ICECredentials{Username: h[0:4], Password: h[4:26]},
		ICECredentials{Username: h[26:30], Password: h[30:52]}
}

// DerivePSK returns the WireGuard preshared key of a pair in padded base64
// (portal-protocol §6.2). The bases are the random values stored per device.
func DerivePSK(client, gateway Endpoint, clientBase, gatewayBase [pskLen]byte) (string, error) {
	salt := "WG_PSK|C_ID:" + client.ID + "|G_ID:" + gateway.ID +
		"|C_PK:" + client.PublicKey + "|G_PK:" + gateway.PublicKey
	password := string(clientBase[:]) + string(gatewayBase[:])
	key, err := pbkdf2.Key(sha256.New, password, []byte(salt), 1, pskLen)
	if err != nil {
		return "", fmt.Errorf("derive preshared key: %w", err)
	}
	return base64.StdEncoding.EncodeToString(key), nil
}

// DeriveTURN returns the long-term credentials (realm "firezone") with which
// the holder of publicKey may allocate on the relay that owns stampSecret,
// until expiry in Unix seconds (portal-protocol §6.4).
func DeriveTURN(stampSecret, publicKey string, expiry int64) (username, password string) {
	key := sha256.Sum256([]byte(publicKey))
	salt := base64.RawStdEncoding.EncodeToString(key[:])
	return strconv.FormatInt(expiry, 10) + ":" + salt, turnPassword(stampSecret, expiry, salt)
}

// RelayID returns the id of the relay that owns stampSecret: the first 16
// bytes of its SHA-256 in the form of a version 4 UUID (portal-protocol §6.4).
func RelayID(stampSecret string) string {
	sum := sha256.Sum256([]byte(stampSecret))
	return uuidFrom(sum)
}

// ExternalID returns the form in which a device id crosses the wire: an id
// that parses as a UUID becomes the lowercase hex SHA-256 of the raw string,
// anything else stays as it is (portal-protocol §1.1).
func ExternalID(raw string) string {
	if uuid.Validate(raw) != nil {
		return raw
	}
	sum := sha256.Sum256([]byte(raw))
	return hex.EncodeToString(sum[:])
}

func turnPassword(secret string, expiry int64, salt string) string {
	sum := sha256.Sum256([]byte(strconv.FormatInt(expiry, 10) + ":" + secret + ":" + salt))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// uuidFrom makes a version 4 UUID, lowercase, out of the first 16 bytes of a hash.
func uuidFrom(sum [sha256.Size]byte) string {
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}
