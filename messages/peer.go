package messages

import (
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
)

// Authorize grants a resource to the client and sets up the connection to it.
type Authorize struct {
	Authorization portal.Authorize
	Gateway       TunnelAddresses
	Connection    Connection
}

// RequestConnection is the legacy form of the first Authorize (portal §3.4).
type RequestConnection struct {
	Request    portal.RequestConnection
	Gateway    TunnelAddresses
	Connection Connection
}

// AllowAccess is the legacy form of every further Authorize (portal §3.5).
type AllowAccess struct {
	Access  portal.AllowAccess
	Gateway TunnelAddresses
}

// AddCandidates adds remote candidates.
type AddCandidates struct{ Candidates []string }

// RemoveCandidates invalidates remote candidates.
type RemoveCandidates struct{ Candidates []string }

// Revoke ends the client's access to one resource.
type Revoke struct{ ResourceID string }

// RetainGrants is the portal's full list of what the client may reach, by
// resource id, with the time at which each ends. All other grants end.
type RetainGrants struct {
	ExpiresAt map[string]time.Time
	Gateway   TunnelAddresses
}

// UpdateResource changes the filters of a resource wherever it is granted.
type UpdateResource struct{ Resource portal.Resource }

// ExtendGrant moves the end of one grant.
type ExtendGrant struct {
	ResourceID string
	ExpiresAt  time.Time
}

// RelaysChanged is the set of usable relays and the shared candidates. It is
// sent whenever either changed and carries the whole state.
type RelaysChanged struct {
	// Version grows with every change, across restarts of the transport actor,
	// so that an older state can not overtake the one a peer started with.
	Version uint64
	Relays  []RelayChanged
}

// ControlReceived is one in-tunnel control packet.
type ControlReceived struct {
	// Key is the public key of the session that carried it. After the client
	// changed its key, packets of the old session mean nothing any more.
	Key    portal.PublicKey
	Packet []byte
}

// Untraced keeps a client from flooding the traces.
func (ControlReceived) Untraced() {}

// ClientChanged reports that the client's WireGuard session, its path or its
// ICE agent changed. It carries no state: the peer looks at the client, so that
// any number of changes need no more than one message.
type ClientChanged struct{}

// Untraced keeps a client that flaps between paths from flooding the traces.
func (ClientChanged) Untraced() {}

// DomainsLost reports that the client's translation had faults, and that domains
// were lost with them.
type DomainsLost struct {
	NAT actorkit.PID // that reports
}

// ConfirmEmpty asks a peer whether it is still empty; the reply, if it is, is
// PeerEmpty with the same Last.
type ConfirmEmpty struct {
	// Last numbers the last message that was sent to the peer before this one.
	// No other message of the process has that number.
	Last uint64
}

// Untraced keeps housekeeping out of the traces.
func (ConfirmEmpty) Untraced() {}
