package portal

import "encoding/json"

// Outgoing is something the gateway tells the portal (§4): one of Acknowledge,
// ConnectionReady, BroadcastICECandidates, BroadcastInvalidatedICECandidates
// and NoRelays.
type Outgoing interface {
	// Event returns the name on the wire.
	Event() string
	// Payload returns the JSON payload, secrets included.
	Payload() ([]byte, error)

	outgoing() // closes the set, so that every payload is known to be JSON
}

// Acknowledge confirms an Authorize (§4.1). It must be sent before the ICE
// candidates of that connection.
type Acknowledge struct {
	Generation Generation
	Ref        Ref
}

// Event returns flow_authorized or authorization_created; the portal refuses
// the name of the other generation.
func (a Acknowledge) Event() string {
	if a.Generation == V1 {
		return "flow_authorized"
	}
	return "authorization_created"
}

// Payload implements Outgoing.
func (a Acknowledge) Payload() ([]byte, error) {
	return json.Marshal(struct {
		Ref string `json:"ref"`
	}{string(a.Ref)})
}

// ConnectionReady answers a RequestConnection (§4.2).
type ConnectionReady struct {
	Ref        Ref
	GatewayICE ICECredentials
}

// Event implements Outgoing.
func (ConnectionReady) Event() string { return "connection_ready" }

// Payload implements Outgoing.
func (c ConnectionReady) Payload() ([]byte, error) {
	type parameters struct {
		Username string `json:"username"`
		Password string `json:"password"`
	}
	type accepted struct {
		ICE parameters `json:"ice_parameters"`
	}
	type gatewayPayload struct {
		Accepted accepted `json:"ConnectionAccepted"`
	}
	return json.Marshal(struct {
		Ref     string         `json:"ref"`
		Payload gatewayPayload `json:"gateway_payload"`
	}{string(c.Ref), gatewayPayload{accepted{parameters(c.GatewayICE)}}})
}

// BroadcastICECandidates announces local candidates, highest priority first
// (§4.3). It gets no reply.
type BroadcastICECandidates struct {
	ClientIDs  []string
	Candidates []string
}

// Event implements Outgoing.
func (BroadcastICECandidates) Event() string { return "broadcast_ice_candidates" }

// Payload implements Outgoing.
func (b BroadcastICECandidates) Payload() ([]byte, error) {
	return candidatesPayload(b.ClientIDs, b.Candidates)
}

// BroadcastInvalidatedICECandidates takes local candidates back (§4.3). It gets
// no reply.
type BroadcastInvalidatedICECandidates struct {
	ClientIDs  []string
	Candidates []string
}

// Event implements Outgoing.
func (BroadcastInvalidatedICECandidates) Event() string {
	return "broadcast_invalidated_ice_candidates"
}

// Payload implements Outgoing.
func (b BroadcastInvalidatedICECandidates) Payload() ([]byte, error) {
	return candidatesPayload(b.ClientIDs, b.Candidates)
}

// NoRelays asks for relays (§4.4). Portals that know it answer with
// RelaysPresence, others refuse it with ReasonUnknownMessage.
type NoRelays struct{}

// Event implements Outgoing.
func (NoRelays) Event() string { return "no_relays" }

// Payload implements Outgoing.
func (NoRelays) Payload() ([]byte, error) { return []byte("{}"), nil }

func (Acknowledge) outgoing()                       {}
func (ConnectionReady) outgoing()                   {}
func (BroadcastICECandidates) outgoing()            {}
func (BroadcastInvalidatedICECandidates) outgoing() {}
func (NoRelays) outgoing()                          {}

func candidatesPayload(clients, candidates []string) ([]byte, error) {
	// A nil slice would encode as null, which the portal does not take for a list.
	if clients == nil {
		clients = []string{}
	}
	if candidates == nil {
		candidates = []string{}
	}
	return json.Marshal(struct {
		ClientIDs  []string `json:"client_ids"`
		Candidates []string `json:"candidates"`
	}{clients, candidates})
}
