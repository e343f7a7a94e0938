package actors

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"

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
	client *tunnel.Client
	cfg    ice.Config
	agent  ice.Agent
	failed *atomic.Bool // the agent has given up; replaced with it
	// checked is set once a check of an agent was answered, which takes one of
	// the client's as well.
	checked atomic.Bool
	// agentFailed tells the owner, from a goroutine of the agent.
	agentFailed func()
}

// openConnection makes the agent and admits the client. With adopt a client that
// the packet path knows already, with the same keys, is taken over with its
// session; without it is replaced.
func openConnection(p *Plane, log *slog.Logger, s clientState, callbacks tunnel.Callbacks, adopt bool) (*connection, error) {
	c := &connection{plane: p}
	if old, ok := p.Tunnel.Lookup(s.Client.PublicKey); ok {
		if adopt && old.PresharedKey() == s.Client.PresharedKey && old.Serves(s.Client.IPv4, s.Client.IPv6) {
			old.SetPolicy(p.compile(s))
			old.SetNAT(s.NAT)
			old.Adopt(callbacks)
			c.client = old
		} else {
			p.Tunnel.Remove(old)
		}
	}
	if c.client == nil {
		client, err := p.Tunnel.Add(tunnel.ClientConfig{
			PublicKey: s.Client.PublicKey, PresharedKey: s.Client.PresharedKey,
			TunnelV4: s.Client.IPv4, TunnelV6: s.Client.IPv6,
			Policy: p.compile(s), NAT: s.NAT, Callbacks: callbacks,
		})
		if err != nil {
			return nil, fmt.Errorf("admit client: %w", err)
		}
		c.client = client
	}
	c.cfg = ice.Config{
		LocalUfrag: s.GatewayICE.Username, LocalPwd: s.GatewayICE.Password,
		RemoteUfrag: s.ClientICE.Username, RemotePwd: s.ClientICE.Password,
		Mux: p.Mux, Logger: log,
	}
	c.agentFailed = func() { callbacks.Session(c.client.Session()) }
	if err := c.renewAgent(locals(s.Signalled), s.Remote); err != nil {
		p.Tunnel.Remove(c.client)
		return nil, err
	}
	return c, nil
}

// renewAgent replaces the agent by one with the same credentials, which the
// client does not notice.
func (c *connection) renewAgent(locals []netip.AddrPort, remote []ice.Candidate) error {
	failed := new(atomic.Bool)
	cfg := c.cfg
	cfg.Locals = locals
	cfg.OnState = func(s ice.State) {
		switch s {
		case ice.StateConnected:
			c.checked.Store(true)
		case ice.StateFailed:
			failed.Store(true)
			c.agentFailed()
		}
	}
	agent, err := ice.New(cfg)
	if err != nil {
		return fmt.Errorf("ICE agent: %w", err)
	}
	if c.agent != nil {
		c.agent.Close()
	}
	c.agent, c.failed = agent, failed
	for _, r := range slices.Concat(remote, ice.Optimistic(remote)) {
		agent.AddRemote(r)
	}
	return nil
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
		r, err := ice.Parse(line, c.cfg.RemoteUfrag)
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
		r, err := ice.Parse(line, c.cfg.RemoteUfrag)
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
