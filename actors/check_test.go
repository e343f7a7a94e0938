package actors

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// stateOf is what the store holds about client c with grants for networks.
func stateOf(c byte, networks ...byte) clientState {
	a := authorization(c, 0)
	s := clientState{
		Client: a.Client, ClientICE: a.ClientICE, GatewayICE: a.GatewayICE, Gateway: ownAddresses,
		Remote: []ice.Candidate{srflx}, Signalled: []ice.Candidate{hostShared}, RelayID: "relay-1", Connected: true,
	}
	for _, n := range networks {
		a := authorization(c, n)
		s.Grants = s.Grants.Upsert(policy.Grant{Resource: policyResource(a.Resource), ExpiresAt: a.ExpiresAt})
	}
	return s
}

func TestWhatDoesNotFitTogetherIsNotTakenOver(t *testing.T) {
	many := make([]ice.Candidate, maxRemoteCandidates+1)
	for i := range many {
		many[i] = ice.Candidate{Type: ice.Host, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), 1)}
	}
	for _, tc := range []struct {
		name   string
		change func(*clientState)
		want   string // what is left out
		check  func(clientState) bool
	}{
		{"nothing is wrong", func(*clientState) {}, "", func(s clientState) bool { return s.Connected && s.Grants.Len() == 2 }},
		{"not connected", func(s *clientState) { *s = s.disconnected() }, "", func(s clientState) bool { return s.Grants.Len() == 2 }},
		{"one family is enough", func(s *clientState) { s.Client.IPv6 = netip.Addr{} }, "", func(s clientState) bool { return s.Connected }},
		{"a grant that has ended is the policy's business", func(s *clientState) {
			s.Grants = s.Grants.Extend(resourceID(10), time.Unix(1, 0))
		}, "", func(s clientState) bool { return s.Grants.Len() == 2 }},
		{"state of another client", func(s *clientState) { s.Client.ID = clientID(2) }, "state of another client", clientState.empty},
		{"address outside the tunnel", func(s *clientState) { s.Client.IPv4 = netip.MustParseAddr("10.0.0.1") }, "client with a wrong tunnel address", clientState.empty},
		{"address of the other family", func(s *clientState) { s.Client.IPv4 = s.Client.IPv6 }, "client with a wrong tunnel address", clientState.empty},
		{"no address", func(s *clientState) { s.Client.IPv4, s.Client.IPv6 = netip.Addr{}, netip.Addr{} }, "client with a wrong tunnel address", clientState.empty},
		{"grant without ID", func(s *clientState) {
			s.Grants = s.Grants.Upsert(policy.Grant{Resource: policy.Resource{Kind: policy.Internet}})
		}, "grant without resource", func(s clientState) bool { return s.Connected && s.Grants.Len() == 2 }},
		{"grant of no kind", func(s *clientState) {
			s.Grants = s.Grants.Upsert(policy.Grant{Resource: policy.Resource{ID: "x", Kind: 9}})
		}, "grant without resource", func(s clientState) bool { return !s.Grants.Has("x") }},
		{"no key", func(s *clientState) { s.Client.PublicKey = portal.PublicKey{} }, "connection without parameters",
			func(s clientState) bool { return !s.Connected && s.Remote == nil && s.Grants.Len() == 2 }},
		{"no credentials", func(s *clientState) { s.GatewayICE.Password = "" }, "connection without parameters",
			func(s clientState) bool { return !s.Connected && s.Grants.Len() == 2 }},
		{"too many candidates", func(s *clientState) { s.Remote = many }, "candidate of the client",
			func(s clientState) bool { return s.Connected && len(s.Remote) == maxRemoteCandidates }},
		{"candidates that are none", func(s *clientState) { s.Remote, s.Signalled = []ice.Candidate{{}, srflx}, []ice.Candidate{{Type: 7}} },
			"candidate of the client, candidate of the gateway", func(s clientState) bool { return len(s.Remote) == 1 && len(s.Signalled) == 0 }},
	} {
		s := stateOf(1, 10, 11)
		tc.change(&s)
		got, wrong := s.check(clientID(1))
		if strings.Join(wrong, ", ") != tc.want || !tc.check(got) {
			t.Errorf("%s: left out %q, kept %+v", tc.name, wrong, got)
		}
		if again, wrong := got.check(clientID(1)); len(wrong) != 0 || again.Connected != got.Connected || again.Grants.Len() != got.Grants.Len() {
			t.Errorf("%s: the second look finds %q", tc.name, wrong)
		}
	}
}

func TestAnIncarnationThatWasReplacedWritesNothing(t *testing.T) {
	s := newStore()
	_, first, failed := s.take("c")
	if failed {
		t.Error("the first writer follows a failure")
	}
	if !s.keep("c", first, stateOf(1, 10)) {
		t.Fatal("the only writer is refused")
	}
	state, second, failed := s.take("c")
	if !failed {
		t.Error("the failure of the first is not seen")
	}
	if state.Grants.Len() != 1 {
		t.Error("the state is lost")
	}
	state.Grants = state.Grants.Revoke(resourceID(10))
	if !s.keep("c", second, state) || s.keep("c", first, stateOf(1, 10)) || s.get("c").Grants.Len() != 0 {
		t.Error("a revoked grant is back")
	}
	s.release("c", first)
	if !s.keep("c", second, state) {
		t.Error("the lease was given back by another")
	}
	for name, end := range map[string]func(){"given up": func() { s.delete("c") }, "reset": s.clear, "ended": func() { s.release("c", second) }} {
		_, second, _ = s.take("c")
		end()
		if s.keep("c", second, stateOf(1, 10)) {
			t.Errorf("%s, and written nevertheless", name)
		}
	}
	if len(s.leases) != 0 {
		t.Error("leases are left")
	}
}

func TestTheOtherActorsCheckWhatTheyFind(t *testing.T) {
	ok, same := relayConfig("a"), relayConfig("a", func(r *portal.DualStackRelay) { r.Password = "other" })
	if got, wrong := checkRelays([]portal.DualStackRelay{ok, {}, same, {ID: "b"}}); !wrong || !slices.Equal(got, []portal.DualStackRelay{ok}) {
		t.Errorf("relays %+v", got)
	}
	if _, wrong := checkRelays([]portal.DualStackRelay{ok, relayConfig("b")}); wrong {
		t.Error("good relays are wrong")
	}
	served := []netip.Addr{ownAddresses.V4, ownAddresses.V6}
	if got, wrong := checkServed(append(served, netip.MustParseAddr("10.0.0.1"), ownAddresses.V4, netip.Addr{})); !wrong || !slices.Equal(got, served) {
		t.Errorf("served %v", got)
	}
	if got, wrong := checkAddresses(messages.TunnelAddresses{V4: netip.MustParseAddr("10.0.0.1")}); !wrong || got.V4.IsValid() {
		t.Errorf("addresses %+v", got)
	}
	for _, a := range []messages.TunnelAddresses{{}, ownAddresses} {
		if got, wrong := checkAddresses(a); wrong || got != a {
			t.Errorf("addresses %+v", got)
		}
	}
	keys, err := newKeyPair(1)
	if err != nil || !keys.consistent() {
		t.Fatal("new keys are wrong")
	}
	other := keys
	other.private[5] ^= 1
	if other.consistent() || (keyPair{}).consistent() {
		t.Error("keys that do not belong together")
	}
}

// crashingIn has an actor of the stage panic where it logs text, while it handles
// what do sends, and waits until it works again.
func (s *stage) crashingIn(pid actorkit.PID, text string, do func()) {
	s.t.Helper()
	s.plane.log.breakAt(text)
	do()
	eventually(s.t, func() bool { return strings.Contains(s.plane.log.String(), "told to panic at "+text) }, "a panic at %q", text)
	s.settle(pid)
}

// A message that an actor fails on is not handled again. What the portal took away
// is gone nevertheless, wherever in the middle that was.
func TestACrashInARevocationDoesNotUndoIt(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	r.tell(authorize(authorization(1, 11)))
	r.crashingIn(r.pid, "access ended", func() { r.system.Send(r.pid, messages.Revoke{ResourceID: resourceID(10)}) })
	if admits(t, r.plane, 1, 10) || !admits(t, r.plane, 1, 11) || !slices.Equal(r.grants(), []string{resourceID(11)}) {
		t.Errorf("grants in the store: %q", r.grants())
	}
	if r.client() != before {
		t.Error("the session did not survive")
	}
}

// The same for what it gives: the store knows whatever is in force, so that it can
// be taken away again.
func TestACrashInAnAuthorizationLeavesNothingThatNobodyKnows(t *testing.T) {
	r := newPeerRig(t)
	r.crashingIn(r.pid, "access granted", func() { r.system.Send(r.pid, authorize(authorization(1, 10))) })
	if admits(t, r.plane, 1, 10) && len(r.grants()) == 0 {
		t.Error("a client has access that no state stands for")
	}
	r.tell(messages.Revoke{ResourceID: resourceID(10)})
	eventually(t, func() bool { return r.client() == nil }, "a revocation ends it")
}

// Sessions of a grant that ended go, although whoever was to end them is gone.
func TestSessionsOfADomainWithoutGrantEnd(t *testing.T) {
	r := newPeerRig(t)
	r.tell(authorize(site(siteID, "*.site.example")), authorize(authorization(1, 11)))
	table := nat.New(nat.Config{})
	if _, err := table.Assign(nat.Assignment{Resource: siteID, Domain: "a.site.example", ProxyIPs: []netip.Addr{proxy4}, RealIPs: []netip.Addr{real4}}); err != nil {
		t.Fatal(err)
	}
	openSession(t, table)
	state := r.plane.store.get(clientID(1))
	state.NAT = tunnel.NewNAT(table)
	state.Grants = state.Grants.Revoke(siteID)
	r.leftBehind(state)
	eventually(t, func() bool { return table.Stats().Sessions == 0 }, "the session ends")
	if table.Lookup(proxy4) == nil {
		t.Error("the domain is forgotten, too")
	}
}

// leftBehind has the peer fail and leave state to its successor.
func (r *peerRig) leftBehind(state clientState) {
	r.t.Helper()
	r.look(r.pid, func(ctx actorkit.Context) {
		r.plane.store.put(clientID(1), state)
		ctx.Send(ctx.Self(), boom{})
	})
	r.settle(r.pid)
}

// openSession opens a session from client 1 to proxy4.
func openSession(t testing.TB, table *nat.Table) {
	t.Helper()
	var v packet.View
	from := netip.AddrPortFrom(authorization(1, 0).Client.IPv4, 4000)
	if reason := v.Parse(packettest.UDP(from, netip.AddrPortFrom(proxy4, 53), []byte("question"))); reason != drop.None {
		t.Fatal(reason)
	}
	if got := table.Open(&v, time.Now().UnixNano()); got != nat.Translated {
		t.Fatalf("session: %v", got)
	}
}

// stray adds a client to the packet path that no state stands for. It may do
// everything.
func (p *testPlane) stray(t testing.TB, client portal.Client) *tunnel.Client {
	t.Helper()
	c, err := p.Tunnel.Add(tunnel.ClientConfig{
		PublicKey: client.PublicKey, PresharedKey: client.PresharedKey, TunnelV4: client.IPv4, TunnelV6: client.IPv6,
		Policy: anything(client),
		Callbacks: tunnel.Callbacks{
			Control: func([]byte) bool { return true }, Session: func(tunnel.Session) {}, Path: func(*transport.Path) {},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// anything admits every network of the tests to a client.
func anything(client portal.Client) *policy.Snapshot {
	var grants policy.Grants
	for n := byte(10); n < 20; n++ {
		grants = grants.Upsert(policy.Grant{Resource: policyResource(authorization(1, n).Resource)})
	}
	return policy.Compile(policy.Peer{ClientV4: client.IPv4, ClientV6: client.IPv6}, grants.List(), 1)
}

func TestClientsInThePacketPathThatNobodyKnowsAreRemoved(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) }, "connected")
	known, _ := r.plane.Tunnel.Lookup(authorization(1, 0).Client.PublicKey)
	r.plane.stray(t, authorization(2, 0).Client)
	// One that is told goodbye is not a stray: somebody takes care of it.
	leaving := r.plane.stray(t, authorization(3, 0).Client)
	if err := r.plane.Tunnel.Goodbye(t.Context(), leaving); err != nil {
		t.Fatal(err)
	}
	r.system.Send(r.pid, boom{})
	r.settle(r.pid)
	if admits(t, r.plane, 2, 10) || r.plane.Drops.Load(drop.StateInconsistent) != 1 {
		t.Errorf("%d discarded", r.plane.Drops.Load(drop.StateInconsistent))
	}
	if now, _ := r.plane.Tunnel.Lookup(authorization(1, 0).Client.PublicKey); now != known {
		t.Error("a client that is known was removed, too")
	}
	// One that is in the way of a client makes place.
	other := authorization(4, 0).Client
	other.PublicKey[0]++
	r.plane.stray(t, other)
	r.portalSays(authorization(4, 10))
	eventually(t, func() bool { return admits(t, r.plane, 4, 10) }, "the client with the address of a stray is admitted")
	r.plane.Tunnel.Remove(leaving)
}

func TestAConnectionWithOtherParametersIsMadeAnew(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	state := r.plane.store.get(clientID(1))
	state.Client.PresharedKey[7] ^= 1
	r.leftBehind(state)
	if now := r.client(); now == before || now.PresharedKey() != r.plane.store.get(clientID(1)).Client.PresharedKey {
		t.Error("taken over as it was")
	}
	if r.plane.Drops.Load(drop.StateInconsistent) != 1 || !admits(t, r.plane, 1, 10) {
		t.Error("not counted, or without its grant")
	}
}

// corruptions are things that no actor leaves behind unless it went mad. Each is done to
// the state of one client, with that of another at hand.
var corruptions = []struct {
	name string
	do   func(p *testPlane, s, other *clientState)
}{
	{"no key", func(_ *testPlane, s, _ *clientState) { s.Client.PublicKey = portal.PublicKey{} }},
	{"key of another", func(_ *testPlane, s, o *clientState) { s.Client.PublicKey = o.Client.PublicKey }},
	{"keys of another", func(_ *testPlane, s, o *clientState) {
		s.Client.PublicKey, s.Client.PresharedKey = o.Client.PublicKey, o.Client.PresharedKey
	}},
	{"address of another", func(_ *testPlane, s, o *clientState) { s.Client.IPv4 = o.Client.IPv4 }},
	{"everything of another", func(_ *testPlane, s, o *clientState) { *s = *o }},
	{"another preshared key", func(_ *testPlane, s, _ *clientState) { s.Client.PresharedKey[3]++ }},
	{"address outside", func(_ *testPlane, s, _ *clientState) { s.Client.IPv4 = netip.MustParseAddr("10.0.0.9") }},
	{"grant that has ended", func(_ *testPlane, s, _ *clientState) { s.Grants = s.Grants.Extend(resourceID(10), time.Unix(1, 0)) }},
	{"grant without kind", func(_ *testPlane, s, _ *clientState) {
		s.Grants = s.Grants.Upsert(policy.Grant{Resource: policy.Resource{ID: "x", Network: network(13)}})
	}},
	{"no credentials", func(_ *testPlane, s, _ *clientState) { s.ClientICE = portal.ICECredentials{} }},
	{"candidates", func(_ *testPlane, s, _ *clientState) { s.Remote = slices.Repeat([]ice.Candidate{{Type: 9}}, 100) }},
	{"not connected", func(_ *testPlane, s, _ *clientState) { s.Connected = false }},
	{"nothing", func(_ *testPlane, s, _ *clientState) { *s = clientState{} }},
	{"another relay", func(_ *testPlane, s, _ *clientState) { s.RelayID = "relay-9" }},
	{"addresses of the gateway", func(_ *testPlane, s, _ *clientState) { s.Gateway = messages.TunnelAddresses{V4: s.Client.IPv4} }},
	{"translation for a domain that is not granted", func(_ *testPlane, s, _ *clientState) {
		table := nat.New(nat.Config{})
		_, _ = table.Assign(nat.Assignment{Resource: siteID, Domain: "a.b", ProxyIPs: []netip.Addr{proxy4}, RealIPs: []netip.Addr{real4}})
		s.NAT = tunnel.NewNAT(table)
	}},
}

// What happens to a client in the packet path meanwhile.
var pathCorruptions = map[string]func(*testPlane, *tunnel.Client){
	"nothing else": func(*testPlane, *tunnel.Client) {},
	"it may do anything": func(_ *testPlane, c *tunnel.Client) {
		c.SetPolicy(anything(authorization(c.PublicKey()[0], 0).Client))
	},
	"not in the packet path": func(p *testPlane, c *tunnel.Client) { p.Tunnel.Remove(c) },
}

// Whatever an incarnation left behind, the next one gives nobody access that it was
// not granted, and lives.
func TestNoCorruptionGivesAccessThatWasNotGranted(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 30
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	chance := rand.New(rand.NewPCG(seed, 1))
	for round := range rounds {
		r := newFamily(t)
		clients := []byte{1, 2, 3}
		for _, c := range clients {
			// Client c has the networks 10 and 10+c.
			r.portalSays(authorization(c, 10), authorization(c, 10+c))
		}
		for _, c := range clients {
			eventually(t, func() bool { return admits(t, r.plane, c, 10+c) }, "client %d is connected", c)
		}
		r.settle(r.pid)
		var what []string
		// One client at a time: what contradicts itself only in the states of two
		// could be right for either.
		corrupt := func(c byte) {
			o := clients[chance.IntN(3)]
			for range 1 + chance.IntN(3) {
				k := corruptions[chance.IntN(len(corruptions))]
				what = append(what, fmt.Sprintf("client %d: %s (client %d)", c, k.name, o))
				s, other := r.plane.store.get(clientID(c)), r.plane.store.get(clientID(o))
				k.do(r.plane, &s, &other)
				r.plane.store.put(clientID(c), s)
			}
			names := slices.Sorted(maps.Keys(pathCorruptions))
			also := names[chance.IntN(len(names))]
			what = append(what, also)
			if client, ok := r.plane.Tunnel.Lookup(authorization(c, 0).Client.PublicKey); ok {
				pathCorruptions[also](r.plane, client)
			}
			if chance.IntN(3) == 0 {
				what = append(what, "a stray")
				c := authorization(9, 0).Client
				c.PublicKey[0] = 200
				r.plane.stray(t, c)
			}
		}
		// In the turn of peers, which then fails with its children, or of one peer.
		victim, fails := clients[chance.IntN(3)], r.pid
		if round%2 == 1 {
			for _, pid := range r.childrenOf(r.pid) {
				if strings.HasSuffix(actorkit.Path(pid), clientID(victim)) {
					fails = pid
				}
			}
		}
		r.look(fails, func(ctx actorkit.Context) {
			corrupt(victim)
			ctx.Send(ctx.Self(), boom{})
		})
		r.calm()
		r.noMore(what)
		if log := r.plane.log.String(); strings.Contains(log, "kept failing") {
			t.Fatalf("round %d, %q: an actor cannot be kept alive", round, what)
		}
		stopSystem(t, r.system)
	}
}

func (s *stage) childrenOf(pid actorkit.PID) (list []actorkit.PID) {
	s.t.Helper()
	s.look(pid, func(ctx actorkit.Context) { list = ctx.Children() })
	return list
}

// visit is look for an actor that may have ended.
func (s *stage) visit(pid actorkit.PID, f func(ctx actorkit.Context)) {
	s.t.Helper()
	done := make(chan struct{})
	s.system.Send(pid, act(func(ctx actorkit.Context) { f(ctx); close(done) }))
	eventually(s.t, func() bool {
		select {
		case <-done:
			return true
		default:
			return !slices.ContainsFunc(s.system.Stats().Actors, func(a actorkit.ActorStats) bool { return a.Path == actorkit.Path(pid) })
		}
	}, "%s has its turn or has ended", actorkit.Path(pid))
}

// calm waits until peers and those of its children that are left have started.
func (r *peersRig) calm() {
	r.t.Helper()
	for range 2 { // what they tell each other
		r.settle(r.pid)
		for _, pid := range r.childrenOf(r.pid) {
			r.visit(pid, func(actorkit.Context) {})
		}
	}
}

// noMore checks that whoever has the keys of a client in the packet path reaches
// what was granted to that client at most, from its own address, and that the store
// knows all of them.
func (r *peersRig) noMore(what []string) {
	r.t.Helper()
	now := time.Now().UnixNano()
	known := r.plane.store.connected()
	r.plane.Tunnel.Each(func(c *tunnel.Client) {
		if found, ok := r.plane.Tunnel.Lookup(c.PublicKey()); !ok || found != c {
			return // told goodbye
		}
		if s, ok := known[c.PublicKey()]; !ok || !s.is(c) {
			r.t.Errorf("%q: a client in the packet path that the store does not know", what)
		}
		for _, holder := range []byte{1, 2, 3, 9} {
			own := authorization(holder, 0).Client
			for n := byte(10); n < 20; n++ {
				granted := holder < 9 && (n == 10 || n == 10+holder)
				for _, from := range []byte{1, 2, 3, 9} {
					var v packet.View
					src := netip.AddrPortFrom(authorization(from, 0).Client.IPv4, 4000)
					if reason := v.Parse(packettest.UDP(src, netip.AddrPortFrom(netip.AddrFrom4([4]byte{n, 1, 2, 3}), 53), nil)); reason != drop.None {
						r.t.Fatal(reason)
					}
					passes := c.Policy().Outbound(&v, policy.NoProxies, now).Action == policy.Forward
					holds := c.PublicKey() == own.PublicKey && c.PresharedKey() == own.PresharedKey
					if passes && holds && (!granted || from != holder) {
						r.t.Errorf("%q: client %d reaches %d.0.0.0/8 from the address of client %d", what, holder, n, from)
					}
				}
			}
		}
	})
}

// What waits for a client's actor is not lost with the mailbox in which it waits.
func TestARevocationThatWaitsSurvivesACrashOfPeers(t *testing.T) {
	for _, tc := range []struct {
		name string
		wait func(r *peersRig, child actorkit.PID) (free func())
	}{
		{"in the mailbox of a peer that is busy", func(r *peersRig, child actorkit.PID) func() {
			held, free := make(chan struct{}), make(chan struct{})
			r.system.Send(child, act(func(actorkit.Context) { close(held); <-free }))
			await(r.t, held, "the turn before")
			return func() { close(free) }
		}},
		{"in that of one that failed, too", func(r *peersRig, child actorkit.PID) func() {
			r.system.Send(child, boom{})
			return func() {}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newFamily(t)
			r.portalSays(authorization(1, 10), authorization(1, 11), authorization(2, 10))
			eventually(t, func() bool { return admits(t, r.plane, 1, 11) && admits(t, r.plane, 2, 10) }, "connected")
			r.calm()
			for _, child := range r.childrenOf(r.pid) {
				if !strings.HasSuffix(actorkit.Path(child), clientID(1)) {
					continue
				}
				free := tc.wait(r, child)
				r.look(r.pid, func(ctx actorkit.Context) {
					ctx.Send(ctx.Self(), said(portal.RejectAccess{ClientID: clientID(1), ResourceID: resourceID(10)}))
					ctx.Send(ctx.Self(), said(authorization(1, 12)))
					ctx.Send(ctx.Self(), boom{})
				})
				// Peers waits for its children to end, and they for their turn.
				eventually(t, func() bool { return strings.Contains(r.plane.log.String(), "peers was told to panic") }, "peers fails")
				free()
			}
			r.calm()
			if admits(t, r.plane, 1, 10) || !admits(t, r.plane, 1, 11) || !admits(t, r.plane, 1, 12) || !admits(t, r.plane, 2, 10) {
				t.Errorf("grants in the store: %+v", r.plane.store.get(clientID(1)).Grants.List())
			}
			if ids := r.plane.inbox.ids(); len(ids) != 0 {
				t.Errorf("something still waits for %q", ids)
			}
		})
	}
}

func TestTheInboxKeepsTheOrder(t *testing.T) {
	i := newInbox()
	for n := range 4 {
		i.push("c", n)
	}
	i.begin("c")     // 0 is begun,
	i.hold("c", 0)   // and set aside
	i.begin("c")     // 1 too
	i.hold("c", 1)   //
	i.begin("other") // of nobody
	if got := i.all("c"); !slices.Equal(got, []any{0, 1, 2, 3}) {
		t.Errorf("all is %v", got)
	}
	i.begin("c")
	if got := i.all("c"); !slices.Equal(got, []any{1, 2, 3}) {
		t.Errorf("after one more %v", got)
	}
	i.begin("c")
	i.hold("c", 1)
	if got := i.lost("c"); !slices.Equal(got, []any{1}) {
		t.Errorf("lost %v", got)
	}
	i.begin("c")
	i.begin("c")
	if len(i.m) != 0 {
		t.Error("an empty box is kept")
	}
	i.push("c", 5)
	i.delete("c")
	i.push("d", 5)
	i.clear()
	if len(i.ids()) != 0 {
		t.Error("something is left")
	}
}

// A client that is being sent away has its messages set aside, which a crash of its
// actor does not lose either.
func TestWhatWasSetAsideSurvivesACrash(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.look(r.pid, func(actorkit.Context) { r.peer.leaving = true })
	a := authorization(1, 12)
	r.plane.inbox.push(clientID(1), authorize(a))
	r.tell(authorize(a))
	if admits(t, r.plane, 1, 12) {
		t.Fatal("not set aside")
	}
	r.system.Send(r.pid, boom{})
	r.settle(r.pid)
	if !admits(t, r.plane, 1, 12) || len(r.plane.inbox.ids()) != 0 {
		t.Error("lost")
	}
}
