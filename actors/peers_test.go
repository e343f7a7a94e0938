package actors

import (
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// peersRig is a stage with the peers actor, whose children are real unless the
// test puts others in their place.
type peersRig struct {
	*stage
	pid      actorkit.PID
	children chan toChild // what fake children receive
}

// toChild is one message to the peer of a client.
type toChild struct {
	id  string
	pid actorkit.PID
	msg any
}

// newPeersRig has fake children.
func newPeersRig(t testing.TB) *peersRig {
	t.Helper()
	r := &peersRig{stage: newStage(t, newTestPlane(t, "")), children: make(chan toChild, 1024)}
	r.plane.players.peer = func(env peerEnv) actorkit.Actor {
		return faulty{actorkit.ActorFunc(func(ctx actorkit.Context) {
			switch m := ctx.Message().(type) {
			case *actorkit.Stopping, *actorkit.Restarting:
			default:
				if concernsGrants(m) {
					env.inbox.begin(env.id)
				}
				r.children <- toChild{env.id, ctx.Self(), m}
			}
		})}
	}
	r.start()
	return r
}

func (r *peersRig) start() {
	r.introduce()
	r.pid = r.root.spawn(KindPeers, "peers", func() actorkit.Actor { return faulty{newPeers(r.plane.Plane)} })
}

func (r *peersRig) portalSays(msgs ...portal.Message) {
	r.t.Helper()
	for _, m := range msgs {
		r.system.Send(r.pid, said(m))
	}
	r.settle(r.pid)
}

// child returns the next message to the peer of a client, which must be an M.
func child[M any](t testing.TB, r *peersRig, id string) (M, actorkit.PID) {
	t.Helper()
	select {
	case c := <-r.children:
		m, ok := c.msg.(M)
		if !ok || c.id != id {
			t.Fatalf("%s got %T %+v, want %T for %s", c.id, c.msg, c.msg, m, id)
		}
		return m, c.pid
	case <-time.After(patience):
		var m M
		t.Fatalf("no %T comes to %s", m, id)
		return m, nil
	}
}

func (r *peersRig) silent(why string) {
	r.t.Helper()
	r.settle(r.pid)
	select {
	case c := <-r.children:
		r.t.Fatalf("%s: %s got %T %+v", why, c.id, c.msg, c.msg)
	default:
	}
}

func TestAnAuthorizationCreatesThePeer(t *testing.T) {
	r := newPeersRig(t)
	a := authorization(1, 10)
	r.portalSays(portal.Init{IPv4: ownAddresses.V4, IPv6: ownAddresses.V6}, a, authorization(1, 11))
	child[*actorkit.Started](t, r, clientID(1))
	m, _ := child[messages.Authorize](t, r, clientID(1))
	if m.Authorization.Ref != a.Ref || m.Gateway != ownAddresses || m.Connection != 7 {
		t.Errorf("got %+v", m)
	}
	child[messages.Authorize](t, r, clientID(1))
	r.silent("one peer is enough")
}

func TestMessagesReachThePeerOfTheirClient(t *testing.T) {
	r := newPeersRig(t)
	for _, c := range []byte{1, 2} {
		r.portalSays(authorization(c, 10))
		child[*actorkit.Started](t, r, clientID(c))
		child[messages.Authorize](t, r, clientID(c))
	}
	end := time.Unix(2_000_000_000, 0)
	r.portalSays(
		portal.RejectAccess{ClientID: clientID(1), ResourceID: "r"},
		portal.ICECandidates{ClientID: clientID(2), Candidates: []string{remoteHost}},
		portal.InvalidateICECandidates{ClientID: clientID(1), Candidates: []string{remoteHost}},
		portal.ExpiryUpdated{ClientID: clientID(2), ResourceID: "r", ExpiresAt: end},
	)
	got := map[string]any{}
	for range 4 {
		c := <-r.children
		switch m := c.msg.(type) {
		case messages.Revoke:
			got[c.id+" revoke "+m.ResourceID] = true
		case messages.AddCandidates:
			got[c.id+" add "+m.Candidates[0]] = true
		case messages.RemoveCandidates:
			got[c.id+" remove "+m.Candidates[0]] = true
		case messages.ExtendGrant:
			got[c.id+" extend "+m.ResourceID+m.ExpiresAt.UTC().String()] = true
		}
	}
	for _, want := range []string{"client-1 revoke r", "client-2 add " + remoteHost, "client-1 remove " + remoteHost, "client-2 extend r" + end.UTC().String()} {
		if got[want] == nil {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if n := r.dropped(drop.ClientUnknown); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

func TestLegacyGrantsCreateThePeerToo(t *testing.T) {
	r := newPeersRig(t)
	r.portalSays(portal.AllowAccess{ClientID: clientID(1)}, portal.RequestConnection{Client: portal.Client{ID: clientID(1)}})
	child[*actorkit.Started](t, r, clientID(1))
	child[messages.AllowAccess](t, r, clientID(1))
	if m, _ := child[messages.RequestConnection](t, r, clientID(1)); m.Connection != 7 {
		t.Errorf("got %+v", m)
	}
}

// Each client hears of a resource and of relays, in any order among them.
func TestBroadcastsReachEveryPeer(t *testing.T) {
	r := newPeersRig(t)
	r.portalSays(authorization(1, 10), authorization(2, 10))
	r.portalSays(portal.ResourceUpdated{Resource: portal.Resource{ID: "r"}})
	r.system.Send(r.pid, offers(3))
	updated, relays := 0, 0
	for updated+relays < 4 {
		switch m := (<-r.children).msg.(type) {
		case messages.UpdateResource:
			updated++
			if m.Resource.ID != "r" {
				t.Errorf("resource %+v", m.Resource)
			}
		case messages.RelaysChanged:
			relays++
			if m.Version != 3 {
				t.Errorf("version %d", m.Version)
			}
		}
	}
	if updated != 2 || relays != 2 {
		t.Errorf("%d resource updates, %d relay changes", updated, relays)
	}
}

// T-31 and what else names nobody.
func TestMessagesForUnknownClientsAreCounted(t *testing.T) {
	r := newPeersRig(t)
	r.portalSays(
		portal.RejectAccess{ClientID: "nobody"}, portal.ICECandidates{ClientID: "nobody"},
		portal.InvalidateICECandidates{ClientID: "nobody"}, portal.ExpiryUpdated{ClientID: "nobody"},
	)
	if got := r.dropped(drop.ClientUnknown); got != 4 {
		t.Errorf("%d counted, want 4", got)
	}
	r.portalSays(portal.RelaysPresence{}, nil)
	if got := r.dropped(drop.EventUnknown); got != 2 {
		t.Errorf("%d events counted, want 2", got)
	}
	r.silent("no peer exists")
}

// Rule 25.
func TestInitTellsEveryPeerWhatItMayKeep(t *testing.T) {
	r := newPeersRig(t)
	for _, c := range []byte{1, 2} {
		r.portalSays(authorization(c, 10))
		child[*actorkit.Started](t, r, clientID(c))
		child[messages.Authorize](t, r, clientID(c))
	}
	end := time.Unix(2_000_000_000, 0)
	r.portalSays(portal.Init{IPv4: ownAddresses.V4, IPv6: ownAddresses.V6, Authorizations: []portal.Authorization{
		{ClientID: clientID(1), ResourceID: "a", ExpiresAt: end}, {ClientID: clientID(1), ResourceID: "b", ExpiresAt: end},
		{ClientID: "somebody", ResourceID: "a", ExpiresAt: end},
	}})
	kept := map[string]int{}
	for range 2 {
		c := <-r.children
		m, ok := c.msg.(messages.RetainGrants)
		if !ok || m.Gateway != ownAddresses {
			t.Fatalf("%s got %+v", c.id, c.msg)
		}
		kept[c.id] = len(m.ExpiresAt)
	}
	if kept[clientID(1)] != 2 || kept[clientID(2)] != 0 || len(kept) != 2 {
		t.Errorf("kept %v", kept)
	}
	r.silent("init creates no peer")
}

// An empty peer ends in two steps, so that a message on its way is not lost.
func TestAnEmptyPeerEndsWhenItConfirms(t *testing.T) {
	r := newPeersRig(t)
	r.portalSays(authorization(1, 10))
	child[*actorkit.Started](t, r, clientID(1))
	child[messages.Authorize](t, r, clientID(1))
	empty := func(last uint64) messages.PeerEmpty { return messages.PeerEmpty{ClientID: clientID(1), Last: last} }
	asked := func() uint64 {
		t.Helper()
		m, _ := child[messages.ConfirmEmpty](t, r, clientID(1))
		return m.Last
	}
	r.system.Send(r.pid, empty(0))
	early := asked()
	// An authorization makes the answer too old, also if another report, older
	// than that answer, comes before it.
	r.portalSays(authorization(1, 11))
	child[messages.Authorize](t, r, clientID(1))
	r.system.Send(r.pid, empty(0))
	late := asked()
	r.system.Send(r.pid, empty(early))
	if again := asked(); again != late || late == early {
		t.Errorf("asked about %d, %d, %d", early, late, again)
	}
	// Confirmed at last; what arrives until the end waits for the successor.
	var first actorkit.PID
	r.look(r.pid, func(ctx actorkit.Context) {
		for _, m := range []any{
			empty(late),
			said(portal.ICECandidates{ClientID: clientID(1), Candidates: []string{"too early"}}),
			said(authorization(1, 12)),
			said(portal.ResourceUpdated{Resource: portal.Resource{ID: "r"}}),
			said(portal.RejectAccess{ClientID: clientID(1), ResourceID: "r"}),
			empty(0),
		} {
			ctx.Send(ctx.Self(), m)
		}
	})
	_, first = child[*actorkit.Stopped](t, r, clientID(1))
	_, second := child[*actorkit.Started](t, r, clientID(1))
	if m, _ := child[messages.Authorize](t, r, clientID(1)); m.Authorization.Resource.ID != resourceID(12) || first == second {
		t.Errorf("the successor got %+v", m)
	}
	child[messages.UpdateResource](t, r, clientID(1))
	child[messages.Revoke](t, r, clientID(1))
	if got := r.dropped(drop.ClientUnknown); got != 1 {
		t.Errorf("%d dropped, want the early candidate", got)
	}
	// What the first one said last may come late. It does not end the second.
	r.system.Send(r.pid, empty(late))
	if asked() == late {
		t.Error("the second peer is taken for the first")
	}
	r.system.Send(r.pid, messages.PeerEmpty{ClientID: "nobody"})
}

func TestNotMoreThanTheLimitWaitsForASuccessor(t *testing.T) {
	r := newPeersRig(t)
	r.portalSays(authorization(1, 10))
	child[*actorkit.Started](t, r, clientID(1))
	_, pid := child[messages.Authorize](t, r, clientID(1))
	free := make(chan struct{})
	r.system.Send(pid, act(func(actorkit.Context) { <-free }))
	r.system.Send(r.pid, messages.PeerEmpty{ClientID: clientID(1)})
	r.system.Send(r.pid, messages.PeerEmpty{ClientID: clientID(1), Last: r.plane.peerMessages.Load()})
	for range pendingLimit + 3 {
		r.system.Send(r.pid, said(authorization(1, 10)))
	}
	r.settle(r.pid)
	close(free)
	if got := r.dropped(drop.MailboxFull); got != 3 {
		t.Errorf("%d dropped, want 3", got)
	}
}
