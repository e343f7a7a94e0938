package messages

import (
	"net/netip"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/transport/ice"
)

// FromRelay is one datagram that the relay sent: a STUN response.
type FromRelay struct {
	From     netip.AddrPort
	Local    netip.AddrPort
	Datagram []byte
}

// Untraced keeps one span per STUN response out of the traces.
func (FromRelay) Untraced() {}

// RelayChanged reports what a relay offers. It is sent by the relay actor on
// every change and carries the whole state, so that the last one counts.
type RelayChanged struct {
	RelayID string
	// Reporter is the actor that reports.
	Reporter actorkit.PID
	// Usable is false once the relay refused us or does not answer.
	Usable bool
	// Relayed are the addresses of the allocation, empty while there is none.
	Relayed []netip.AddrPort
	// Server is the address of the relay that is in use.
	Server netip.AddrPort
	// Shared are host and server-reflexive candidates found through this relay,
	// at most one of each type and family.
	Shared []ice.Candidate
}

// ProbeRelay asks a relay to find out whether its allocation still exists.
type ProbeRelay struct{}
