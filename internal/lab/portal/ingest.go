package portal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
)

// ingestGrace is how long a flow-log ingest token outlives its authorization
// (portal-protocol §8.2).
const ingestGrace = 30 * 24 * time.Hour

// Values of ingestClaims.Role.
const (
	roleInitiator = "initiator"
	roleResponder = "responder"
)

// ingestClaims are the claims of a flow-log ingest token. All mandatory claims
// of portal-protocol §8.2 are here; optional ones are omitted when empty.
type ingestClaims struct {
	AccountID              string `json:"account_id"`
	IssuedAt               int64  `json:"iat"`
	ExpiresAt              int64  `json:"exp"`
	UploadsEnabled         bool   `json:"uploads_enabled"`
	Role                   string `json:"role"`
	InitiatorDeviceID      string `json:"initiator_device_id"`
	ResponderDeviceID      string `json:"responder_device_id"`
	AuthorizationID        string `json:"policy_authorization_id"`
	PolicyID               string `json:"policy_id"`
	ResourceID             string `json:"resource_id"`
	ResourceName           string `json:"resource_name"`
	ResourceAddress        string `json:"resource_address,omitempty"`
	ActorID                string `json:"initiator_actor_id"`
	ActorName              string `json:"initiator_actor_name"`
	ActorEmail             string `json:"initiator_actor_email,omitempty"`
	ClientVersion          string `json:"initiator_client_version,omitempty"`
	DeviceOSName           string `json:"initiator_device_os_name,omitempty"`
	DeviceOSVersion        string `json:"initiator_device_os_version,omitempty"`
	AuthorizedAt           string `json:"authorized_at"`
	AuthorizationExpiresAt string `json:"authorization_expires_at"`
}

// ingestToken signs the claims as a compact HS256 JWT (RFC 7515, RFC 7519).
func ingestToken(key []byte, claims ingestClaims) (string, error) {
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode ingest claims: %w", err)
	}
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(body)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return signed + "." + enc.EncodeToString(mac.Sum(nil)), nil
}

// rfc3339 renders a time the way ingest tokens carry it.
func rfc3339(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
