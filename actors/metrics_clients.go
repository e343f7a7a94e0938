package actors

import (
	"slices"
	"time"

	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
)

var (
	receiving = telemetry.AttrDirection.String(telemetry.Receive)
	sending   = telemetry.AttrDirection.String(telemetry.Transmit)
)

func (m *meter) collectClients(o telemetry.Observation, now time.Time) {
	sum := m.plane.Tunnel.Totals()
	o.Count(telemetry.TunnelPackets, sum.ToResourcePackets, receiving)
	o.Count(telemetry.TunnelPackets, sum.ToClientPackets, sending)
	o.Count(telemetry.TunnelBytes, sum.ToResourceBytes, receiving)
	o.Count(telemetry.TunnelBytes, sum.ToClientBytes, sending)
	o.Count(telemetry.Handshakes, sum.Handshakes)
	m.collectDrops(o, &sum.Drops)

	m.states = m.plane.store.all(m.states[:0])
	defer clear(m.states)
	sessions := map[string]uint64{
		admin.SessionAbsent: 0, tunnel.SessionNone.String(): 0, tunnel.SessionHandshake.String(): 0,
		tunnel.SessionEstablished.String(): 0, tunnel.SessionExpired.String(): 0,
	}
	pairs := map[string]uint64{"PeerToPeer": 0, "PeerToRelay": 0, "RelayToPeer": 0, "RelayToRelay": 0}
	var granted, grants, proxies, translated, ports, waiting uint64
	oldest := now
	tables := func(yield func(*nat.Table)) {
		for i := range m.states {
			if n := m.states[i].NAT; n != nil {
				yield(n.Table())
			}
		}
	}
	for i := range m.states {
		state := &m.states[i]
		if n := state.Grants.Len(); n > 0 {
			granted++
			grants += uint64(n)
		}
		if n := state.NAT; n != nil {
			t := n.Table().Stats()
			proxies += uint64(t.Proxies)
			translated += uint64(t.Sessions)
			ports += uint64(t.Sessions + t.Remembered)
			waiting += uint64(n.Waiting())
		}
		client, ok := m.plane.client(*state)
		if !ok {
			sessions[admin.SessionAbsent]++
			continue
		}
		session := client.Session()
		sessions[session.String()]++
		if session != tunnel.SessionEstablished {
			continue
		}
		if path := client.Path(); path != nil {
			pairs[socketPair(path, state.Remote)]++
		}
		if at := client.Counters().LastHandshake.Load(); at != 0 && at < oldest.UnixNano() {
			oldest = time.Unix(0, at)
		}
	}
	for state, n := range sessions {
		o.Count(telemetry.Sessions, n, telemetry.AttrSession.String(state))
	}
	for pair, n := range pairs {
		o.Count(telemetry.Connections, n, telemetry.AttrSocketPair.String(pair))
	}
	o.Seconds(telemetry.HandshakeAge, max(0, now.Sub(oldest).Seconds()))
	o.Count(telemetry.Peers, granted)
	o.Count(telemetry.Grants, grants)
	o.Count(telemetry.NATProxies, proxies)
	o.Count(telemetry.NATSessions, translated)
	o.Count(telemetry.NATPorts, ports)
	o.Count(telemetry.NATOpened, m.tables.total(tables)[0])
	o.Count(telemetry.QueueLength, waiting, telemetry.AttrQueueItem.String("nat_packet"))
}

// socketPair names the ends of a path, ours first. That the other one is a relay
// is known from the client's candidates.
func socketPair(path *transport.Path, candidates []ice.Candidate) string {
	relayed := slices.ContainsFunc(candidates, func(c ice.Candidate) bool { return c.Type == ice.Relay && c.Addr == path.Remote() })
	switch {
	case path.Relay() != nil && relayed:
		return "RelayToRelay"
	case path.Relay() != nil:
		return "RelayToPeer"
	case relayed:
		return "PeerToRelay"
	}
	return "PeerToPeer"
}

// all appends the states of all clients.
func (s *store) all(to []clientState) []clientState {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.m {
		to = append(to, c)
	}
	return to
}
