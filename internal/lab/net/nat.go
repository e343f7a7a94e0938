package labnet

import (
	"fmt"
	"slices"

	"firezone-gateway/internal/lab/natbox"
)

// NATKind is how a router treats the packets between its private side and the
// internet. The names are those of RFC 3489 §5; Behaviour tells them in the
// terms of RFC 4787. IPv6 is not rewritten by any of them, but filtered by the
// same rule.
type NATKind uint8

const (
	// NoNAT routes: the addresses behind the router are public.
	NoNAT NATKind = iota
	// FullCone lets everybody reach what the private side has sent from once.
	FullCone
	// AddressRestricted admits from outside what comes from an address, of any
	// port, that was sent to.
	AddressRestricted
	// PortRestricted admits from outside what comes from an address and port
	// that was sent to. It is what Linux does, and Linux does it here, unless
	// the site's line is not perfect: then it is the lab's own NAT.
	PortRestricted
	// Symmetric is PortRestricted with another public port for each destination.
	Symmetric
	// DoubleNAT is a home router behind a carrier's (RFC 6888), PortRestricted
	// both, with a network of RFC 6598 between them.
	DoubleNAT
	// UDPBlocked is PortRestricted behind a firewall that drops UDP to everybody
	// but the relays.
	UDPBlocked
)

var natNames = [...]string{
	NoNAT: "none", FullCone: "full-cone", AddressRestricted: "address-restricted", PortRestricted: "port-restricted",
	Symmetric: "symmetric", DoubleNAT: "double-nat", UDPBlocked: "udp-blocked",
}

// NATKinds returns every kind, in the order of their values.
func NATKinds() []NATKind {
	kinds := make([]NATKind, len(natNames))
	for i := range kinds {
		kinds[i] = NATKind(i)
	}
	return kinds
}

// Behaviour returns what the mappings and filters of the kind distinguish; ok is
// false for NoNAT, which has neither. That of DoubleNAT is of each of its routers
// and of both together.
func (k NATKind) Behaviour() (b natbox.Behaviour, ok bool) {
	b = natbox.Behaviour{Filtering: natbox.AddressAndPortDependent, Preserving: true}
	switch k {
	case FullCone:
		b.Filtering = natbox.EndpointIndependent
	case AddressRestricted:
		b.Filtering = natbox.AddressDependent
	case Symmetric:
		b.Mapping, b.Preserving = natbox.AddressAndPortDependent, false
	}
	return b, k != NoNAT
}

// String returns the name of the kind, as UnmarshalText reads it.
func (k NATKind) String() string {
	if int(k) >= len(natNames) {
		return fmt.Sprintf("NATKind(%d)", uint8(k))
	}
	return natNames[k]
}

// MarshalText returns the name of the kind.
func (k NATKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the name of a kind, for flags.
func (k *NATKind) UnmarshalText(text []byte) error {
	i := slices.Index(natNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("NAT kind %q is none of %v", text, natNames)
	}
	*k = NATKind(i)
	return nil
}

// inKernel reports whether the kernel's own NAT is of the kind.
func (k NATKind) inKernel() bool {
	return k == NoNAT || k == PortRestricted || k == DoubleNAT || k == UDPBlocked
}
