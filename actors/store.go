package actors

import (
	"maps"
	"net/netip"
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

// is reports whether c is the connection of s.
func (s clientState) is(c *tunnel.Client) bool {
	return s.Connected && c.PublicKey() == s.Client.PublicKey && c.PresharedKey() == s.Client.PresharedKey &&
		c.Serves(s.Client.IPv4, s.Client.IPv6)
}

// claims are what a connection has that no other one may have.
func (s clientState) claims() (claims []any) {
	if !s.Connected {
		return nil
	}
	for _, a := range [...]netip.Addr{s.Client.IPv4, s.Client.IPv6} {
		if a.IsValid() {
			claims = append(claims, a)
		}
	}
	return append(claims, s.Client.PublicKey)
}

// disconnected returns s without its connection.
func (s clientState) disconnected() clientState {
	s.Connected, s.Remote, s.Signalled = false, nil, nil
	return s
}

// empty reports whether there is nothing to keep.
func (s clientState) empty() bool { return s.Grants.Len() == 0 && !s.Connected }

// serves reports whether a asks for just the connection of s (transport §5.5).
func (s clientState) serves(a portal.Authorize) bool {
	return s.Connected && s.Client == a.Client && s.ClientICE == a.ClientICE && s.GatewayICE == a.GatewayICE
}

// lease is the right to write the state of one client, of which the latest counts:
// an incarnation that was replaced although it had not ended writes nothing any more.
type lease uint64

// store keeps the state of all clients for their actors. It is owned by the
// gateway's plane, so that it outlives peers and every peer. It holds nothing of
// clients that have nothing.
//
// It is ahead of the packet path: grants and connections are in the store, and
// grants that end are out of it, before that is in force. A crash in between is
// healed by the next incarnation, which makes the packet path like the store. Only
// the end of a connection comes to the packet path first; after a crash it is made
// again, with what the store grants.
type store struct {
	mu     sync.Mutex
	m      map[string]clientState
	leases map[string]lease
	last   lease
}

func newStore() *store { return &store{m: map[string]clientState{}, leases: map[string]lease{}} }

func (s *store) get(id string) clientState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[id]
}

// take returns the state for the next writer, with its lease. It reports whether the
// last writer went without giving its lease back, and so by a failure.
func (s *store) take(id string) (c clientState, by lease, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, failed = s.leases[id]
	s.last++
	s.leases[id] = s.last
	return s.m[id], s.last, failed
}

// keep writes the state of a client, unless the lease is not the latest.
func (s *store) keep(id string, by lease, c clientState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[id] != by {
		return false
	}
	s.set(id, c)
	return true
}

// release gives a lease back.
func (s *store) release(id string, by lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[id] == by {
		delete(s.leases, id)
	}
}

func (s *store) put(id string, c clientState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(id, c)
}

// set is put for who holds mu.
func (s *store) set(id string, c clientState) {
	if c.empty() {
		delete(s.m, id)
		return
	}
	s.m[id] = c
}

// clear forgets all clients, and takes all leases back.
func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.m)
	clear(s.leases)
}

// delete forgets a client, and takes its lease back.
func (s *store) delete(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, id)
	delete(s.leases, id)
}

func (s *store) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.m))
}

// connected returns the states of the clients that have a connection, by key.
func (s *store) connected() map[portal.PublicKey]clientState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[portal.PublicKey]clientState, len(s.m))
	for _, c := range s.m {
		if c.Connected {
			out[c.Client.PublicKey] = c
		}
	}
	return out
}

// rivals returns the clients whose connection claims a key or a tunnel address that
// another one claims, too.
func (s *store) rivals() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	claims := map[any]string{}
	rivals := map[string]bool{}
	for id, c := range s.m {
		for _, claim := range c.claims() {
			if other, taken := claims[claim]; taken {
				rivals[id], rivals[other] = true, true
			}
			claims[claim] = id
		}
	}
	return slices.Sorted(maps.Keys(rivals))
}

// rivalled reports whether another client's connection claims a key or a tunnel
// address of c's.
func (s *store) rivalled(id string, c clientState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := c.claims()
	for other, o := range s.m {
		if other != id && slices.ContainsFunc(o.claims(), func(claim any) bool { return slices.Contains(mine, claim) }) {
			return true
		}
	}
	return false
}
