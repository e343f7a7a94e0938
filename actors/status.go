package actors

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// Bounds of a status. A gateway that is larger says how much it left out.
const (
	maxStatusPeers  = 5_000
	maxStatusGrants = 50_000 // of all peers
	maxStatusActors = 10_000
	maxFailureText  = 300 // bytes
)

// Status describes the gateway, without version and uptime, which it does not
// know. It looks at what actors publish and asks none of them, so that it works
// when they do not, and may be called at any time from any goroutine.
func (t *Tree) Status(now time.Time) admin.Status {
	p := t.plane
	s := admin.Status{Time: now, Phase: p.phase(), Missing: p.Missing()}
	s.Ready = len(s.Missing) == 0
	if s.Ready {
		s.Missing = []string{}
	}
	keys, addresses, relays := p.keys.load(), p.addresses.load(), p.offers.load()
	s.Key = admin.Key{Epoch: uint64(keys.epoch), Public: publicKeyText(keys.public)}
	s.Tunnel = validAddrs(addresses.V4, addresses.V6)
	s.Portal = p.describePortal()
	s.Relays = describeRelays(relays)
	s.Peers, s.Omitted.Peers, s.Omitted.Grants = p.describePeers(now, relays)
	s.NAT = sumNAT(s.Peers)
	s.DNS = p.describeDNS()
	s.Drops = dropsOf(p.Drops, p.Tunnel.Drops())
	stats := t.system.Stats()
	s.Dead = stats.DeadLetters
	s.Actors, s.Omitted.Actors = describeActors(stats.Actors)
	return s
}

func (p *Plane) phase() admin.Phase {
	switch {
	case p.siblings.load() == messages.Siblings{}:
		return admin.PhaseStarting
	case p.resetting.Load() || p.rebinding.Load():
		return admin.PhaseResetting
	}
	return admin.PhaseRunning
}

func (p *Plane) describePortal() admin.Portal {
	link := p.link.load()
	out := admin.Portal{Joined: p.joined.Load(), Since: link.since}
	if link.route != portal.RouteUnknown {
		out.Route, out.Generation = link.route.String(), link.route.Generation().String()
	}
	return out
}

func describeRelays(offers messages.RelaysChanged) []admin.Relay {
	out := make([]admin.Relay, 0, len(offers.Relays))
	for _, r := range offers.Relays {
		out = append(out, admin.Relay{
			ID: r.RelayID, Usable: r.Usable, Server: r.Server, Relayed: append([]netip.AddrPort{}, r.Relayed...),
		})
	}
	return out
}

// describePeers returns the clients of the store, and how many of them and of
// their grants it left out.
func (p *Plane) describePeers(now time.Time, relays messages.RelaysChanged) (peers []admin.Peer, omitted, grants int) {
	ids := p.store.ids()
	if len(ids) > maxStatusPeers {
		omitted = len(ids) - maxStatusPeers
		ids = ids[:maxStatusPeers]
	}
	peers = make([]admin.Peer, 0, len(ids))
	room := maxStatusGrants
	for _, id := range ids {
		state := p.store.get(id)
		if state.empty() { // since it was listed
			continue
		}
		peer := p.describePeer(id, state, now, relays)
		list := state.Grants.List()
		if len(list) > room {
			grants += len(list) - room
			list = list[:room]
		}
		room -= len(list)
		peer.Grants = make([]admin.Grant, 0, len(list))
		for _, g := range list {
			peer.Grants = append(peer.Grants, describeGrant(g))
		}
		peers = append(peers, peer)
	}
	return peers, omitted, grants
}

func (p *Plane) describePeer(id string, state clientState, now time.Time, relays messages.RelaysChanged) admin.Peer {
	peer := admin.Peer{
		ClientID: id, Session: admin.SessionAbsent, Drops: admin.Drops{},
		Addresses: validAddrs(state.Client.IPv4, state.Client.IPv6),
	}
	if n := state.NAT; n != nil {
		t := n.Table().Stats()
		peer.NAT = &admin.NAT{
			Clients: 1, Proxies: t.Proxies, Sessions: t.Sessions, Waiting: n.Waiting(),
			Opened: t.Opened, RefusedFull: t.RefusedFull, RefusedExhausted: t.RefusedExhausted,
		}
	}
	if key := state.Client.PublicKey; key != [32]byte{} {
		peer.PublicKey = key.String()
	}
	client, ok := p.client(state)
	if !ok {
		return peer
	}
	c := client.Counters()
	peer.Session = client.Session().String()
	peer.Path = describePath(client.Path(), relays)
	if at := c.LastHandshake.Load(); at != 0 {
		peer.LastHandshake = time.Unix(0, at)
		age := max(0, now.Sub(peer.LastHandshake).Seconds())
		peer.HandshakeAge = &age
	}
	if at := c.LastActive.Load(); at != 0 {
		peer.LastActive = time.Unix(0, at)
	}
	peer.ToResources = admin.Traffic{Packets: c.ToResourcePackets.Load(), Bytes: c.ToResourceBytes.Load()}
	peer.ToClient = admin.Traffic{Packets: c.ToClientPackets.Load(), Bytes: c.ToClientBytes.Load()}
	peer.Drops = dropsOf(client.Drops())
	return peer
}

// client finds the packet path's side of a client.
func (p *Plane) client(state clientState) (*tunnel.Client, bool) {
	if !state.Connected {
		return nil, false
	}
	return p.Tunnel.Lookup(state.Client.PublicKey)
}

func describePath(path *transport.Path, relays messages.RelaysChanged) *admin.Path {
	if path == nil {
		return nil
	}
	out := &admin.Path{Kind: admin.Direct, Local: path.Local(), Remote: path.Remote()}
	if path.Relay() == nil {
		return out
	}
	out.Kind = admin.Relayed
	for _, r := range relays.Relays {
		if slices.Contains(r.Relayed, path.Local()) {
			out.Relay = r.RelayID
		}
	}
	return out
}

func describeGrant(g policy.Grant) admin.Grant {
	return admin.Grant{
		ResourceID: g.Resource.ID, Name: g.Resource.Name, Kind: g.Resource.Kind.String(),
		Address: resourceAddress(g.Resource), ExpiresAt: g.ExpiresAt,
	}
}

func resourceAddress(r policy.Resource) string {
	switch r.Kind {
	case policy.CIDR:
		return r.Network.String()
	case policy.DNS:
		return r.Pattern
	}
	return ""
}

func sumNAT(peers []admin.Peer) (n admin.NAT) {
	for i := range peers {
		if c := peers[i].NAT; c != nil {
			n.Clients += c.Clients
			n.Proxies += c.Proxies
			n.Sessions += c.Sessions
			n.Waiting += c.Waiting
			n.Opened += c.Opened
			n.RefusedFull += c.RefusedFull
			n.RefusedExhausted += c.RefusedExhausted
		}
	}
	return n
}

func (p *Plane) describeDNS() admin.DNS {
	c := p.DNS.Counts()
	d := admin.DNS{
		Serving: []netip.AddrPort{}, UnderWay: c.UnderWay, Answered: c.Answered, Truncated: c.Truncated,
		Failed: c.Failed, Overflow: c.Overflow, Refused: c.Refused,
		Malformed: c.Malformed, Foreign: c.Foreign, Connections: c.Connections,
	}
	servers, err := p.upstreams.Nameservers()
	d.Nameservers = append([]netip.Addr{}, servers...)
	if err != nil {
		d.Error = clip(err.Error(), maxFailureText)
	}
	for _, a := range p.served.load() {
		d.Serving = append(d.Serving, netip.AddrPortFrom(a, policy.DNSPort))
	}
	return d
}

// describeActors returns the actors by path, and how many it left out. Those of
// clients that are well go first.
func describeActors(all []actorkit.ActorStats) (out []admin.Actor, omitted int) {
	if omitted = max(0, len(all)-maxStatusActors); omitted > 0 {
		all = slices.Clone(all)
		slices.SortStableFunc(all, func(a, b actorkit.ActorStats) int { return rank(a) - rank(b) })
		all = all[:maxStatusActors]
		slices.SortFunc(all, func(a, b actorkit.ActorStats) int { return strings.Compare(a.Path, b.Path) })
	}
	out = make([]admin.Actor, 0, len(all))
	for _, a := range all {
		out = append(out, admin.Actor{
			Path: a.Path, Kind: a.Kind, State: a.Phase, Restarts: a.Restarts, Failures: a.Failures,
			Stuck: a.Stuck, Injected: a.Injected,
			LastFailure: clip(a.LastFailure, maxFailureText), FailedAt: a.FailedAt,
			Mailbox: a.Pending, Handled: a.Handled, MaxBusy: a.MaxBusy.Seconds(), MaxWait: a.MaxWait.Seconds(),
		})
	}
	return out, omitted
}

// rank is lower for what an operator is more likely to look for.
func rank(a actorkit.ActorStats) int {
	switch {
	case a.Phase != admin.ActorRunning:
		return 0
	case a.Kind != KindPeer && a.Kind != KindNAT:
		return 1
	case a.Failures > 0:
		return 2
	}
	return 3
}

func dropsOf(counters ...*drop.Counters) admin.Drops {
	out := admin.Drops{}
	for _, c := range counters {
		c.Each(func(r drop.Reason, n uint64) { out[r.String()] += n })
	}
	return out
}

func validAddrs(addrs ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.IsValid() })
}

// clip shortens s to n bytes, between two characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
