// Package natbox decides what a NAT router of the lab does with IP packets, in
// the terms of RFC 4787: which public endpoint a private one is mapped to, and
// whose packets reach it there; and what the line behind the router does to
// packets: latency, jitter, loss and re-ordering.
//
// It is pure: packets, the time and a seed in; rewritten packets, verdicts and
// due times out. The devices, goroutines and timers around it are labnet's.
//
// IPv4 is translated. IPv6 is not, but filtered by the same rule. A NAT hairpins
// nothing (RFC 4787 §6): in the lab nobody shares a router with its peer.
package natbox

import (
	"fmt"
	"net/netip"
	"time"
)

// Dependence is what a mapping or a filter distinguishes of the remote
// endpoints (RFC 4787 §4.1 and §5).
type Dependence uint8

const (
	// EndpointIndependent distinguishes nothing.
	EndpointIndependent Dependence = iota
	// AddressDependent distinguishes addresses.
	AddressDependent
	// AddressAndPortDependent distinguishes addresses and ports.
	AddressAndPortDependent
)

var dependenceNames = [...]string{"endpoint-independent", "address-dependent", "address-and-port-dependent"}

// String returns the name that RFC 4787 uses.
func (d Dependence) String() string {
	if int(d) >= len(dependenceNames) {
		return fmt.Sprintf("Dependence(%d)", uint8(d))
	}
	return dependenceNames[d]
}

// of returns what remains of a remote endpoint when only that is kept which the
// dependence distinguishes.
func (d Dependence) of(remote netip.AddrPort) netip.AddrPort {
	switch d {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	default:
		return remote
	}
}

// Behaviour is what RFC 4787 classifies a NAT by.
type Behaviour struct {
	Mapping   Dependence
	Filtering Dependence
	// Preserving keeps the private port as the public one where it is free
	// (RFC 4787 §4.2.1); otherwise ports are random.
	Preserving bool
}

// Verdict is what becomes of a packet. Each but the first two is a reason to
// drop it.
type Verdict uint8

const (
	// Forward lets the packet pass, rewritten as need be.
	Forward Verdict = iota
	// Local leaves the packet, unchanged, to the router itself.
	Local
	// Malformed packets are shorter than they say, or not IP.
	Malformed
	// Unsupported packets are of a protocol without ports, or fragments that
	// come before the first one (RFC 4787 REQ-14 asks for no more).
	Unsupported
	// Filtered packets come from somebody whom the private side did not ask.
	Filtered
	// Exhausted says that there is no port, or no room, for another mapping.
	Exhausted
	verdicts
)

// Verdicts is the number of verdicts.
const Verdicts = int(verdicts)

var verdictNames = [...]string{"forward", "local", "malformed", "unsupported", "filtered", "exhausted"}

// String returns the verdict in one word.
func (v Verdict) String() string {
	if int(v) >= len(verdictNames) {
		return fmt.Sprintf("Verdict(%d)", uint8(v))
	}
	return verdictNames[v]
}

// Lifetimes of mappings and filters without outbound packets.
const (
	UDPLifetime  = 2 * time.Minute             // RFC 4787 REQ-5
	TCPLifetime  = 2*time.Hour + 4*time.Minute // RFC 5382 REQ-5
	ICMPLifetime = time.Minute                 // RFC 5508 REQ-2
)
