package scale

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

// outstanding is how many authorizations are asked for at a time. The lab's
// portal cuts a gateway off that is 256 messages behind.
const outstanding = 64

// swarm runs simulated clients: their sockets, timers and channels to the portal.
type swarm struct {
	namespace *labnet.Namespace
	portal    string // URL
	token     string
	target    netip.Addr
	relayOnly bool

	four, six *socket
	running   sync.WaitGroup
	window    chan struct{} // one element for each outstanding authorization

	mu       sync.Mutex
	members  []*member     // by number, without the first
	counters counters      // of all clients
	refused  []string      // reasons of the portal
	changed  chan struct{} // closed and replaced when a client's phase changes
	closed   bool
}

// member is one client with what belongs to it. Everything but its channel is
// guarded by swarm.mu.
type member struct {
	client
	swarm  *swarm
	login  *login
	timer  *time.Timer
	asking bool
}

// newSwarm opens the sockets.
func newSwarm(ns *labnet.Namespace, portal, token string, target netip.Addr, relayOnly bool) (*swarm, error) {
	s := &swarm{
		namespace: ns, portal: portal, token: token, target: target, relayOnly: relayOnly,
		window: make(chan struct{}, outstanding), changed: make(chan struct{}),
	}
	var err error
	if s.four, err = listen(ns, netip.IPv4Unspecified()); err != nil {
		return nil, err
	}
	if s.six, err = listen(ns, netip.IPv6Unspecified()); err != nil {
		return nil, errors.Join(err, s.four.conn.Close())
	}
	s.running.Go(func() { s.four.read(s.receive) })
	s.running.Go(func() { s.six.read(s.receive) })
	return s, nil
}

// close ends all clients without a word and waits.
func (s *swarm) close() error {
	s.mu.Lock()
	s.closed = true
	members := s.members
	for _, m := range members {
		m.timer.Stop()
	}
	s.mu.Unlock()
	err := errors.Join(s.four.conn.Close(), s.six.conn.Close())
	for _, m := range members {
		m.login.close()
	}
	s.running.Wait()
	return err
}

// loginsAtOnce bounds how many clients log in at the same time.
const loginsAtOnce = 16

// logIn adds n clients that are logged in and have asked for nothing.
func (s *swarm) logIn(ctx context.Context, n int) ([]*member, error) {
	s.mu.Lock()
	first := uint32(len(s.members)) + 1
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	added, errs := make([]*member, n), make([]error, n)
	var workers sync.WaitGroup
	for worker := range loginsAtOnce {
		workers.Go(func() {
			for i := worker; i < n; i += loginsAtOnce {
				if added[i], errs[i] = s.newMember(ctx, first+uint32(i)); errs[i] != nil {
					cancel()
				}
			}
		})
	}
	workers.Wait()
	err := errors.Join(errs...)
	added = slices.DeleteFunc(added, func(m *member) bool { return m == nil })
	s.mu.Lock()
	s.members = append(s.members, added...)
	s.mu.Unlock()
	for _, m := range added {
		s.running.Go(func() { m.login.read(m.fromPortal) })
	}
	return added, err
}

func (s *swarm) newMember(ctx context.Context, number uint32) (*member, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	m := &member{swarm: s}
	m.client = client{
		number: number, addresses: addressesOf(number), relayOnly: s.relayOnly, target: s.target,
		identity: identity{private: private, public: [32]byte(private.PublicKey().Bytes())},
		wire:     s, counters: &s.counters,
	}
	if m.login, m.inner, err = logIn(ctx, s.namespace, s.portal, s.token, m.id(), m.identity.public); err != nil {
		return nil, fmt.Errorf("%s: %w", m.id(), err)
	}
	m.timer = time.AfterFunc(time.Hour, func() { s.step(m, func(now time.Time) { m.advance(now) }) })
	return m, nil
}

// id is the client's external id.
func (m *member) id() string { return fmt.Sprintf("scale-%d", m.number) }

// connect asks the portal for access on behalf of each client.
func (s *swarm) connect(ctx context.Context, members []*member, resourceID string) error {
	for _, m := range members {
		select {
		case s.window <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		m.asking = true
		s.mu.Unlock()
		request := map[string]any{"resource_id": resourceID, "connected_gateway_ids": []string{}}
		if err := m.login.send("request_authorization", request); err != nil {
			return fmt.Errorf("%s: %w", m.id(), err)
		}
	}
	return nil
}

// answeredByPortal ends the waiting for an authorization.
func (m *member) answeredByPortal() {
	m.swarm.mu.Lock()
	defer m.swarm.mu.Unlock()
	if m.asking {
		m.asking = false
		<-m.swarm.window
	}
}

// fromPortal handles a message of the portal.
func (m *member) fromPortal(f frame) {
	switch f.Event {
	case "authorization_created":
		var a authorization
		if json.Unmarshal(f.Payload, &a) != nil {
			return
		}
		m.swarm.step(m, func(now time.Time) {
			if err := m.authorize(a, now); err != nil {
				m.swarm.refused = append(m.swarm.refused, err.Error())
			}
		})
		var lines []string
		for _, address := range m.addresses {
			lines = append(lines, ownCandidates(address)...)
		}
		// A channel that is lost shows itself as a client that does not connect.
		_ = m.login.send("new_gateway_ice_candidates", map[string]any{"gateway_id": a.GatewayID, "candidates": lines})
		m.answeredByPortal()
	case "authorization_creation_failed":
		var failure struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(f.Payload, &failure) // without a reason it is a failure as well
		m.swarm.step(m, func(time.Time) { m.swarm.refused = append(m.swarm.refused, failure.Reason) })
		m.answeredByPortal()
	case "ice_candidates":
		var c struct {
			Candidates []string `json:"candidates"`
		}
		if json.Unmarshal(f.Payload, &c) == nil {
			m.swarm.step(m, func(now time.Time) { m.addRemote(c.Candidates, now) })
		}
	}
}

// receive hands a datagram to the client whose address it was sent to.
func (s *swarm) receive(b []byte, local, remote netip.AddrPort) {
	number := int(numberOf(local.Addr()))
	s.mu.Lock()
	var m *member
	if number >= 1 && number <= len(s.members) {
		m = s.members[number-1]
	}
	s.mu.Unlock()
	if m != nil {
		s.step(m, func(now time.Time) { m.client.receive(b, local, remote, now) })
	}
}

// step runs something of a client and sets its timer for what comes next.
func (s *swarm) step(m *member, do func(now time.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	before, answered := m.phase, m.answered
	now := time.Now()
	do(now)
	if next := m.next(); next.IsZero() {
		m.timer.Stop()
	} else {
		m.timer.Reset(next.Sub(now))
	}
	if m.phase != before || m.answered != answered {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// send implements wire.
func (s *swarm) send(b []byte, local, remote netip.AddrPort) {
	if local.Addr().Is4() {
		s.four.send(b, local, remote)
	} else {
		s.six.send(b, local, remote)
	}
}

// await waits until done is true, which is asked under the lock whenever a client
// has changed.
func (s *swarm) await(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// count returns how many of the clients are in a phase. The caller holds mu.
func count(members []*member, p phase) (n int) {
	for _, m := range members {
		if m.phase == p {
			n++
		}
	}
	return n
}

// pingAll sends an inner packet for each client and waits for the answers.
func (s *swarm) pingAll(ctx context.Context, members []*member) (answered int) {
	begin := time.Now()
	for _, m := range members {
		s.step(m, m.ping)
	}
	tally := func() bool {
		answered = 0
		for _, m := range members {
			if m.phase == phaseConnected && !m.client.answered.Before(begin) {
				answered++
			}
		}
		return answered == len(members)
	}
	_ = s.await(ctx, tally) // what did not come in time is missing in the tally
	return answered
}

// snapshot returns the counters.
func (s *swarm) snapshot() counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}
