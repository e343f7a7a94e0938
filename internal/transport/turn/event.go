package turn

import (
	"net/netip"
	"time"
)

// Event is what a Client reports: one of the types below.
type Event interface{ event() }

// ServerSelected reports the address of the relay that answered first and that
// is used for everything from then on (T-49).
type ServerSelected struct{ Addr netip.AddrPort }

// HostCandidate reports a local address on which a BINDING answer arrived
// (transport §2.3). It is reported again only when it changes, and per family.
type HostCandidate struct{ Addr netip.AddrPort }

// ServerReflexive reports the address as which the relay sees us, and the local
// address that it maps to. It is reported again only when it changes.
type ServerReflexive struct{ Addr, Base netip.AddrPort }

// Allocated reports relayed addresses; the one of a family that the relay did
// not give is the zero value.
type Allocated struct {
	V4, V6   netip.AddrPort
	Lifetime time.Duration
}

// AllocationLost reports that the relayed addresses are gone, and with them all
// channels, for which no ChannelLost follows. The addresses are those of the
// last Allocated, so that their candidates can be invalidated (T-26).
type AllocationLost struct {
	Reason LossReason
	V4, V6 netip.AddrPort
}

// ChannelBound reports a channel on which data passes: Number towards the
// relay stands for Peer, and Peer sees Relayed.
type ChannelBound struct {
	Number        uint16
	Peer, Relayed netip.AddrPort
}

// ChannelLost reports that a channel expired or that its renewal was refused.
type ChannelLost struct {
	Number uint16
	Peer   netip.AddrPort
}

// Suspended reports that the relay refused an allocation with an error code that
// only time can cure. Queued peers are forgotten. Probe starts over.
type Suspended struct{ Code int }

// Failed reports that the relay is not usable with this configuration. It is
// the last event; the client is in StateFailed.
type Failed struct{ Reason FailReason }

func (ServerSelected) event()  {}
func (HostCandidate) event()   {}
func (ServerReflexive) event() {}
func (Allocated) event()       {}
func (AllocationLost) event()  {}
func (ChannelBound) event()    {}
func (ChannelLost) event()     {}
func (Suspended) event()       {}
func (Failed) event()          {}

// LossReason says why an allocation was lost.
type LossReason uint8

// The reasons for AllocationLost.
const (
	LossMismatch LossReason = iota // the relay does not know the allocation (437)
	LossExpired                    // its lifetime passed without a refresh
	LossFailed                     // the relay was given up; Failed follows
)

// String returns the reason as it appears in logs.
func (r LossReason) String() string { return [...]string{"mismatch", "expired", "failed"}[r] }

// FailReason says why a relay was given up.
type FailReason uint8

// The reasons for Failed.
const (
	Unreachable FailReason = iota // no answer on any address, or none any more
	Rejected                      // the credentials are wrong (401 to a request with nonce, or only answers that they do not verify)
	Unsupported                   // the relay does not understand an attribute (420)
)

// String returns the reason as it appears in logs.
func (r FailReason) String() string {
	return [...]string{"unreachable", "rejected", "unsupported"}[r]
}
