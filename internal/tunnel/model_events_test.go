package tunnel

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/policy"
)

// publish puts grants in force.
func (w *modelWorld) publish(p *person, g policy.Grants) {
	p.grants = g
	if g.Len() != len(p.model.grants) {
		w.fatalf("%d grants of client %d, want %d", g.Len(), p.number, len(p.model.grants))
	}
	p.config.Policy = policy.Compile(policy.Peer{
		ClientV4: p.model.own[0], ClientV6: p.model.own[1], GatewayV4: p.model.gateway[0], GatewayV6: p.model.gateway[1],
		GatewayOpen: p.model.gatewayOpen,
	}, g.List(), g.Version())
	if p.client != nil {
		p.client.SetPolicy(p.config.Policy)
	}
}

// grant is a new authorisation or a repeated one.
func (w *modelWorld) grant(p *person) {
	id, m, r := w.resource()
	if w.chance(30) {
		m.ends = w.now + int64(one(w, -time.Second, 0, 1, time.Second, 10*time.Second, time.Minute, 2*time.Minute, time.Hour))
	}
	w.note("client %d is granted %s %+v", p.number, id, m)
	p.model.grants[id] = m
	w.publish(p, p.grants.Upsert(policy.Grant{Resource: r, ExpiresAt: ending(m.ends)}))
}

func ending(at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

func (w *modelWorld) revoke(p *person) {
	id := one(w, resourceIDs...)
	w.note("client %d loses %s", p.number, id)
	delete(p.model.grants, id)
	w.publish(p, p.grants.Revoke(id))
	if p.nat != nil && w.chance(70) {
		p.nat.Table().Invalidate(id)
		p.model.nat.invalidate(id)
	}
}

// update is another list of filters for a resource, or of what is granted.
func (w *modelWorld) update(p *person) {
	if w.chance(50) {
		id, m, r := w.resource()
		w.note("filters of %s for client %d are %v", id, p.number, m.filters)
		if old, ok := p.model.grants[id]; ok && old.kind == m.kind {
			old.filters = m.filters
			p.model.grants[id] = old
		}
		w.publish(p, p.grants.UpdateFilters(r))
		return
	}
	keep := map[string]time.Time{}
	for _, id := range slices.Sorted(maps.Keys(p.model.grants)) {
		if w.chance(20) {
			delete(p.model.grants, id)
			continue
		}
		g := p.model.grants[id]
		g.ends = w.now + int64(one(w, 0, time.Second, time.Minute, time.Hour))
		p.model.grants[id] = g
		keep[id] = ending(g.ends)
	}
	w.note("client %d keeps %v", p.number, keep)
	w.publish(p, p.grants.Retain(keep))
}

// setUp is the request of a client, honest or not, to set up a domain, and what
// the domain resolved to.
func (w *modelWorld) setUp(p *person) {
	id, domain := one(w, resourceIDs...), one(w, domains...)
	if granted := p.model.domains(); len(granted) > 0 && w.chance(90) {
		at := one(w, granted...)
		id, domain = at[0], at[1]
	}
	first := w.r.IntN(3)
	proxies := slices.Concat(modelProxies(p.number, false)[first:first+1+w.r.IntN(3)], modelProxies(p.number, true)[first:first+1+w.r.IntN(2)])
	if w.chance(90) { // as clients do: each domain has its own
		proxies = proxiesOf(p.number, domain)
	}
	if w.chance(5) {
		proxies = append(proxies, one(w, append(modelProxies(1+p.number%4, false), server4, gateway4, address4(2), server6, foreign6)...))
	}
	if w.chance(3) {
		proxies = append(proxies, modelProxies(10, false)...) // too many
	}
	w.r.Shuffle(len(proxies), func(i, j int) { proxies[i], proxies[j] = proxies[j], proxies[i] })
	var reals []netip.Addr
	for range w.r.IntN(5) {
		reals = append(reals, one(w, modelReals...))
	}
	w.assign(p, id, domain, proxies, reals)
}

// renumber is the same client after it signed out: it begins anew with its
// proxy addresses.
func (w *modelWorld) renumber(p *person) {
	if granted := p.model.domains(); len(granted) > 0 {
		at := one(w, granted...)
		w.assign(p, at[0], at[1], modelProxies(p.number, false)[:4], []netip.Addr{one(w, modelReals...)})
	}
}

func (w *modelWorld) assign(p *person, id, domain string, proxies, reals []netip.Addr) {
	w.note("client %d sets up %s of %s: %v to %v", p.number, domain, id, proxies, reals)
	g, ok := p.grants.Get(id)
	got := ok && g.Resource.Kind == policy.DNS && policy.MatchDomain(g.Resource.Pattern, domain)
	m, ok := p.model.grants[id]
	if want := ok && m.kind == "dns" && covers(m.pattern, domain); got != want {
		w.fatalf("covered: %v, want %v", got, want)
	}
	if !got {
		w.seen["domain refused"]++
		return
	}
	if p.nat == nil {
		nat64 := w.chance(50)
		p.nat = NewNAT(nat.New(nat.Config{MaxSessions: 30, MaxProxies: 12, NAT64: nat64, Seed: w.r.Uint64()}))
		p.model.nat = &modelNAT{
			nat64: nat64, mappings: map[netip.Addr]*modelMapping{}, ended: map[modelOutside]int64{}, maxSessions: 30, maxProxies: 12,
		}
		p.config.NAT = p.nat
		if p.client != nil {
			p.client.SetNAT(p.nat)
		}
	}
	n := len(p.model.nat.sessions)
	want := p.model.nat.assign(id, domain, proxies, reals)
	out, err := p.nat.Table().Assign(nat.Assignment{Resource: id, Domain: domain, ProxyIPs: proxies, RealIPs: reals})
	if (err == nil) != want {
		w.fatalf("set up: %v, want %v", err, want)
	}
	w.seen[pick(want, "domain set up", "domain refused")]++
	if out.Reset && n > 0 {
		w.seen["renumbered"]++
	}
}

// sessionChanges is WireGuard coming and going.
func (w *modelWorld) sessionChanges(p *person) {
	if p.client == nil {
		return
	}
	state, hasHeard := one(w, SessionNone, SessionHandshake, SessionEstablished, SessionExpired), w.chance(80)
	if w.chance(70) {
		state, hasHeard = SessionEstablished, true
	}
	w.note("the session of client %d is %v, heard %v", p.number, state, hasHeard)
	p.client.session.Store(uint32(state))
	p.client.heard.Store(hasHeard)
	p.model.connected = state == SessionEstablished && hasHeard
	p.model.reachable = state != SessionNone && hasHeard
	if !p.model.reachable {
		w.seen["session lost"]++
	}
}

// comeAndGo says goodbye to the client, removes it, or has it back.
func (w *modelWorld) comeAndGo(p *person) {
	switch {
	case p.client == nil:
		w.admit(p)
		w.seen["client came back"]++
	case !p.model.closing && w.chance(50):
		w.note("client %d is said goodbye to", p.number)
		if told := w.tun.part(p.client); told != p.model.connected {
			w.fatalf("goodbye: %v", told)
		}
		p.model.closing = true
		goodbyes := w.answers()
		if (len(goodbyes) == 1) != p.model.connected || len(goodbyes) == 1 && (goodbyes[0].client != p.client || len(goodbyes[0].b) != 48) {
			w.fatalf("goodbyes %v", goodbyes)
		}
	default:
		w.note("client %d is removed", p.number)
		w.tun.Remove(p.client)
		p.client = nil
		p.model.present = false
		w.seen["client left"]++
		if w.chance(20) { // it lost its last grant
			p.nat, p.config.NAT, p.model.nat = nil, nil, nil
			clear(p.model.grants)
			w.publish(p, policy.Grants{})
		}
	}
}

// admit adds the client, perhaps with other addresses than before.
func (w *modelWorld) admit(p *person) {
	at := p.number + 10*w.r.IntN(2)
	m := p.model
	m.own = [2]netip.Addr{address4(at), address6(at)}
	if w.chance(20) {
		m.own[1] = netip.Addr{}
	}
	m.present, m.connected, m.reachable, m.closing, m.life = true, true, true, false, m.life+1
	m.answered, m.answeredSecond = 0, 0
	p.config.PublicKey, p.config.TunnelV4, p.config.TunnelV6 = keyOf(p.number), m.own[0], m.own[1]
	p.config.Callbacks = newHeardBy().callbacks()
	p.config.Callbacks.Control = func(pkt []byte) bool {
		p.heard = append(p.heard, slices.Clone(pkt))
		return true
	}
	w.publish(p, p.grants)
	w.note("client %d is admitted with %v", p.number, m.own)
	c, err := w.tun.Add(p.config)
	if err != nil {
		w.fatalf("%v", err)
	}
	c.session.Store(uint32(SessionEstablished))
	c.heard.Store(true)
	p.client = c
	w.ever = append(w.ever, c)
}

// flood is more at once than there are answers in a second, or than may wait.
func (w *modelWorld) flood(p *person) {
	ping := &letter{kind: kindEcho, src: p.model.own[0], dst: one(w, foreign4, address4(2), stranger4), ttl: 64}
	if m := p.model.nat; m != nil && w.chance(50) {
		ping.dst = modelProxies(p.number, false)[w.r.IntN(4)]
	}
	for range 5 {
		var batch []*letter
		for range batchSize {
			l := *ping
			ping.sport++
			ping.dport++
			batch = append(batch, &l)
		}
		w.fromClient(p, batch)
	}
	if p.model.answered == 200 {
		w.seen["answers run out"]++
	}
	if w.chance(80) {
		w.open(p)
	}
}
