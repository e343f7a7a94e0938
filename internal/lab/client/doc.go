// Package client is a Firezone client for the lab: the client side of the
// portal protocol, ICE as the controlling agent, WireGuard and a TUN device in
// a network namespace of its own. It is written against the specification and
// shares no code with the gateway, so that the two test each other: its engine
// is golang.zx2c4.com/wireguard, its ICE agent pion's with pion's own mux, or one
// that looks for paths as the original's client does, see Config.Original. It
// makes no allocations of its own at relays, unless Config.Allocates is set: a
// relayed path is one through the gateway's.
package client

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"time"
)

// Namespace runs code inside a network namespace. Sockets and devices made
// there stay there.
type Namespace interface {
	Do(func() error) error
}

// Config describes a client.
type Config struct {
	Portal    string // base URL of the portal, for example ws://203.0.113.2:8081
	Token     string
	ID        string // external id, unique per client
	Name      string
	V1        bool // speak the older generation of the protocol
	Namespace Namespace
	// Addresses are the client's own addresses on its network; host candidates
	// are made of them. One per family.
	Addresses []netip.Addr
	TUNName   string // default "tun-client"
	// Original makes the client follow the best path, up and down, at the pace of
	// the original's client (transport §2.7 to §2.9): a pair that dies is given up
	// after some 15 s, a connection without any is asked for again. Without it
	// pion's agent takes one path for good, until Reconnect.
	Original bool
	// Allocates makes an Original client have an allocation of its own at each
	// relay, as the original's has: the only way from behind a symmetric NAT to a
	// gateway that filters by port.
	Allocates bool
	// PrivateKey is the WireGuard key of a client that was here before; the zero
	// value makes a new one.
	PrivateKey [32]byte
	// Persistent asks for everything again after a gateway said goodbye, as a
	// client with traffic to send does.
	Persistent bool
	Logger     *slog.Logger
}

// Interface is what the portal assigned to the client.
type Interface struct {
	IPv4 netip.Addr `json:"ipv4"`
	IPv6 netip.Addr `json:"ipv6"`
}

// Resource is a resource as the portal lists it.
type Resource struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Name    string `json:"name"`
	Address string `json:"address"`
}

type relay struct {
	Type string         `json:"type"`
	ID   string         `json:"id"`
	Addr netip.AddrPort `json:"addr"`

	Username string `json:"username"`
	Password string `json:"password"`
}

type relaysPresence struct {
	DisconnectedIDs []string `json:"disconnected_ids"`
	Connected       []relay  `json:"connected"`
}

type initPayload struct {
	Interface Interface  `json:"interface"`
	Resources []Resource `json:"resources"`
	Relays    []relay    `json:"relays"`
}

type iceCredentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// authorization is flow_created and authorization_created alike.
type authorization struct {
	ResourceID       string         `json:"resource_id"`
	GatewayID        string         `json:"gateway_id"`
	GatewayPublicKey string         `json:"gateway_public_key"`
	GatewayIPv4      netip.Addr     `json:"gateway_ipv4"`
	GatewayIPv6      netip.Addr     `json:"gateway_ipv6"`
	PresharedKey     string         `json:"preshared_key"`
	ClientICE        iceCredentials `json:"client_ice_credentials"`
	GatewayICE       iceCredentials `json:"gateway_ice_credentials"`
}

type refusal struct {
	ResourceID string `json:"resource_id"`
	Reason     string `json:"reason"`
}

type candidates struct {
	GatewayID  string   `json:"gateway_id"`
	Candidates []string `json:"candidates"`
}

type frame struct {
	Topic   string          `json:"topic"`
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"`
	Ref     *int            `json:"ref"`
}

const (
	heartbeatInterval = 10 * time.Second
	writeTimeout      = 5 * time.Second
	joinTimeout       = 5 * time.Second

	// originalHandshakeGap is how long after a handshake of its own accord the
	// original does without another (transport §5.2).
	originalHandshakeGap = 20 * time.Second
)

// handshakeGap is the least time between handshakes that a new path causes.
func (c *Config) handshakeGap() time.Duration {
	if c.Original {
		return originalHandshakeGap
	}
	return 0
}
