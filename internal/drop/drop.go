// Package drop holds the one closed list of reasons for which the gateway
// discards something that arrived from outside, and the counters for it.
package drop

import "sync/atomic"

// Reason says why a packet, datagram, frame or list element was discarded.
// The zero value means that nothing was discarded.
type Reason uint8

// The reasons. A new one goes to the end of its group and into names.
const (
	None Reason = iota

	// Client to resource, judged on the decrypted packet.
	Malformed       // headers or lengths are inconsistent (dataplane §1.2)
	Fragment        // IP fragments cannot be filtered (dataplane §1.2)
	Oversize        // inner packet above 1280 bytes, or would be as IPv6
	Multicast       // destination is multicast
	OutboundICMP    // ICMP error sent by a client
	ForeignSource   // source is not one of the client's tunnel addresses
	TunnelRange     // destination is somebody else's tunnel address
	GatewayClosed   // destination is the gateway itself, on a closed port
	NoResource      // no granted resource covers the destination
	Filtered        // a resource covers it, no filter admits it
	Expired         // the grant that covered it has ended
	NotPublic       // the Internet resource refuses the address
	Unresolved      // proxy address without a real address
	ControlUnknown  // control packet of unknown type or undecodable body
	ControlOverflow // control packets arrive faster than the peer handles them
	ControlLimited  // the client sends control packets at too high a rate
	NATUnsupported  // to a proxy address, in a protocol without way back, or without counterpart in the other IP version
	NATFull         // the client has as many sessions as it may have
	NATExhausted    // no port is left towards the real address
	NATOverflow     // first packets arrive faster than sessions are made
	ResolverBusy    // too many domains are being resolved

	// Resource to client, judged on the packet read from the TUN device.
	NotAPeer     // destination is not a tunnel address
	NoPeerState  // no client has that tunnel address
	NotAllowed   // no granted resource covers the source
	NotConnected // the client has no WireGuard session
	Unclassified // protocol that cannot be mapped back, or without counterpart in the other IP version
	NATEnded     // for a session of a DNS resource that has ended

	// Datagrams on the UDP sockets.
	DatagramOversize // above 1316 bytes
	DatagramUnknown  // neither WireGuard nor STUN nor ChannelData
	DatagramNoInfo   // without packet info, so without local address
	STUNMalformed    // refused by the pre-check
	STUNUnknown      // no agent or transaction for it
	STUNOverflow     // STUN arrives faster than its receiver handles it
	ChannelUnknown   // ChannelData from an unknown relay or channel
	NoPath           // nothing is known about the way to the client
	SendFailed       // the kernel refused the datagram
	ThirdPartyPanic  // a library panicked on the input

	// Portal.
	FrameMalformed    // not a JSON envelope
	EventUnknown      // an event that is not in the protocol
	PayloadMalformed  // payload does not fit the event
	ElementMalformed  // one element of a list was skipped
	CandidateUnusable // candidate string that does not parse or is not allowed
	ClientUnknown     // message for a client that is not connected
	KeyReplaced       // about the key pair that a reset has replaced

	// Queries to the gateway's DNS servers.
	DNSMalformed   // not a query
	DNSForeign     // not from a client
	DNSOverflow    // too many at once; answered with SERVFAIL
	DNSConnections // TCP connections beyond the limit, of one client or all

	// Inside.
	InjectOverflow    // packets made by the gateway exceed their queue
	MailboxFull       // the receiving actor is behind
	TUNWrite          // the kernel refused the packet
	StateInconsistent // left behind by an actor that failed, and contradictory

	Count // number of reasons, not a reason
)

var names = [Count]string{
	None: "none", Malformed: "malformed", Fragment: "fragment", Oversize: "oversize", Multicast: "multicast",
	OutboundICMP: "outbound_icmp_error", ForeignSource: "foreign_source", TunnelRange: "tunnel_range",
	GatewayClosed: "gateway_closed", NoResource: "no_resource", Filtered: "filtered", Expired: "expired",
	NotPublic: "not_public", Unresolved: "unresolved", ControlUnknown: "control_unknown",
	ControlOverflow: "control_overflow", NotAPeer: "not_a_peer", NoPeerState: "no_peer_state",
	NATUnsupported: "nat_unsupported", NATFull: "nat_full", NATExhausted: "nat_exhausted", NATOverflow: "nat_overflow",
	ResolverBusy: "resolver_busy", NATEnded: "nat_session_ended",
	NotAllowed: "not_allowed", NotConnected: "not_connected", Unclassified: "unclassified",
	DatagramOversize: "datagram_oversize", DatagramUnknown: "datagram_unknown", DatagramNoInfo: "datagram_no_info",
	STUNMalformed: "stun_malformed", STUNUnknown: "stun_unknown", STUNOverflow: "stun_overflow",
	ChannelUnknown: "channel_unknown", NoPath: "no_path", SendFailed: "send_failed",
	ThirdPartyPanic: "third_party_panic", FrameMalformed: "frame_malformed", EventUnknown: "event_unknown",
	PayloadMalformed: "payload_malformed", ElementMalformed: "element_malformed",
	CandidateUnusable: "candidate_unusable", ClientUnknown: "client_unknown", KeyReplaced: "key_replaced",
	DNSMalformed: "dns_malformed", DNSForeign: "dns_foreign", DNSOverflow: "dns_overflow", DNSConnections: "dns_connections",
	InjectOverflow: "inject_overflow",
	MailboxFull:    "mailbox_full", TUNWrite: "tun_write", StateInconsistent: "state_inconsistent",
	ControlLimited: "control_limited",
}

// String returns the reason as it appears in metrics and logs.
func (r Reason) String() string {
	if r >= Count {
		return "invalid"
	}
	return names[r]
}

// Counters counts discards by reason. The zero value is ready; all methods may
// be called concurrently.
type Counters struct {
	n [Count]atomic.Uint64
}

// Add counts n discards for r. Unknown reasons are ignored.
func (c *Counters) Add(r Reason, n uint64) {
	if r != None && r < Count {
		c.n[r].Add(n)
	}
}

// Load returns the count for r.
func (c *Counters) Load(r Reason) uint64 {
	if r >= Count {
		return 0
	}
	return c.n[r].Load()
}

// Each calls f for every reason with a count above zero, in declaration order.
func (c *Counters) Each(f func(Reason, uint64)) {
	for r := None + 1; r < Count; r++ {
		if n := c.n[r].Load(); n > 0 {
			f(r, n)
		}
	}
}
