// Package policy decides which packets of one client pass.
//
// The resources that a client may use are compiled into a Snapshot: immutable,
// read by any number of goroutines, replaced as a whole when a grant changes.
// A Snapshot judges one packet at a time and allocates nothing. The package is
// pure; the time is passed in.
//
// The rules come from dataplane §2.1–2.3 and §4.1, where the two generations of
// the protocol differ in the form of G1.6. Address translation for DNS
// resources is not part of it.
package policy

import (
	"errors"
	"net/netip"
	"time"
)

// ResourceKind says how a resource names what it covers. The zero value is no
// kind.
type ResourceKind uint8

// The kinds of resources.
const (
	CIDR     ResourceKind = iota + 1 // Resource.Network
	DNS                              // domains that match Resource.Pattern
	Internet                         // every public address, without filters
)

// String returns the kind as the portal writes it.
func (k ResourceKind) String() string {
	switch k {
	case CIDR:
		return "cidr"
	case DNS:
		return "dns"
	case Internet:
		return "internet"
	}
	return "invalid"
}

// FilterProtocol is what a filter admits. The zero value admits nothing.
type FilterProtocol uint8

// The protocols of filters.
const (
	FilterTCP FilterProtocol = iota + 1
	FilterUDP
	FilterICMP // echo and all other ICMP and ICMPv6 messages; ports do not matter
)

// String returns the protocol as the portal writes it.
func (p FilterProtocol) String() string {
	switch p {
	case FilterTCP:
		return "tcp"
	case FilterUDP:
		return "udp"
	case FilterICMP:
		return "icmp"
	}
	return "invalid"
}

// PortRange is a range of ports with both ends included. All ports are
// PortRange{0, 65535}. A range whose First is above its Last holds nothing.
type PortRange struct{ First, Last uint16 }

// Filter admits one protocol on a range of the resource's ports.
type Filter struct {
	Protocol FilterProtocol
	Ports    PortRange // for TCP and UDP
}

// Resource is something that a client can be granted access to.
type Resource struct {
	ID      string
	Name    string
	Kind    ResourceKind
	Network netip.Prefix // of a CIDR resource; host bits are ignored
	Pattern string       // of a DNS resource
	Filters []Filter     // empty: everything is admitted, unknown protocols too
}

// Grant is the access of one client to one resource.
type Grant struct {
	Resource  Resource
	ExpiresAt time.Time // the first instant without access; zero: never
}

// Peer holds the tunnel addresses of both ends. An invalid address means that
// the end has none of that family.
type Peer struct {
	ClientV4, ClientV6   netip.Addr
	GatewayV4, GatewayV6 netip.Addr

	// GatewayOpen admits every packet to the gateway's own tunnel addresses, as
	// the reference does (dataplane §2.1 step 7). Otherwise only echo messages
	// and DNSPort are open, so that services bound to the wildcard address of
	// the host stay hidden from clients.
	GatewayOpen bool
}

// Reasons why Compile leaves out a grant.
var (
	// ErrKind means that the kind of the resource is not known.
	ErrKind = errors.New("unknown kind of resource")
	// ErrNetwork means that a CIDR resource has no valid network.
	ErrNetwork = errors.New("invalid network")
	// ErrUnreachable means that the network lies inside the tunnel, proxy or
	// multicast ranges, to which no CIDR resource opens the way.
	ErrUnreachable = errors.New("network inside a range of the tunnel")
)

// Skip names a grant that Compile left out.
type Skip struct {
	ID  string // resource ID
	Err error  // ErrKind, ErrNetwork or ErrUnreachable
}
