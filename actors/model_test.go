package actors

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// modelGrant is what a simple gateway would know about one grant.
type modelGrant struct {
	end    int64 // Unix seconds
	filter uint16
}

// modelClient is what it would know about one client.
type modelClient struct {
	grants map[byte]modelGrant // by resource
	// connection names the parameters of the connection; "" is none. The last
	// grant takes it along.
	connection string
	candidates map[string]bool // of the client, on this connection
}

// connect has the connection with these parameters, the one there is or another.
func (c *modelClient) connect(parameters string) {
	if c.connection != parameters {
		c.connection, c.candidates = parameters, map[string]bool{}
	}
}

// model holds two clients as the portal's messages leave them when nothing
// happens at the same time.
type model [2]modelClient

func newModel() (m model) {
	for c := range m {
		m[c] = modelClient{grants: map[byte]modelGrant{}}
	}
	return m
}

func (m model) String() string {
	var lines []string
	for i, c := range m {
		id := clientID(byte(i + 1))
		for _, n := range slices.Sorted(maps.Keys(c.grants)) {
			lines = append(lines, fmt.Sprintf("%s %s ends %d filter %d", id, resourceID(n), c.grants[n].end, c.grants[n].filter))
		}
		lines = append(lines, fmt.Sprintf("%s connected %v candidates %q", id, c.connection != "", slices.Sorted(maps.Keys(c.candidates))))
	}
	return strings.Join(lines, "\n")
}

// request is an authorization that was asked for.
type request struct {
	connection messages.Connection
	least      int // acknowledgements, of at most one
	refused    bool
}

// modelRun feeds the same messages to the actors and to the model.
type modelRun struct {
	*peersRig
	rt    *rapid.T
	model model
	keys  [2]byte // generation of each client's preshared key

	epoch      messages.Epoch      // of the key pair that the portal knows
	connection messages.Connection // of the portal
	requests   map[portal.Ref]request
	relays     int // generation of the relay
}

func (r *modelRun) say(m portal.Message) {
	r.system.Send(r.pid, messages.FromPortal{Message: m, Connection: r.connection, Epoch: r.epoch})
}

func (r *modelRun) newRef() portal.Ref {
	ref := portal.Ref(fmt.Sprint("ref-", len(r.requests)))
	r.requests[ref] = request{connection: r.connection, least: 1}
	return ref
}

// authorization draws a grant, and perhaps another preshared key.
func (r *modelRun) authorization(c int, n byte) (portal.Authorize, modelGrant) {
	g := modelGrant{end: r.end(), filter: rapid.Uint16Range(0, 2).Draw(r.rt, "filter")}
	if rapid.IntRange(0, 4).Draw(r.rt, "rekey") == 0 {
		r.keys[c]++
	}
	return authorization(byte(c+1), n, func(a *portal.Authorize) {
		a.Client.PresharedKey[1] = r.keys[c]
		a.Ref = r.newRef()
		a.ExpiresAt = time.Unix(g.end, 0)
		a.Resource.Filters = filters(g.filter)
	}), g
}

func (r *modelRun) authorize(c int, n byte) {
	a, g := r.authorization(c, n)
	r.model[c].grants[n] = g
	r.model[c].connect(fmt.Sprint("key ", r.keys[c]))
	r.say(a)
}

// request is the legacy first grant, whose connection has credentials of ours.
func (r *modelRun) request(c int, n byte) {
	a, g := r.authorization(c, n)
	r.model[c].grants[n] = g
	r.model[c].connect(string(a.Ref))
	r.say(portal.RequestConnection{
		Ref: a.Ref, Resource: a.Resource, Client: a.Client, ClientICE: a.ClientICE, ExpiresAt: a.ExpiresAt,
	})
}

// allow is the legacy grant, which makes no connection.
func (r *modelRun) allow(c int, n byte) {
	g := modelGrant{end: r.end(), filter: rapid.Uint16Range(0, 2).Draw(r.rt, "filter")}
	a := authorization(byte(c+1), n)
	a.Resource.Filters = filters(g.filter)
	r.model[c].grants[n] = g
	r.say(portal.AllowAccess{
		ClientID: a.Client.ID, IPv4: a.Client.IPv4, IPv6: a.Client.IPv6, Resource: a.Resource, ExpiresAt: time.Unix(g.end, 0),
	})
}

func filters(port uint16) []portal.Filter {
	if port == 0 {
		return nil
	}
	return []portal.Filter{{Protocol: portal.FilterTCP, First: port, Last: port}}
}

func (r *modelRun) end() int64 {
	return time.Now().Add(time.Hour).Unix() + rapid.Int64Range(0, 9).Draw(r.rt, "end")
}

// join is another connection of the portal, which begins with an init.
func (r *modelRun) join() {
	r.connection++
	r.retain()
}

func (r *modelRun) retain() {
	init := portal.Init{IPv4: ownAddresses.V4, IPv6: ownAddresses.V6}
	for c := range r.model {
		kept := map[byte]modelGrant{}
		for n := byte(10); n < 13; n++ {
			if !rapid.Bool().Draw(r.rt, "listed") {
				continue
			}
			end := r.end()
			init.Authorizations = append(init.Authorizations, portal.Authorization{
				ClientID: clientID(byte(c + 1)), ResourceID: resourceID(n), ExpiresAt: time.Unix(end, 0),
			})
			if g, ok := r.model[c].grants[n]; ok {
				kept[n] = modelGrant{end, g.filter}
			}
		}
		r.model[c].grants = kept
	}
	for range rapid.IntRange(1, 2).Draw(r.rt, "inits") { // repeating one changes nothing
		r.say(init)
	}
}

func (r *modelRun) extend(c int, n byte) {
	end := r.end()
	if g, ok := r.model[c].grants[n]; ok {
		r.model[c].grants[n] = modelGrant{end, g.filter}
	}
	r.say(portal.ExpiryUpdated{ClientID: clientID(byte(c + 1)), ResourceID: resourceID(n), ExpiresAt: time.Unix(end, 0)})
}

// expire lets a grant end by its timer. Whatever comes next may or may not meet
// it, so the run rests first.
func (r *modelRun) expire(c int, n byte) {
	delete(r.model[c].grants, n)
	r.say(portal.ExpiryUpdated{ClientID: clientID(byte(c + 1)), ResourceID: resourceID(n), ExpiresAt: time.Now().Add(-time.Second)})
	r.rest()
}

func (r *modelRun) update(n byte) {
	f := rapid.Uint16Range(0, 2).Draw(r.rt, "filter")
	for c := range r.model {
		if g, ok := r.model[c].grants[n]; ok {
			r.model[c].grants[n] = modelGrant{g.end, f}
		}
	}
	resource := authorization(1, n).Resource
	resource.Filters = filters(f)
	r.say(portal.ResourceUpdated{Resource: resource})
}

func (r *modelRun) revoke(c int, n byte) {
	delete(r.model[c].grants, n)
	r.say(portal.RejectAccess{ClientID: clientID(byte(c + 1)), ResourceID: resourceID(n)})
}

// candidates come and go; those that do not parse change nothing.
func (r *modelRun) addCandidates(c int) {
	if m := r.model[c]; m.connection != "" {
		m.candidates[remoteHost], m.candidates[remoteSrflx] = true, true
	}
	r.say(portal.ICECandidates{ClientID: clientID(byte(c + 1)), Candidates: []string{remoteHost, remoteBad, remoteSrflx}})
}

func (r *modelRun) removeCandidates(c int) {
	delete(r.model[c].candidates, remoteHost)
	r.say(portal.InvalidateICECandidates{ClientID: clientID(byte(c + 1)), Candidates: []string{remoteHost}})
}

// replaceRelay moves all connections to another relay.
func (r *modelRun) replaceRelay() {
	r.relays++
	o := offers(r.plane.offers.load().Version+1, relayOffer(fmt.Sprint("relay-", r.relays), fmt.Sprintf("127.0.0.9:%d", 50001+r.relays)))
	r.plane.offers.store(o)
	r.system.Send(r.pid, o)
}

// crash fails an actor: peers, or the peer of a client. What it has set aside is
// lost then, so the run rests first.
func (r *modelRun) crash(who string) {
	r.rest()
	r.look(r.pid, func(ctx actorkit.Context) {
		for _, pid := range append(ctx.Children(), ctx.Self()) {
			if actorkit.Path(pid) == who {
				ctx.Send(pid, boom{})
			}
		}
	})
}

// reset replaces the key pair: everything ends. What the portal says until it
// has been told is refused, during the reset and after it.
func (r *modelRun) reset() {
	for ref, q := range r.requests {
		q.least = 0 // those on their way may or may not be answered
		r.requests[ref] = q
	}
	r.system.Send(r.pid, messages.Reset{Cause: "the model"})
	r.refused()
	eventually(r.t, func() bool {
		return r.plane.keys.load().epoch > r.epoch && !r.plane.resetting.Load()
	}, "the reset is over")
	r.refused()
	r.model = newModel()
	r.epoch = r.plane.keys.load().epoch
	r.connection++
}

// refused says something about the key pair that is being replaced.
func (r *modelRun) refused() {
	for range rapid.IntRange(0, 3).Draw(r.rt, "late") {
		a, _ := r.authorization(rapid.IntRange(0, 1).Draw(r.rt, "client"), rapid.ByteRange(10, 12).Draw(r.rt, "resource"))
		r.requests[a.Ref] = request{connection: r.connection, refused: true}
		r.say(a)
	}
}

func (r *modelRun) step() {
	c, n := rapid.IntRange(0, 1).Draw(r.rt, "client"), rapid.ByteRange(10, 12).Draw(r.rt, "resource")
	switch rapid.IntRange(0, 19).Draw(r.rt, "step") {
	case 0, 1, 2, 3, 4:
		r.authorize(c, n)
	case 5:
		r.request(c, n)
	case 6, 7:
		r.allow(c, n)
	case 8, 9, 10:
		r.revoke(c, n)
	case 11:
		r.retain()
	case 12:
		r.join()
	case 13:
		r.extend(c, n)
	case 14, 15:
		r.addCandidates(c)
	case 16:
		r.removeCandidates(c)
	case 17:
		r.update(n)
	case 18:
		r.replaceRelay()
	case 19:
		switch rapid.IntRange(0, 3).Draw(r.rt, "rare step") {
		case 0:
			r.crash("gateway/peers/" + clientID(byte(c+1)))
		case 1:
			r.crash("gateway/peers")
		case 2:
			r.expire(c, n)
		case 3:
			r.reset()
		}
	}
	for c := range r.model {
		if len(r.model[c].grants) == 0 {
			r.model[c] = newModel()[c]
		}
	}
}

// found is what the store says, in the form of the model.
func (r *modelRun) found() model {
	m := newModel()
	for c := range m {
		state := r.plane.store.get(clientID(byte(c + 1)))
		for _, g := range state.Grants.List() {
			var n byte
			if _, err := fmt.Sscanf(g.Resource.ID, "resource-%d", &n); err != nil {
				r.rt.Fatal(err)
			}
			got := modelGrant{end: g.ExpiresAt.Unix()}
			if len(g.Resource.Filters) > 0 {
				got.filter = g.Resource.Filters[0].Ports.First
			}
			m[c].grants[n] = got
		}
		if state.Connected {
			m[c].connect("any")
		}
		for _, remote := range state.Remote {
			for _, line := range []string{remoteHost, remoteSrflx} {
				if known, err := ice.Parse(line, ""); err == nil && known.Key() == remote.Key() {
					m[c].candidates[line] = true
				}
			}
		}
	}
	return m
}

func (r *modelRun) compare() {
	r.rest()
	if got := r.found(); got.String() != r.model.String() {
		r.rt.Fatalf("store\n%s\nmodel\n%s", got, r.model)
	}
	for c := range r.model {
		for n := byte(10); n < 13; n++ {
			g, ok := r.model[c].grants[n]
			if want := ok && g.filter == 0 && r.model[c].connection != ""; admits(r.t, r.plane, byte(c+1), n) != want {
				r.rt.Fatalf("packets of client %d to %d pass: %v", c+1, n, !want)
			}
		}
	}
	r.compareAnswers()
	if lost := r.dropped(drop.MailboxFull); lost != 0 {
		r.rt.Fatalf("%d messages lost", lost)
	}
}

// compareAnswers checks that each request was acknowledged once, on the
// connection that it came on.
func (r *modelRun) compareAnswers() {
	answers := map[portal.Ref]int{}
	for _, m := range r.sent() {
		var ref portal.Ref
		switch answer := m.Message.(type) {
		case portal.Acknowledge:
			ref = answer.Ref
		case portal.ConnectionReady:
			ref = answer.Ref
		default:
			continue
		}
		answers[ref]++
		if m.Connection != r.requests[ref].connection {
			r.rt.Fatalf("%s came on connection %d, its answer is for %d", ref, r.requests[ref].connection, m.Connection)
		}
	}
	for ref, q := range r.requests {
		if n := answers[ref]; n < q.least || n > 1 || n > 0 && q.refused {
			r.rt.Fatalf("%s %+v was acknowledged %d times", ref, q, n)
		}
	}
}

// clear revokes everything and expects nothing to be left.
func (r *modelRun) clear() {
	r.say(portal.Init{IPv4: ownAddresses.V4, IPv6: ownAddresses.V6})
	eventually(r.t, func() bool {
		clients, children := 0, 0
		r.plane.Tunnel.Each(func(*tunnel.Client) { clients++ })
		r.look(r.pid, func(ctx actorkit.Context) { children = len(ctx.Children()) })
		return clients == 0 && children == 0 && len(r.plane.store.ids()) == 0
	}, "nothing is left")
	for len(r.transport.got) > 0 {
		<-r.transport.got
	}
}

// Whatever the portal says in whatever order about two clients, whatever crashes
// and whenever the keys change: in the end grants, connections and candidates are
// those of the model, in the store and in the packet path, and each request was
// acknowledged once.
func TestClientsFollowTheModel(t *testing.T) {
	checks := "10000"
	if testing.Short() {
		checks = "500"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	rig := newFamily(t)
	rapid.Check(t, func(rt *rapid.T) {
		r := &modelRun{
			peersRig: rig, rt: rt, model: newModel(), requests: map[portal.Ref]request{},
			epoch: rig.plane.keys.load().epoch, connection: 1,
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			r.step()
		}
		r.compare()
		r.clear()
	})
}
