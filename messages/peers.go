package messages

import "firezone-gateway/internal/portal"

// FromPortal is one message of the portal that concerns clients.
type FromPortal struct {
	Message    portal.Message
	Connection Connection
}

// PeerEmpty reports that a peer holds no grant and no connection.
type PeerEmpty struct {
	ClientID string
	// Last is that of the ConfirmEmpty which this answers: the peer is empty
	// after that message. It is zero when the peer reports by itself.
	Last uint64
}

// Untraced keeps housekeeping out of the traces.
func (PeerEmpty) Untraced() {}

// GoodbyeAll asks for a goodbye to every client; the reply is GoodbyeDone.
type GoodbyeAll struct{}

// GoodbyeDone is the reply to GoodbyeAll.
type GoodbyeDone struct{ Err error }
