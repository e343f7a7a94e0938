package actors

import (
	"maps"
	"slices"
	"sync"

	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// clientState is everything about a client that outlives its actor. It is a
// value, replaced as a whole after each handled message; slices in it are never
// written to again.
type clientState struct {
	// Client has its keys once an authorization named them.
	Client     portal.Client
	ClientICE  portal.ICECredentials // remote
	GatewayICE portal.ICECredentials // local
	Gateway    messages.TunnelAddresses
	Grants     policy.Grants
	Remote     []ice.Candidate // as signalled, without those made up
	Signalled  []ice.Candidate // our own that the client knows
	RelayID    string          // the relay sampled for this connection
	Connected  bool            // a connection exists or is being made
	// NAT translates for the client's domains; nil if none was set up. Its table
	// is written by the nat actor, whose end it outlives.
	NAT *tunnel.NAT
}

// empty reports whether there is nothing to keep.
func (s clientState) empty() bool { return s.Grants.Len() == 0 && !s.Connected }

// serves reports whether a asks for just the connection of s (transport §5.5).
func (s clientState) serves(a portal.Authorize) bool {
	return s.Connected && s.Client == a.Client && s.ClientICE == a.ClientICE && s.GatewayICE == a.GatewayICE
}

// store keeps the state of all clients for their actors. It is owned by the
// gateway's plane, so that it outlives peers and every peer. It holds nothing of
// clients that have nothing.
type store struct {
	mu sync.Mutex
	m  map[string]clientState
}

func newStore() *store { return &store{m: map[string]clientState{}} }

func (s *store) get(id string) clientState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[id]
}

func (s *store) put(id string, c clientState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.empty() {
		delete(s.m, id)
		return
	}
	s.m[id] = c
}

func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.m)
}

func (s *store) delete(id string) { s.put(id, clientState{}) }

func (s *store) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.m))
}
