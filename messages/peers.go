package messages

import "firezone-gateway/internal/portal"

// FromPortal is one message of the portal that concerns clients.
type FromPortal struct {
	Message    portal.Message
	Connection Connection
	Epoch      Epoch // of the key that the connection logged in with
}

// Epoch numbers the gateway's key pairs in this process, from 1. What the portal
// says is about the key it was told when its connection began.
type Epoch uint64

// Reset asks for a new key pair, for goodbyes to all clients and for new
// connections to relays and portal. The reply is ResetDone.
type Reset struct {
	Cause string // in words, for people
}

// ResetDone is the reply to Reset: the new key is in use, and portal and
// transport were told.
type ResetDone struct{}

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
