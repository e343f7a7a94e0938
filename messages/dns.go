package messages

import "net/netip"

// ServeDNS says on which of the gateway's tunnel addresses DNS is to be served;
// servers on others end. Repeating it is harmless.
type ServeDNS struct{ Addresses []netip.Addr }

// Resolve asks for the addresses of a domain. The reply is Resolved.
type Resolve struct{ Setup DomainSetup }

// Resolved is the reply to Resolve.
type Resolved struct {
	Setup DomainSetup
	// Failed says that nothing is known about the domain. Otherwise the addresses
	// are what there is, maybe none (dataplane §3.3).
	Failed    bool
	Busy      bool         // nothing was found out, and the client is to ask again
	Addresses []netip.Addr // of both families, vetted
}
