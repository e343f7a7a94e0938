package actors

import (
	"crypto/ecdh"
	"log/slog"
	"net/netip"
	"slices"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// What an incarnation left behind was written by one that failed. The next one
// takes over what fits together, and goes without the rest: with less than the
// client was granted at the worst, for which the client asks the portal again.

// discarded counts and logs what could not be taken over.
func (p *Plane) discarded(log *slog.Logger, what []string, args ...any) {
	for _, w := range what {
		p.Drops.Add(drop.StateInconsistent, 1)
		log.With(args...).Error("not taken over from the last incarnation", "what", w)
	}
}

// check returns s as the state of client id without what cannot be right, and the
// names of what it left out. Grants that have ended are left to the policy, which
// admits nothing by them.
func (s clientState) check(id string) (clientState, []string) {
	if s.empty() {
		return clientState{}, nil
	}
	if s.Client.ID != id {
		return clientState{}, []string{"state of another client"}
	}
	if !tunnelAddresses(s.Client.IPv4, s.Client.IPv6) {
		return clientState{}, []string{"client with a wrong tunnel address"}
	}
	var out []string
	for _, g := range s.Grants.List() {
		if g.Resource.ID == "" || g.Resource.Kind < policy.CIDR || g.Resource.Kind > policy.Internet {
			out = append(out, "grant without resource")
			s.Grants = s.Grants.Revoke(g.Resource.ID)
		}
	}
	if s.Connected && (s.Client.PublicKey == portal.PublicKey{} || !usableICE(s.ClientICE) || !usableICE(s.GatewayICE)) {
		out = append(out, "connection without parameters")
		s.Connected = false
	}
	if !s.Connected {
		return s.disconnected(), out
	}
	var wrong bool
	if s.Remote, wrong = candidates(s.Remote, maxRemoteCandidates); wrong {
		out = append(out, "candidate of the client")
	}
	if s.Signalled, wrong = candidates(s.Signalled, maxSignalled); wrong {
		out = append(out, "candidate of the gateway")
	}
	return s, out
}

// tunnelAddresses reports whether these may be a client's: one of each family, or
// one alone.
func tunnelAddresses(v4, v6 netip.Addr) bool {
	return (v4.IsValid() || v6.IsValid()) &&
		(!v4.IsValid() || v4.Is4() && policy.IsTunnel(v4)) &&
		(!v6.IsValid() || v6.Is6() && policy.IsTunnel(v6))
}

func usableICE(c portal.ICECredentials) bool { return c.Username != "" && c.Password != "" }

// candidates returns those of list that are usable, as many as there may be, and
// whether there were others.
func candidates(list []ice.Candidate, limit int) (usable []ice.Candidate, others bool) {
	for _, c := range list {
		if c.Addr.IsValid() && c.Type <= ice.Relay && len(usable) < limit && !contains(usable, c) {
			usable = append(usable, c)
		}
	}
	return usable, len(usable) != len(list)
}

// ungranted are the resources of domains that the client has set up and is not
// granted any more.
func (s clientState) ungranted() []string {
	if s.NAT == nil {
		return nil
	}
	var out []string
	for m := range s.NAT.Table().Mappings() {
		for _, id := range m.Resources {
			if !s.Grants.Has(id) && !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	return out
}

// disown removes clients from the packet path that no state of the store stands for,
// and reports whether there were any. Those that are being said goodbye to belong to
// whoever does that.
func (p *Plane) disown(log *slog.Logger) bool {
	known := p.store.connected()
	var strays []string
	p.Tunnel.Each(func(c *tunnel.Client) {
		if s, ok := known[c.PublicKey()]; ok && s.is(c) {
			return
		}
		if found, ok := p.Tunnel.Lookup(c.PublicKey()); ok && found == c {
			p.Tunnel.Remove(c)
			strays = append(strays, "client in the packet path that nobody knows")
		}
	})
	p.discarded(log, strays)
	return len(strays) > 0
}

// checkRelays returns those of list that can be what the portal named: each with an
// address, no two with the same ID, and no more than there may be.
func checkRelays(list []portal.DualStackRelay) (usable []portal.DualStackRelay, others bool) {
	for _, r := range list {
		if r.ID != "" && (r.V4.IsValid() || r.V6.IsValid()) && len(usable) < maxRelays &&
			!slices.ContainsFunc(usable, func(u portal.DualStackRelay) bool { return u.ID == r.ID }) {
			usable = append(usable, r)
		}
	}
	return usable, len(usable) != len(list)
}

// checkServed returns those of list that can be addresses of the gateway.
func checkServed(list []netip.Addr) (usable []netip.Addr, others bool) {
	for _, a := range list {
		if policy.IsTunnel(a) && !slices.Contains(usable, a) {
			usable = append(usable, a)
		}
	}
	return usable, len(usable) != len(list)
}

// checkAddresses returns a, or nothing if it cannot be what the portal assigned.
func checkAddresses(a messages.TunnelAddresses) (usable messages.TunnelAddresses, wrong bool) {
	if a == (messages.TunnelAddresses{}) || tunnelAddresses(a.V4, a.V6) {
		return a, false
	}
	return messages.TunnelAddresses{}, true
}

// consistent reports whether the public key belongs to the private one.
func (k keyPair) consistent() bool {
	key, err := ecdh.X25519().NewPrivateKey(k.private[:])
	return err == nil && k.epoch > 0 && [32]byte(key.PublicKey().Bytes()) == k.public
}
