package actors

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
)

// modelGrant is what a simple gateway would know about one grant.
type modelGrant struct {
	end    int64 // Unix seconds
	filter uint16
}

// model holds the grants of two clients, by resource, as the portal's messages
// leave them when nothing happens at the same time.
type model [2]map[byte]modelGrant

func (m model) String() string {
	var lines []string
	for i, grants := range m {
		for _, n := range slices.Sorted(maps.Keys(grants)) {
			lines = append(lines, fmt.Sprintf("%s %s ends %d filter %d", clientID(byte(i+1)), resourceID(n), grants[n].end, grants[n].filter))
		}
	}
	return fmt.Sprint(lines)
}

// modelRun feeds the same messages to the actors and to the model.
type modelRun struct {
	*peersRig
	rt    *rapid.T
	model model
	keys  [2]byte // generation of each client's preshared key
	// connected says which client has a connection; the last grant takes it along.
	connected [2]bool
	refs      []portal.Ref
}

func (r *modelRun) say(m portal.Message) {
	r.system.Send(r.pid, said(m))
}

func (r *modelRun) authorize(c int, n byte) {
	g := modelGrant{end: r.end(), filter: rapid.Uint16Range(0, 2).Draw(r.rt, "filter")}
	if rapid.IntRange(0, 4).Draw(r.rt, "rekey") == 0 {
		r.keys[c]++
	}
	a := authorization(byte(c+1), n, func(a *portal.Authorize) {
		a.Client.PresharedKey[1] = r.keys[c]
		a.Ref = portal.Ref(fmt.Sprint(len(r.refs)))
		a.ExpiresAt = time.Unix(g.end, 0)
		a.Resource.Filters = filters(g.filter)
	})
	r.refs = append(r.refs, a.Ref)
	r.model[c][n], r.connected[c] = g, true
	r.say(a)
}

// allow is the legacy grant, which makes no connection.
func (r *modelRun) allow(c int, n byte) {
	g := modelGrant{end: r.end(), filter: rapid.Uint16Range(0, 2).Draw(r.rt, "filter")}
	a := authorization(byte(c+1), n)
	a.Resource.Filters = filters(g.filter)
	r.model[c][n] = g
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
			if g, ok := r.model[c][n]; ok {
				kept[n] = modelGrant{end, g.filter}
			}
		}
		r.model[c] = kept
	}
	r.say(init)
}

func (r *modelRun) extend(c int, n byte) {
	end := r.end()
	if g, ok := r.model[c][n]; ok {
		r.model[c][n] = modelGrant{end, g.filter}
	}
	r.say(portal.ExpiryUpdated{ClientID: clientID(byte(c + 1)), ResourceID: resourceID(n), ExpiresAt: time.Unix(end, 0)})
}

// expire lets a grant end by its timer. Whatever comes next may or may not meet
// it, so the run rests first.
func (r *modelRun) expire(c int, n byte) {
	delete(r.model[c], n)
	r.say(portal.ExpiryUpdated{ClientID: clientID(byte(c + 1)), ResourceID: resourceID(n), ExpiresAt: time.Now().Add(-time.Second)})
	r.rest()
}

func (r *modelRun) update(n byte) {
	f := rapid.Uint16Range(0, 2).Draw(r.rt, "filter")
	for c := range r.model {
		if g, ok := r.model[c][n]; ok {
			r.model[c][n] = modelGrant{g.end, f}
		}
	}
	resource := authorization(1, n).Resource
	resource.Filters = filters(f)
	r.say(portal.ResourceUpdated{Resource: resource})
}

// crash fails the peer of a client. What it has set aside during a goodbye is
// lost then, so the run rests first.
func (r *modelRun) crash(c int) {
	r.rest()
	r.look(r.pid, func(ctx actorkit.Context) {
		for _, pid := range ctx.Children() {
			if actorkit.Path(pid) == "gateway/peers/"+clientID(byte(c+1)) {
				ctx.Send(pid, boom{})
			}
		}
	})
}

func (r *modelRun) step() {
	c, n := rapid.IntRange(0, 1).Draw(r.rt, "client"), rapid.ByteRange(10, 12).Draw(r.rt, "resource")
	id := clientID(byte(c + 1))
	switch rapid.IntRange(0, 12).Draw(r.rt, "step") {
	case 0, 1, 2, 3:
		r.authorize(c, n)
	case 4, 5:
		delete(r.model[c], n)
		r.say(portal.RejectAccess{ClientID: id, ResourceID: resourceID(n)})
	case 6:
		r.retain()
	case 7:
		r.extend(c, n)
	case 8:
		r.say(portal.ICECandidates{ClientID: id, Candidates: []string{remoteHost, remoteBad, remoteSrflx}})
	case 9:
		r.say(portal.InvalidateICECandidates{ClientID: id, Candidates: []string{remoteHost}})
	case 10:
		r.update(n)
	case 11:
		if rapid.Bool().Draw(r.rt, "crash") {
			r.crash(c)
		} else {
			r.expire(c, n)
		}
	case 12:
		r.allow(c, n)
	}
	for c := range r.model {
		r.connected[c] = r.connected[c] && len(r.model[c]) > 0
	}
}

// rest waits until no actor has anything to do and no goroutine is out.
func (r *modelRun) rest() {
	r.t.Helper()
	eventually(r.t, func() bool {
		before, idle := r.handled()
		// Whoever was in the middle of a message is through after these turns,
		// and what follows from it shows.
		turns := r.turns()
		after, still := r.handled()
		return idle && still && after-before == turns
	}, "the actors rest")
}

// handled counts the messages that were handled, and says whether none waits.
func (r *modelRun) handled() (n uint64, idle bool) {
	stats := r.system.Stats()
	idle = stats.Goroutines == 0
	for _, a := range stats.Actors {
		n += a.Handled
		idle = idle && a.Pending == 0 && a.Phase == "running"
	}
	return n, idle
}

// turns waits for one turn of peers and of each peer, and counts them.
func (r *modelRun) turns() uint64 {
	var pids []actorkit.PID
	r.look(r.pid, func(ctx actorkit.Context) { pids = ctx.Children() })
	for _, pid := range pids {
		done := make(chan struct{})
		r.system.Send(pid, act(func(actorkit.Context) { close(done) }))
		select {
		case <-done:
		case <-time.After(100 * time.Millisecond): // it has just ended
		}
	}
	return uint64(1 + len(pids))
}

// granted is what the store says, in the form of the model.
func (r *modelRun) granted() model {
	var m model
	for c := range m {
		m[c] = map[byte]modelGrant{}
		for _, g := range r.plane.store.get(clientID(byte(c + 1))).Grants.List() {
			var n byte
			if _, err := fmt.Sscanf(g.Resource.ID, "resource-%d", &n); err != nil {
				r.rt.Fatal(err)
			}
			got := modelGrant{end: g.ExpiresAt.Unix()}
			if len(g.Resource.Filters) > 0 {
				got.filter = g.Resource.Filters[0].Ports.First
			}
			m[c][n] = got
		}
	}
	return m
}

func (r *modelRun) compare() {
	r.rest()
	if got := r.granted(); got.String() != r.model.String() {
		r.rt.Fatalf("store\n%s\nmodel\n%s", got, r.model)
	}
	for c := range r.model {
		for n := byte(10); n < 13; n++ {
			g, ok := r.model[c][n]
			if want := ok && g.filter == 0 && r.connected[c]; admits(r.t, r.plane, byte(c+1), n) != want {
				r.rt.Fatalf("packets of client %d to %d pass: %v", c+1, n, !want)
			}
		}
	}
	acked := map[portal.Ref]int{}
	for _, m := range r.sent() {
		if ack, ok := m.Message.(portal.Acknowledge); ok {
			acked[ack.Ref]++
		}
	}
	for _, ref := range r.refs {
		if acked[ref] != 1 {
			r.rt.Fatalf("an authorization was acknowledged %d times", acked[ref])
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

// Whatever the portal says in whatever order about two clients, the grants at
// the end are those of the model, in the store and in the packet path, and each
// authorization was acknowledged once.
func TestGrantsFollowTheModel(t *testing.T) {
	for name, value := range map[string]string{"rapid.checks": "500", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	rig := newFamily(t)
	rapid.Check(t, func(rt *rapid.T) {
		r := &modelRun{peersRig: rig, rt: rt, model: model{{}, {}}}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			r.step()
		}
		r.compare()
		r.clear()
	})
}
