package portal

import (
	"encoding/base64"
	"log/slog"
)

const redacted = "[redacted]"

// Ref is the opaque token of a grant that its acknowledgement carries back
// byte for byte. It contains key material (§6.3), so every textual form of it,
// JSON included, is redacted; convert it to string to get at the token.
type Ref string

// String returns a placeholder.
func (Ref) String() string { return redacted }

// GoString returns a placeholder.
func (Ref) GoString() string { return redacted }

// LogValue returns a placeholder.
func (Ref) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder.
func (Ref) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// PresharedKey is the WireGuard preshared key of one client pair. Every textual
// form of it is redacted.
type PresharedKey [32]byte

// String returns a placeholder.
func (PresharedKey) String() string { return redacted }

// GoString returns a placeholder.
func (PresharedKey) GoString() string { return redacted }

// LogValue returns a placeholder.
func (PresharedKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder.
func (PresharedKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// PublicKey is an X25519 public key.
type PublicKey [32]byte

// String returns the standard padded base64 form, as it appears on the wire.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// LogValue returns the base64 form.
func (k PublicKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns the base64 form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// ICECredentials are the username fragment and password of one side (RFC 8445
// §5.3). Textual forms show the fragment only.
type ICECredentials struct {
	Username string
	Password string
}

// String returns the username fragment with a placeholder for the password.
func (c ICECredentials) String() string { return c.Username + ":" + redacted }

// GoString equals String.
func (c ICECredentials) GoString() string { return c.String() }

// LogValue equals String.
func (c ICECredentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText equals String.
func (c ICECredentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// String returns id and address without the credentials.
func (r Relay) String() string { return r.ID + "@" + r.Addr.String() }

// GoString equals String.
func (r Relay) GoString() string { return r.String() }

// LogValue equals String.
func (r Relay) LogValue() slog.Value { return slog.StringValue(r.String()) }

// MarshalText equals String.
func (r Relay) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String returns id and addresses without the credentials.
func (r DualStackRelay) String() string {
	s := r.ID + "@"
	if r.V4.IsValid() {
		s += r.V4.String()
	}
	if r.V6.IsValid() {
		s += "," + r.V6.String()
	}
	return s
}

// GoString equals String.
func (r DualStackRelay) GoString() string { return r.String() }

// LogValue equals String.
func (r DualStackRelay) LogValue() slog.Value { return slog.StringValue(r.String()) }

// MarshalText equals String.
func (r DualStackRelay) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String returns the name without the token.
func (l Login) String() string { return "login of " + l.Name }

// GoString equals String.
func (l Login) GoString() string { return l.String() }

// LogValue equals String.
func (l Login) LogValue() slog.Value { return slog.StringValue(l.String()) }

// MarshalText equals String.
func (l Login) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// String returns topic and event without the payload, which may hold secrets.
func (f Frame) String() string { return f.Topic + "/" + f.Event }

// GoString equals String.
func (f Frame) GoString() string { return f.String() }

// LogValue equals String.
func (f Frame) LogValue() slog.Value { return slog.StringValue(f.String()) }

// MarshalText equals String. Encode returns the form for the wire.
func (f Frame) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// String returns a name without what waits in the queue.
func (s *Session) String() string { return "portal session" }

// GoString equals String.
func (s *Session) GoString() string { return s.String() }
