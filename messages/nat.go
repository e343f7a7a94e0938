package messages

import "net/netip"

// AssignDomain puts real addresses behind the proxy addresses of a domain, for
// one of the client's DNS resources. The reply is DomainAssigned.
type AssignDomain struct {
	Setup DomainSetup
	Real  []netip.Addr // of both families; may be empty
}

// DomainSetup is what a client asks for in an AssignedIPs control packet
// (dataplane §3.1).
type DomainSetup struct {
	ResourceID string
	Domain     string // without trailing dot
	Proxies    []netip.Addr
	// Silent says that the client expects no answer: the request came over the
	// portal (portal §3.4).
	Silent bool
}

// DomainAssigned is the reply to AssignDomain.
type DomainAssigned struct {
	Setup DomainSetup
	Err   error // the mapping stays as it was
}

// EndSessions ends the sessions that only this resource admitted.
type EndSessions struct{ ResourceID string }

// PacketsWait reports that packets wait for their NAT sessions. It carries
// nothing: any number of packets need no more than one message.
type PacketsWait struct{}

// Untraced keeps a client from flooding the traces.
func (PacketsWait) Untraced() {}
