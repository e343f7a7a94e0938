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
