package portal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	relaysSent        = 2 // that a peer is told (portal-protocol §6.4)
	maxStampSecret    = 256
	turnLifetimeAt1_4 = 90 * 24 * time.Hour
)

// Relay is a TURN server that accepts the stamp credentials of
// portal-protocol §6.4. At least one address must be valid.
type Relay struct {
	ID          string         `json:"id"` // UUID; RelayID(StampSecret) when empty
	V4          netip.AddrPort `json:"ipv4,omitzero"`
	V6          netip.AddrPort `json:"ipv6,omitzero"`
	StampSecret string         `json:"stamp_secret"`
}

// String hides the secret.
func (r Relay) String() string { return "Relay{" + r.ID + "}" }

// turnServer is a relay on the wire, one entry per address family.
type turnServer struct {
	Type      string `json:"type"`
	ID        string `json:"id"`
	Addr      string `json:"addr"`
	Username  string `json:"username"`
	Password  string `json:"password"`
	ExpiresAt int64  `json:"expires_at"`
}

type relaysPresence struct {
	DisconnectedIDs []string     `json:"disconnected_ids"`
	Connected       []turnServer `json:"connected"`
}

// SetRelays replaces the relays that were set from outside. Relays that logged
// in themselves stay. Peers learn of it after Config.RelayDebounce if one of
// their relays is gone or they have fewer than two, or by PushRelaysPresence.
func (s *Server) SetRelays(relays []Relay) error {
	set := make([]Relay, len(relays))
	seen := make(map[string]bool)
	for i, r := range relays {
		setDefault(&r.ID, RelayID(r.StampSecret))
		id, err := normalizedID(r.ID)
		switch {
		case err != nil:
			return fmt.Errorf("relay: %w", err)
		case seen[id]:
			return fmt.Errorf("relay %s occurs twice", id)
		case r.StampSecret == "":
			return fmt.Errorf("relay %s has no stamp secret", id)
		case !r.V4.IsValid() && !r.V6.IsValid():
			return fmt.Errorf("relay %s has no address", id)
		case r.V4.IsValid() && !r.V4.Addr().Is4(), r.V6.IsValid() && (!r.V6.Addr().Is6() || r.V6.Addr().Is4In6()):
			return fmt.Errorf("relay %s has an address of the wrong family", id)
		}
		r.ID, seen[id] = id, true
		set[i] = r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.relays = set
	s.relaysChanged()
	return nil
}

// PushRelaysPresence tells every joined gateway and client which relays it has
// lost and which it has.
func (s *Server) PushRelaysPresence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sess := range s.sessions {
		if sess.joined && sess.dev != nil {
			s.pushRelays(sess)
		}
	}
}

// admitRelay completes a relay session from its join payload.
func (s *Server) admitRelay(sess *session, payload json.RawMessage) bool {
	var join struct {
		StampSecret string `json:"stamp_secret"`
	}
	if !decode(payload, &join) || join.StampSecret == "" || len(join.StampSecret) > maxStampSecret {
		return false
	}
	sess.relay.StampSecret = join.StampSecret
	sess.relay.ID = RelayID(join.StampSecret)
	return true
}

// online returns the relays that can be used, in a stable order.
func (s *Server) online() []Relay {
	var loggedIn []Relay
	for _, sess := range s.joined(RelayServer) {
		loggedIn = append(loggedIn, sess.relay)
	}
	slices.SortFunc(loggedIn, func(a, b Relay) int { return cmp.Compare(a.ID, b.ID) })
	seen := make(map[string]bool)
	return slices.DeleteFunc(append(slices.Clone(s.relays), loggedIn...), func(r Relay) bool {
		known := seen[r.ID]
		seen[r.ID] = true
		return known
	})
}

// choose picks the relays for a peer. Those it knows come first, so that a new
// relay does not move anybody.
func (s *Server) choose(sess *session) []Relay {
	relays := s.online()
	slices.SortStableFunc(relays, func(a, b Relay) int { return rank(sess, a) - rank(sess, b) })
	return relays[:min(len(relays), relaysSent)]
}

func rank(sess *session, r Relay) int {
	if sess.told[r.ID] == r.StampSecret {
		return 0
	}
	return 1
}

// turnServers renders the relays with the peer's credentials and notes what it
// was told. Both families of a relay are adjacent (portal-protocol §3).
func (s *Server) turnServers(sess *session, relays []Relay) []turnServer {
	expiry := TURNExpiry
	switch {
	case sess.role == Client:
		expiry = sess.expires.Unix()
	case s.cfg.V1Only:
		expiry = s.cfg.Now().Add(turnLifetimeAt1_4).Unix()
	}
	entries := []turnServer{}
	clear(sess.told)
	for _, r := range relays {
		sess.told[r.ID] = r.StampSecret
		username, password := DeriveTURN(r.StampSecret, sess.publicKey, expiry)
		for _, addr := range []netip.AddrPort{r.V4, r.V6} {
			if addr.IsValid() {
				entries = append(entries, turnServer{"turn", r.ID, addr.String(), username, password, expiry})
			}
		}
	}
	return entries
}

func (s *Server) pushRelays(sess *session) {
	before := maps.Clone(sess.told)
	connected := s.turnServers(sess, s.choose(sess))
	gone := []string{}
	for id, secret := range before {
		if sess.told[id] != secret {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	s.push(sess, "relays_presence", relaysPresence{gone, connected})
	s.emit(sess, Event{Kind: RelaysPushed})
}

// answerNoRelays starts the peer's relays afresh.
func (s *Server) answerNoRelays(sess *session) {
	clear(sess.told)
	s.emit(sess, Event{Kind: NoRelays})
	s.pushRelays(sess)
}

// relaysChanged pushes to the peers concerned once the debounce time is over.
func (s *Server) relaysChanged() {
	if s.presence != nil || s.closed {
		return
	}
	s.presence = time.AfterFunc(s.cfg.RelayDebounce, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.presence = nil
		if s.closed {
			return
		}
		online := s.online()
		for sess := range s.sessions {
			if sess.joined && sess.dev != nil && affected(sess, online) {
				s.pushRelays(sess)
			}
		}
	})
}

// affected reports whether a relay of the peer is gone, or it has fewer than
// it should and there are more to have.
func affected(sess *session, online []Relay) bool {
	kept := 0
	for _, r := range online {
		kept += 1 - rank(sess, r)
	}
	return kept < len(sess.told) || kept < min(relaysSent, len(online))
}
