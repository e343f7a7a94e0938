package messages

import (
	"net/netip"

	"firezone-gateway/internal/portal"
)

// UpdateRelays changes the set of relays: Disconnected are dropped first, then
// Connected are added or replaced; relays that are not named stay (portal §3.8).
// The reply is RelaysUpdated.
type UpdateRelays struct {
	// Number comes back with the reply.
	Number uint64
	// All says that Connected are all relays the portal knows. Of the others
	// those that do not work are dropped, and those that do are kept.
	All          bool
	Disconnected []string
	Connected    []portal.DualStackRelay
}

// RelaysUpdated is the reply to UpdateRelays. Peers hears of the change before
// anything that is sent after this.
type RelaysUpdated struct{ Number uint64 }

// Rebind asks for new sockets in place of those in use, and new allocations.
type Rebind struct{}

// BindChannels asks a relay for a channel to each peer address (transport §2.6).
type BindChannels struct {
	RelayID string
	Peers   []netip.AddrPort
}

// WantRelays says that a client could not be admitted for want of a usable relay.
// The portal is asked for relays, unless that was done just before.
type WantRelays struct{}
