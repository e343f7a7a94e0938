package messages

import (
	"net/netip"

	"firezone-gateway/internal/actorkit"
)

// Siblings are the top-level actors. The gateway actor sends it to those of them
// that use others once all exist: first to Peers, then to Transport, TUN and Portal, so that
// nobody hears of a sibling's doings before it knows its siblings.
type Siblings struct {
	Portal, TUN, Transport, Peers, DNS actorkit.PID
}

// PortalGaveUp reports that the portal refuses this gateway for good, or that
// it was unreachable for longer than the partition time.
type PortalGaveUp struct{ Cause error }

// TunnelAddresses are the gateway's own addresses, as the portal assigned them.
type TunnelAddresses struct{ V4, V6 netip.Addr }

// Shutdown asks for an orderly end: goodbye to all clients, Close to the portal.
type Shutdown struct{}
