package actors

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
)

// maxRemoteCandidates bounds what one client can make us check (transport §2.7).
const maxRemoteCandidates = 50

// connection is the transport of one client: an ICE agent that answers checks
// and punches holes, and the client's entry in the packet path, which finds the
// path by itself. It belongs to the peer that opened it.
type connection struct {
	plane  *Plane
	id     string // the client's
	client *tunnel.Client
	ufrag  string // the client's
	agent  ice.Agent
	failed atomic.Bool // the agent has heard nothing for very long
	// checked is set once a check of the agent was answered, or one of the client's
	// nominated a pair.
	checked atomic.Bool
}

// openConnection makes the agent and admits the client. With adopt a client that
// the packet path knows already, with the same keys, is taken over with its
// session; without it is replaced.
//
// The state is in the store by then.
func openConnection(p *Plane, log *slog.Logger, s clientState, callbacks tunnel.Callbacks, adopt bool) (*connection, error) {
	c := &connection{plane: p, id: s.Client.ID}
	if old, ok := p.Tunnel.Lookup(s.Client.PublicKey); ok {
		switch {
		case adopt && s.is(old):
			old.SetPolicy(p.compile(s))
			old.SetNAT(s.NAT)
			old.Adopt(callbacks)
			c.client = old
		case adopt:
			p.discarded(log, []string{"client in the packet path with other parameters"}, "client_id", s.Client.ID)
			fallthrough
		default:
			p.Tunnel.Remove(old)
		}
	}
	if c.client == nil {
		client, err := p.admit(log, tunnel.ClientConfig{
			PublicKey: s.Client.PublicKey, PresharedKey: s.Client.PresharedKey,
			TunnelV4: s.Client.IPv4, TunnelV6: s.Client.IPv6,
			Policy: p.compile(s), NAT: s.NAT, Callbacks: callbacks,
		})
		if err != nil {
			return nil, fmt.Errorf("admit client: %w", err)
		}
		c.client = client
	}
	agent, err := ice.New(ice.Config{
		LocalUfrag: s.GatewayICE.Username, LocalPwd: s.GatewayICE.Password,
		RemoteUfrag: s.ClientICE.Username, RemotePwd: s.ClientICE.Password,
		Locals: s.Signalled, Mux: p.Mux, Logger: log,
		OnBest:   c.follow,
		OnState:  func(now ice.State) { c.note(now, callbacks) },
		LastData: func() time.Time { return time.Unix(0, c.client.Counters().LastActive.Load()) },
	})
	if err != nil {
		p.Tunnel.Remove(c.client)
		return nil, fmt.Errorf("ICE agent: %w", err)
	}
	c.agent, c.ufrag = agent, s.ClientICE.Username
	for _, r := range slices.Concat(s.Remote, ice.Optimistic(s.Remote)) {
		agent.AddRemote(r)
	}
	return c, nil
}

// admit adds a client to the packet path. One that is in its way although the store
// knows nothing of it is removed.
func (p *Plane) admit(log *slog.Logger, cfg tunnel.ClientConfig) (*tunnel.Client, error) {
	client, err := p.Tunnel.Add(cfg)
	if !errors.Is(err, tunnel.ErrKeyTaken) || !p.disown(log) {
		return client, err
	}
	return p.Tunnel.Add(cfg)
}

// follow leads the data to the pair that the client nominated: one that only
// receives would not show us where it is (T-19). Authenticated traffic from
// elsewhere overrules it.
func (c *connection) follow(local, remote netip.AddrPort) {
	if path := c.plane.sinks.path(local, remote); path != nil {
		c.plane.arrivals.nominated(c.id, path.Relay() != nil)
		c.client.Move(path)
	}
}

// note keeps the agent's state, and tells the owner when the agent gave up, which
// it takes back when it hears the client again.
func (c *connection) note(s ice.State, callbacks tunnel.Callbacks) {
	if s == ice.StateConnected {
		c.checked.Store(true)
		c.plane.arrivals.checked(c.id)
	}
	if gaveUp := s == ice.StateFailed; c.failed.Swap(gaveUp) != gaveUp && gaveUp {
		callbacks.Session(c.client.Session())
	}
}

// heard reports whether an authenticated check or packet of the client arrived.
func (c *connection) heard() bool {
	return c.checked.Load() || c.client.Session() != tunnel.SessionNone
}

// close ends the agent; the session in the packet path goes on.
func (c *connection) close() { c.agent.Close() }

// forget ends the connection without telling the client.
func (c *connection) forget() {
	c.agent.Close()
	c.plane.Tunnel.Remove(c.client)
}

// addRemote takes the candidates that are usable and returns known with them.
func (c *connection) addRemote(known []ice.Candidate, lines []string) []ice.Candidate {
	remote := slices.Clone(known)
	for _, line := range lines {
		r, err := ice.Parse(line, c.ufrag)
		switch {
		case err == nil && contains(remote, r):
		case err != nil, len(remote) >= maxRemoteCandidates:
			c.plane.Drops.Add(drop.CandidateUnusable, 1)
		default:
			remote = append(remote, r)
		}
	}
	before := slices.Concat(known, ice.Optimistic(known))
	for _, r := range without(slices.Concat(remote, ice.Optimistic(remote)), before) {
		c.agent.AddRemote(r)
	}
	return remote
}

// removeRemote removes candidates and returns what is left of known.
func (c *connection) removeRemote(known []ice.Candidate, lines []string) []ice.Candidate {
	remote := slices.Clone(known)
	for _, line := range lines {
		r, err := ice.Parse(line, c.ufrag)
		if err != nil {
			c.plane.Drops.Add(drop.CandidateUnusable, 1)
			continue
		}
		remote = without(remote, []ice.Candidate{r})
		c.agent.RemoveRemote(r)
	}
	return remote
}

// channelPeers are the addresses that need a channel on the relay: all that are
// not host addresses (transport §2.6).
func channelPeers(remote []ice.Candidate) []netip.AddrPort {
	var peers []netip.AddrPort
	for _, r := range slices.Concat(remote, ice.Optimistic(remote)) {
		if r.Type != ice.Host {
			peers = append(peers, r.Addr)
		}
	}
	return peers
}
