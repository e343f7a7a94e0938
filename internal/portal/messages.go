package portal

import (
	"net/netip"
	"time"
)

// Generation tells the two forms of the gateway socket apart (§5.1): it decides
// the name of a grant and of its acknowledgement.
type Generation uint8

// The generations. The zero value is neither.
const (
	V1 Generation = iota + 1 // authorize_flow, flow_authorized
	V2                       // create_authorization, authorization_created
)

// String returns "v1" or "v2".
func (g Generation) String() string {
	switch g {
	case V1:
		return "v1"
	case V2:
		return "v2"
	default:
		return "unknown"
	}
}

// Message is something the portal tells the gateway (§3): one of Init,
// Authorize, RequestConnection, AllowAccess, RejectAccess, ICECandidates,
// InvalidateICECandidates, RelaysPresence, ResourceUpdated, ExpiryUpdated,
// Disconnect and Unknown. Messages are values; their slices are not shared.
//
// Ids are between 1 and 64 letters, digits, '-', '_', '.' and ':', so that they
// can be parts of names and labels.
type Message interface{ message() }

// Init configures the gateway (§3.1). It may be repeated on one connection.
type Init struct {
	AccountSlug    string // may be empty
	IPv4, IPv6     netip.Addr
	Relays         []Relay         // unmerged, see MergeRelays
	Authorizations []Authorization // everything the portal considers granted
}

// Authorization is one grant in an Init.
type Authorization struct {
	ClientID   string
	ResourceID string
	ExpiresAt  time.Time // zero means never
}

// Client is the WireGuard peer of a grant.
type Client struct {
	ID           string
	PublicKey    PublicKey
	PresharedKey PresharedKey
	IPv4, IPv6   netip.Addr // tunnel addresses
}

// Authorize grants a client access to a resource: authorize_flow and
// create_authorization (§3.2, §3.3). Generation tells which, and with it the
// name of the acknowledgement.
type Authorize struct {
	Generation Generation
	Ref        Ref
	Resource   Resource
	Client     Client
	ClientICE  ICECredentials // remote
	GatewayICE ICECredentials // local
	ExpiresAt  time.Time      // zero means never
	UseIceless bool
}

// Acknowledge returns the acknowledgement that belongs to a.
func (a Authorize) Acknowledge() Acknowledge {
	return Acknowledge{Generation: a.Generation, Ref: a.Ref}
}

// Domain is the name behind a DNS resource in the legacy messages, and the
// proxy addresses that the client assigned to it. The zero value means none.
type Domain struct {
	Name     string
	ProxyIPs []netip.Addr
}

// RequestConnection is the legacy request for connection and first resource at
// once (§3.4). It is answered with ConnectionReady.
type RequestConnection struct {
	Ref       Ref
	Resource  Resource
	Client    Client
	ClientICE ICECredentials
	Domain    Domain
	ExpiresAt time.Time // zero means never
}

// AllowAccess is the legacy grant of a further resource (§3.5). It is never
// answered and may overtake the RequestConnection of the same client.
type AllowAccess struct {
	ClientID   string
	IPv4, IPv6 netip.Addr // the client's tunnel addresses
	Resource   Resource
	Domain     Domain
	ExpiresAt  time.Time // zero means never
}

// RejectAccess revokes one grant (§3.6).
type RejectAccess struct {
	ClientID   string
	ResourceID string
}

// ICECandidates adds remote candidates (§3.7).
type ICECandidates struct {
	ClientID   string
	Candidates []string // SDP candidate lines with the prefix "candidate:"
}

// InvalidateICECandidates removes remote candidates (§3.7).
type InvalidateICECandidates struct {
	ClientID   string
	Candidates []string
}

// RelaysPresence replaces relays (§3.8). DisconnectedIDs apply first; relays
// not mentioned stay.
type RelaysPresence struct {
	DisconnectedIDs []string
	Connected       []Relay // unmerged, see MergeRelays
}

// ResourceUpdated carries new filters of a resource (§3.9).
type ResourceUpdated struct {
	Resource Resource
}

// ExpiryUpdated moves the end of an existing grant (§3.10).
type ExpiryUpdated struct {
	ClientID   string
	ResourceID string
	ExpiresAt  time.Time
}

// Disconnect announces that the portal ends the connection (§1.6). Only the
// reason TokenExpired has a meaning.
type Disconnect struct {
	Reason string
}

// TokenExpired is the one reason of a Disconnect that ends the gateway.
const TokenExpired = "token_expired"

// Unknown is an event that is not in the protocol.
type Unknown struct {
	Event string // printable, bounded
}

func (Init) message()                    {}
func (Authorize) message()               {}
func (RequestConnection) message()       {}
func (AllowAccess) message()             {}
func (RejectAccess) message()            {}
func (ICECandidates) message()           {}
func (InvalidateICECandidates) message() {}
func (RelaysPresence) message()          {}
func (ResourceUpdated) message()         {}
func (ExpiryUpdated) message()           {}
func (Disconnect) message()              {}
func (Unknown) message()                 {}
