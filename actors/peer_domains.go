package actors

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

const (
	// maxProxies bounds the proxy addresses of one domain; clients send eight.
	maxProxies = 64
	// maxResolving bounds the domains of one client that are being resolved, so
	// that it leaves room to others.
	maxResolving = 100
	// resolveSlack is what an answer of the resolver may be late.
	resolveSlack = 2 * time.Second
)

// assignedIPs handles a client's request to set up a domain (dataplane §3.2).
// Clients repeat it while it is not answered.
func (p *peer) assignedIPs(ctx actorkit.Context, body []byte) {
	e, err := packet.DecodeAssignedIPs(body)
	if err != nil {
		p.Drops.Add(drop.ControlUnknown, 1)
		return
	}
	p.setUpDomain(ctx, messages.DomainSetup{ResourceID: e.Resource, Domain: e.Domain, Proxies: e.ProxyIPs})
}

// legacySetUp is the form of it that comes with an authorization of the first
// generation, and is not answered (portal §3.4).
func (p *peer) legacySetUp(ctx actorkit.Context, resourceID string, d portal.Domain) {
	if d.Name != "" {
		p.setUpDomain(ctx, messages.DomainSetup{ResourceID: resourceID, Domain: d.Name, Proxies: d.ProxyIPs, Silent: true})
	}
}

func (p *peer) setUpDomain(ctx actorkit.Context, s messages.DomainSetup) {
	switch {
	case !p.covers(s) || !areProxies(s.Proxies):
		p.answerSetUp(s, packet.Inactive)
	case !p.resolving.take(time.Now()):
		p.Drops.Add(drop.ResolverBusy, 1)
	default:
		ctx.Request(p.dns, messages.Resolve{Setup: s})
	}
}

// lookups are the times at which look-ups of a client count as lost, the earliest
// first. Answers get lost with an actor that restarts.
type lookups []time.Time

// take notes one more, and reports false if there are maxResolving.
func (l *lookups) take(now time.Time) bool {
	for len(*l) > 0 && !now.Before((*l)[0]) {
		*l = (*l)[1:]
	}
	if len(*l) == maxResolving {
		return false
	}
	*l = append(*l, now.Add(dns.ResolveTimeout+resolveSlack))
	return true
}

// giveBack takes the earliest for answered: which one it was does not matter.
func (l *lookups) giveBack() {
	if len(*l) > 0 {
		*l = (*l)[1:]
	}
}

// covers reports whether a DNS resource that is granted covers the domain.
func (p *peer) covers(s messages.DomainSetup) bool {
	g, ok := p.state.Grants.Get(s.ResourceID)
	return ok && g.Resource.Kind == policy.DNS && policy.MatchDomain(g.Resource.Pattern, s.Domain)
}

// areProxies keeps a client from opening the addresses of others with its own
// resource's filter (dataplane §11, defect 1).
func areProxies(list []netip.Addr) bool {
	return len(list) <= maxProxies && !slices.ContainsFunc(list, func(a netip.Addr) bool { return !policy.IsProxy(a) })
}

// resolved goes on with a set-up, if the resource is still granted.
func (p *peer) resolved(ctx actorkit.Context, m messages.Resolved) {
	p.resolving.giveBack()
	switch {
	case m.Busy: // the client asks again
	case m.Failed || !p.covers(m.Setup):
		p.answerSetUp(m.Setup, packet.Inactive)
	default:
		p.ensureNAT(ctx)
		ctx.Request(p.nat, messages.AssignDomain{Setup: m.Setup, Real: m.Addresses})
	}
}

func (p *peer) domainAssigned(m messages.DomainAssigned) {
	status := packet.Active
	if m.Err != nil {
		status = packet.Inactive
	}
	p.answerSetUp(m.Setup, status)
}

func (p *peer) answerSetUp(s messages.DomainSetup, status packet.Status) {
	if p.conn != nil && !s.Silent {
		p.Tunnel.SendDomainStatus(p.conn.client, packet.DomainStatusEvent{Resource: s.ResourceID, Domain: s.Domain, Status: status})
	}
}

// ensureNAT makes the client's translation with the first domain: most clients
// at most gateways have none.
func (p *peer) ensureNAT(ctx actorkit.Context) {
	if p.state.NAT == nil {
		var seed [8]byte
		_, _ = rand.Read(seed[:]) // it never fails
		p.state.NAT = tunnel.NewNAT(nat.New(nat.Config{NAT64: p.NAT64, Seed: binary.NativeEndian.Uint64(seed[:])}))
		if p.conn != nil {
			p.conn.client.SetNAT(p.state.NAT)
		}
	}
	if p.nat != nil {
		return
	}
	p.natNumber++ // its predecessor may not have ended
	translation, env := p.state.NAT, p.peerEnv
	pid, err := actorkit.SpawnChild(ctx, KindNAT, fmt.Sprintf("nat.%d", p.natNumber), func() actorkit.Actor {
		return env.players.nat(env.Plane, translation)
	})
	if err != nil {
		panic(err) // the name is new: only a bug gets here
	}
	p.nat = pid
}

// dropNAT forgets all domains of the client. The state goes with it.
func (p *peer) dropNAT(ctx actorkit.Context) {
	if p.nat != nil {
		ctx.Stop(p.nat)
		p.nat = nil
	}
	p.state.NAT = nil
	if p.conn != nil {
		p.conn.client.SetNAT(nil)
	}
}

// natLost sends the client away, for it to authorise again: it would go on to use
// domains that are not known here any more.
func (p *peer) natLost(ctx actorkit.Context, nat actorkit.PID, why string) {
	if p.nat == nil || !actorkit.Same(p.nat, nat) {
		return
	}
	ctx.Logger().Error("client sent away", "client_id", p.id, "reason", why)
	p.dropNAT(ctx)
	p.setGrants(ctx, policy.Grants{}, why)
}

func assignment(m messages.AssignDomain) nat.Assignment {
	return nat.Assignment{Resource: m.Setup.ResourceID, Domain: m.Setup.Domain, ProxyIPs: m.Setup.Proxies, RealIPs: m.Real}
}
