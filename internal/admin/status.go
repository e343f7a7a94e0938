package admin

import (
	"net/netip"
	"time"
)

// Status is what a gateway knows about itself at one moment, without secrets. Its
// JSON names are what scripts rely on: new ones may come, none changes its
// meaning. Figures are consistent one by one, not with each other. Lists are
// never null.
type Status struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Uptime  float64   `json:"uptime_seconds"`
	Phase   Phase     `json:"phase"`
	// Ready is what /readyz says, Missing its list.
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing"`

	Key     Key          `json:"key"`
	Tunnel  []netip.Addr `json:"tunnel_addresses"` // of the gateway; empty until the portal assigned them
	Portal  Portal       `json:"portal"`
	Relays  []Relay      `json:"relays"`
	Peers   []Peer       `json:"peers"` // by client ID
	NAT     NAT          `json:"nat"`   // of all clients
	DNS     DNS          `json:"dns"`
	Actors  []Actor      `json:"actors"`       // by path, which makes a tree of them
	Dead    uint64       `json:"dead_letters"` // messages between actors that had no receiver
	Drops   Drops        `json:"drops"`        // of everything that belongs to no client
	Omitted Omitted      `json:"omitted"`
}

// Phase is where a gateway is in its life.
type Phase string

// The phases. PhaseResetting is a running gateway that replaces its key.
const (
	PhaseStarting  Phase = "starting"
	PhaseRunning   Phase = "running"
	PhaseResetting Phase = "resetting"
	PhaseEnding    Phase = "ending"
)

// Key is the WireGuard identity in use.
type Key struct {
	Epoch  uint64 `json:"epoch"` // 1 at the start, one more with each reset
	Public string `json:"public_key"`
}

// Portal is the control channel.
type Portal struct {
	Joined bool `json:"joined"`
	// Route is how the socket was reached: v2, v1 or v1-query. It and Generation,
	// v1 or v2, are "" while it is not joined.
	Route      string    `json:"route"`
	Generation string    `json:"generation"`
	Since      time.Time `json:"since,omitzero"` // joined, or lost; left out before the first join
}

// Relay is one TURN server.
type Relay struct {
	ID     string         `json:"id"`
	Usable bool           `json:"usable"`
	Server netip.AddrPort `json:"server"` // in use; "" while none is
	// Relayed are the addresses of the allocation, none while there is none.
	Relayed []netip.AddrPort `json:"relayed_addresses"`
}

// Peer is one client.
type Peer struct {
	ClientID  string       `json:"client_id"`
	PublicKey string       `json:"public_key"` // "" while the client has only been granted something
	Addresses []netip.Addr `json:"tunnel_addresses"`
	// Session is none, handshake, established or expired, and absent for a client
	// that the packet path does not know.
	Session string `json:"session"`
	Path    *Path  `json:"path"` // null until authenticated traffic came
	// LastHandshake and HandshakeAge, in seconds, are left out, and null, without
	// a handshake.
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	HandshakeAge  *float64  `json:"handshake_age_seconds"`
	LastActive    time.Time `json:"last_active,omitzero"` // of packets inside the tunnel
	ToResources   Traffic   `json:"to_resources"`
	ToClient      Traffic   `json:"to_client"`
	Drops         Drops     `json:"drops"`
	Grants        []Grant   `json:"grants"` // by resource ID
	NAT           *NAT      `json:"nat"`    // null until the client has set up a domain
}

// SessionAbsent is the Session of a client that the packet path does not know.
const SessionAbsent = "absent"

// Path is the way to a client.
type Path struct {
	Kind   PathKind       `json:"kind"`
	Local  netip.AddrPort `json:"local"` // of a relayed path the relayed address
	Remote netip.AddrPort `json:"remote"`
	Relay  string         `json:"relay,omitempty"` // its ID, if it is still in use
}

// PathKind tells whether a relay is between.
type PathKind string

// The kinds of paths.
const (
	Direct  PathKind = "direct"
	Relayed PathKind = "relayed"
)

// Traffic counts what passed the policy.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Grant is the access of a client to a resource.
type Grant struct {
	ResourceID string    `json:"resource_id"`
	Name       string    `json:"name"`
	Kind       string    `json:"kind"`    // cidr, dns or internet
	Address    string    `json:"address"` // network or pattern, "" of internet
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
}

// NAT is the address translation for DNS resources. RefusedFull and
// RefusedExhausted are sessions that were not opened.
type NAT struct {
	Clients          int    `json:"clients"` // that have set up a domain
	Proxies          int    `json:"proxies"` // addresses that stand for domains
	Sessions         int    `json:"sessions"`
	Waiting          int    `json:"packets_waiting"` // for their sessions
	Opened           uint64 `json:"sessions_opened"`
	RefusedFull      uint64 `json:"sessions_refused_full"`
	RefusedExhausted uint64 `json:"sessions_refused_exhausted"`
}

// DNS is what the gateway does with names. Counts are of queries of clients,
// since the start.
type DNS struct {
	Nameservers []netip.Addr     `json:"name_servers"`
	Error       string           `json:"error,omitempty"` // of reading them
	Serving     []netip.AddrPort `json:"serving"`         // to clients, each over UDP and TCP
	UnderWay    int              `json:"under_way"`
	Answered    uint64           `json:"answered"`
	Truncated   uint64           `json:"truncated"`
	Failed      uint64           `json:"failed"`
	Overflow    uint64           `json:"overflow"`
	Refused     uint64           `json:"refused"`
	Malformed   uint64           `json:"malformed"`
	Foreign     uint64           `json:"foreign"`
	Connections uint64           `json:"connections_refused"`
}

// Actor is one actor of the gateway.
type Actor struct {
	Path        string    `json:"path"`
	Kind        string    `json:"kind"`
	State       string    `json:"state"` // starting, running, failed, stuck, restarting or stopping
	Restarts    uint64    `json:"restarts"`
	Failures    uint64    `json:"failures"`
	Stuck       uint64    `json:"stuck"`    // failures that were handlers which did not return
	Injected    uint64    `json:"injected"` // effects of POST /fault
	LastFailure string    `json:"last_failure,omitempty"`
	FailedAt    time.Time `json:"failed_at,omitzero"`
	Mailbox     int       `json:"mailbox"` // messages that wait
	Handled     uint64    `json:"handled"`
	MaxBusy     float64   `json:"max_busy_seconds"` // longest handling of one message
	MaxWait     float64   `json:"max_wait_seconds"` // of one message in the mailbox
}

// ActorRunning is the State of an actor that is well.
const ActorRunning = "running"

// Drops counts discards by reason, without those that never happened.
type Drops map[string]uint64

// Omitted counts what a Status leaves out because it would get too large.
type Omitted struct {
	Peers  int `json:"peers"`
	Grants int `json:"grants"`
	Actors int `json:"actors"`
}
