package tunnel

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/device"
	enginetun "github.com/tailscale/wireguard-go/tun"
	"pgregory.net/rapid"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/policy"
)

// transitions is the length of one history; rapid runs 100 of them, fewer with
// -short.
const transitions = 1000

// TestPacketPathMatchesTheModel lets clients, some of them hostile, the portal,
// the network and the clock do at random what they may do, and compares the
// packet path with a model after every transition: which packets pass, byte by
// byte, who is answered what, and that each packet that does not pass is counted
// once.
func TestPacketPathMatchesTheModel(t *testing.T) {
	length := transitions
	if testing.Short() || raceEnabled {
		length /= 10
	}
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		w := newModelWorld(t, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "world"), 0)), seen)
		for range length {
			if seed := rapid.Uint64().Draw(t, "step"); seed != 0 { // what failures shrink to
				w.step(rand.New(rand.NewPCG(seed, 1)))
			}
			seen["transition"]++
		}
	})
	t.Logf("seen %v", seen)
	if t.Failed() || seen["transition"] < 100*transitions {
		return
	}
	for _, what := range []string{
		"out: refused", "out: prohibited", "out: unreachable", "out: passed", "out: translated", "out: waiting", "out: control",
		"in: refused", "in: passed", "in: translated", "in: error translated", "in: over",
		"out: crossed", "in: crossed", "in: error crossed", "in: of nobody",
		"first: passed", "first: lost", "first: port changed", "table full", "answers run out", "domain set up", "domain refused",
		"renumbered", "session swept", "grant ended", "client left", "client came back", "session lost",
	} {
		if seen[what] == 0 {
			t.Errorf("never seen: %s", what)
		}
	}
}

// modelWorld is a tunnel with clients, and what the model thinks of them.
type modelWorld struct {
	t      *rapid.T
	r      *rand.Rand // of the step
	now    int64
	tun    *Tunnel
	device gatewayTUN
	people []*person
	ever   []*Client // also those that were removed
	seen   map[string]int
	trace  []string // the last transitions
	slab   []byte
	in     []enginetun.ReadPacket
}

// person is one client: in the gateway, and in the model.
type person struct {
	number int
	client *Client // nil while it is away
	grants policy.Grants
	nat    *NAT // nil before the first domain
	config ClientConfig
	heard  [][]byte // control packets
	model  *modelClient
}

func newModelWorld(t *rapid.T, r *rand.Rand, seen map[string]int) *modelWorld {
	w := &modelWorld{
		t: t, r: r, now: clock.UnixNano(), tun: plainTunnel(), device: newGatewayTUN(), seen: seen,
		slab: make([]byte, slabSize), in: make([]enginetun.ReadPacket, batchSize),
	}
	w.tun.AttachTUN(w.device)
	w.tun.engine = new(device.Device) // that never ran: Remove tells it
	gateway := [2]netip.Addr{gateway4, gateway6}
	if r.IntN(4) == 0 {
		gateway[1] = netip.Addr{}
	}
	for i := range 4 {
		p := &person{number: i + 1, model: &modelClient{gateway: gateway, gatewayOpen: r.IntN(4) == 0, grants: map[string]modelGrant{}}}
		w.people = append(w.people, p)
		w.admit(p)
		for range 6 {
			w.grant(p)
		}
	}
	return w
}

func one[T any](w *modelWorld, list ...T) T { return list[w.r.IntN(len(list))] }

func (w *modelWorld) chance(percent int) bool { return w.r.IntN(100) < percent }

func (w *modelWorld) note(format string, args ...any) {
	if len(w.trace) == 40 {
		w.trace = slices.Delete(w.trace, 0, 20)
	}
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *modelWorld) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\nafter\n%s", fmt.Sprintf(format, args...), strings.Join(w.trace, "\n"))
}

// step is one transition.
func (w *modelWorld) step(r *rand.Rand) {
	w.r = r
	p := one(w, w.people...)
	if away := p.client == nil || p.model.closing; away && w.chance(40) {
		w.comeAndGo(p)
		return
	}
	switch n := r.IntN(1000); {
	case n < 400:
		w.fromClient(p, w.letters(func() *letter { return w.outbound(p) }))
		if w.chance(60) {
			w.open(p)
		}
	case n < 700:
		w.fromNetwork(w.letters(func() *letter { return w.inbound(one(w, w.people...)) }))
	case n < 780:
		w.wait()
	case n < 800:
		w.open(p)
	case n < 860:
		w.grant(p)
	case n < 880:
		w.revoke(p)
	case n < 900:
		w.update(p)
	case n < 960:
		w.setUp(p)
	case n < 975:
		w.sessionChanges(p)
	case n < 990:
		w.comeAndGo(p)
	case n < 995:
		w.renumber(p)
	default:
		w.flood(p)
	}
}

// letters are a batch, in which packets often resemble the one before.
func (w *modelWorld) letters(next func() *letter) (out []*letter) {
	for i := range 1 + w.r.IntN(4) {
		l := next()
		if i > 0 && w.chance(40) {
			again := *out[i-1]
			again.size = l.size
			switch {
			case again.kind > kindUDP:
			case w.chance(30):
				again.sport = one(w, modelPorts...)
			case w.chance(30):
				again.dport = one(w, modelPorts...)
			}
			l = &again
		}
		out = append(out, l)
	}
	return out
}

// fromClient has the client send a batch.
func (w *modelWorld) fromClient(p *person, batch []*letter) {
	w.note("client %d sends %v", p.number, batch)
	before, known := w.dropped(), false
	var kept [][]byte
	var answers []injectedPacket
	p.heard = nil
	if p.client != nil {
		var c *Client
		if c, known = w.tun.byFlow.get(flowOf(p.config.PublicKey)); known {
			var packets [][]byte
			for _, l := range batch {
				packets = append(packets, l.bytes())
			}
			for _, b := range w.tun.toResource(c, decrypted(packets...), engineOffset, w.now) {
				kept = append(kept, b[engineOffset:])
			}
			answers = w.answers()
			defer c.restGrown()
		}
	}
	if known != p.model.present {
		w.fatalf("the client is known: %v", known)
	}
	if !known {
		return
	}
	var want, wantAnswers, wantHeard []*letter
	lost := 0
	for _, l := range batch {
		switch f, to := p.model.fromClient(l, w.now); f {
		case passed:
			want = append(want, to)
			w.seen[pick(to == l, "out: passed", pick(to.crossed, "out: crossed", "out: translated"))]++
		case waiting:
			w.seen["out: waiting"]++
		case heard:
			wantHeard = append(wantHeard, l)
			w.seen["out: control"]++
		case prohibited:
			lost++
			wantAnswers = append(wantAnswers, l.answer(13, 1))
			w.seen["out: prohibited"]++
		case unreachable:
			lost++
			wantAnswers = append(wantAnswers, l.answer(0, 3))
			w.seen["out: unreachable"]++
		default:
			lost++
			w.seen["out: refused"]++
		}
	}
	w.compare("to the network", kept, want)
	w.compare("to whoever handles control packets", p.heard, wantHeard)
	w.compareAnswers(p, answers, slices.DeleteFunc(wantAnswers, func(l *letter) bool { return l == nil }))
	w.counted(before, lost)
}

// fromNetwork has the TUN device deliver a batch, which may be for several
// clients.
func (w *modelWorld) fromNetwork(batch []*letter) {
	w.note("the network sends %v", batch)
	before := w.dropped()
	var packets [][]byte
	for _, l := range batch {
		packets = append(packets, l.bytes())
	}
	slab, descriptors := fromTUN(packets...)
	d := w.tun.dev
	d.count, d.next = w.tun.toClient(slab, descriptors, d.owners[:], w.now), 0
	var kept [][]byte
	var owners []*Client
	for _, at := range descriptors[:d.count] {
		pkt := slab[at.Offset : at.Offset+at.Size]
		key, ok := w.tun.route(source(pkt), destination(pkt), pkt)
		if !ok {
			w.fatalf("the engine finds nobody for %x", pkt)
		}
		owner, _ := w.tun.Lookup(key)
		kept, owners = append(kept, pkt), append(owners, owner)
	}

	var want []*letter
	var wantOwners []*Client
	lost := 0
	for _, l := range batch {
		at := slices.IndexFunc(w.people, func(p *person) bool {
			return p.model.present && (l.dst == p.model.own[0] || l.dst == p.model.own[1])
		})
		if l.fault != sound || at < 0 {
			lost++
			w.seen["in: of nobody"]++
			continue
		}
		p := w.people[at]
		f, to := p.model.fromNetwork(l, w.now)
		if f != passed {
			lost++
			w.seen["in: refused"]++
			continue
		}
		want, wantOwners = append(want, to), append(wantOwners, p.client)
		w.seen[pick(to == l, "in: passed", "in: "+pick(l.kind == kindError, "error ", "")+pick(to.crossed, "crossed", "translated"))]++
	}
	w.compare("to clients", kept, want)
	if !slices.Equal(owners, wantOwners) {
		w.fatalf("packets for the wrong clients")
	}
	w.counted(before, lost)
}

// open has the writer of the client's table run.
func (w *modelWorld) open(p *person) {
	if p.nat == nil {
		return
	}
	w.note("sessions are opened for client %d", p.number)
	before := w.dropped()
	n, wait := p.nat.Waiting(), p.model.nat.waiting
	if n != len(wait) || w.tun.Open(p.nat, w.now) != n {
		w.fatalf("%d packets wait, want %d", n, len(wait))
	}
	var got [][]byte
	for len(w.device.fromEngine) > 0 {
		got = append(got, <-w.device.fromEngine)
	}
	want, lost := p.model.nat.open(w.now)
	w.compare("to the network, after they waited", got, want)
	w.counted(before, lost)
	w.seen["first: passed"] += len(want)
	w.seen["first: lost"] += lost
	if len(p.model.nat.sessions) == p.model.nat.maxSessions && lost > 0 {
		w.seen["table full"]++
	}
	for _, s := range p.model.nat.sessions {
		if s.port != s.outside.port {
			w.seen["first: port changed"]++
		}
	}
}

// wait lets time pass, and usually what happens once a second happen.
func (w *modelWorld) wait() {
	d := one(w, 1, time.Millisecond, time.Second, time.Second, time.Second, 4*time.Second, 5*time.Second-1, 5*time.Second, 10*time.Second)
	if w.chance(20) {
		d = one(w, 59*time.Second, time.Minute-1, time.Minute, 2*time.Minute-1, 2*time.Minute, 2*time.Hour, 2*time.Hour+4*time.Minute)
	}
	w.note("%v pass", d)
	w.now += int64(d)
	if w.chance(30) {
		return
	}
	for _, p := range w.people {
		if p.nat != nil {
			before := len(p.model.nat.sessions)
			p.model.nat.sweep(w.now)
			if got := p.nat.Table().Sweep(w.now); got != before-len(p.model.nat.sessions) {
				w.fatalf("%d sessions of client %d ended, want %d", got, p.number, before-len(p.model.nat.sessions))
			}
			w.seen["session swept"] += before - len(p.model.nat.sessions)
		}
		if w.chance(50) {
			next, ended := p.grants.Expire(time.Unix(0, w.now))
			maps.DeleteFunc(p.model.grants, func(_ string, g modelGrant) bool { return !g.live(w.now) })
			w.seen["grant ended"] += len(ended)
			w.publish(p, next)
		}
	}
}

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

// answers are what the gateway has the engine send of its own.
func (w *modelWorld) answers() (out []injectedPacket) {
	for w.tun.inject.used > 0 || len(w.tun.inject.parting) > 0 {
		n, err := w.tun.inject.Read(w.slab, w.in)
		if err != nil || n == 0 {
			w.fatalf("read: %d, %v", n, err)
		}
		for _, d := range w.in[:n] {
			pkt := w.slab[d.Offset : d.Offset+d.Size]
			c := w.tun.inject.claim(pkt)
			out = append(out, injectedPacket{c, slices.Clone(pkt)})
		}
	}
	return out
}

func (w *modelWorld) compare(where string, got [][]byte, want []*letter) {
	w.t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			w.fatalf("%s: does not pass: %v", where, want[i])
		case i >= len(want):
			w.fatalf("%s: passes: %x", where, got[i])
		case !samePacket(got[i], want[i].numbered(got[i])):
			w.fatalf("%s: got\n%x, want\n%x, which is %v", where, got[i], want[i].numbered(got[i]), want[i])
		}
	}
}

func (w *modelWorld) compareAnswers(p *person, got []injectedPacket, want []*letter) {
	w.t.Helper()
	if len(got) != len(want) {
		w.fatalf("%d answers, want %v", len(got), want)
	}
	for i, l := range want {
		if got[i].client != p.client || !samePacket(got[i].b, l.answerBytes()) {
			w.fatalf("answer\n%x, want\n%x for client %d", got[i].b, l.answerBytes(), p.number)
		}
	}
}

// dropped is how many packets were counted as dropped, by any client or the
// tunnel.
func (w *modelWorld) dropped() (n uint64) {
	add := func(_ drop.Reason, k uint64) { n += k }
	w.tun.Drops().Each(add)
	for _, c := range w.ever {
		c.Drops().Each(add)
	}
	return n
}

func (w *modelWorld) counted(before uint64, lost int) {
	w.t.Helper()
	if got := w.dropped() - before; got != uint64(lost) {
		w.fatalf("%d packets were counted as dropped, want %d", got, lost)
	}
}

func pick(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
