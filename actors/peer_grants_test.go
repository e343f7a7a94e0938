package actors

import (
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// gone waits until nothing of the client is left but an actor that says so.
func (r *peerRig) gone() {
	r.t.Helper()
	if e := next[messages.PeerEmpty](r.t, r.peers); e.ClientID != clientID(1) || e.Last != 0 {
		r.t.Errorf("reported %+v", e)
	}
	r.settle(r.pid)
	if r.client() != nil || len(r.plane.store.ids()) != 0 {
		r.t.Errorf("client %v, store %q", r.client(), r.plane.store.ids())
	}
	for _, key := range []timerKey{expiryTimer, candidateTimer} {
		r.expectTimer(key, false, "is empty")
	}
}

func TestRevokingOneOfTwoResourcesKeepsTheOther(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	r.tell(authorize(authorization(1, 11)), messages.Revoke{ResourceID: resourceID(10)})
	if r.client() != before || admits(t, r.plane, 1, 10) || !admits(t, r.plane, 1, 11) {
		t.Error("the policy does not follow")
	}
	r.tell(messages.Revoke{ResourceID: "unknown"})
	if got := r.grants(); !slices.Equal(got, []string{resourceID(11)}) {
		t.Errorf("grants %q", got)
	}
}

// Rule 33.
func TestRevokingTheLastResourceSendsTheClientAway(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.tell(messages.Revoke{ResourceID: resourceID(10)})
	r.gone()
	if !strings.Contains(r.plane.log.String(), "access ended") {
		t.Error("nothing is logged")
	}
}

// Rules 25 and 26.
func TestRetainKeepsWhatIsListed(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	end := time.Now().Add(2 * time.Hour).Truncate(time.Second)
	r.tell(authorize(authorization(1, 11)), messages.RetainGrants{
		ExpiresAt: map[string]time.Time{resourceID(11): end, resourceID(12): end}, Gateway: ownAddresses,
	})
	g := r.plane.store.get(clientID(1)).Grants.List()
	if len(g) != 1 || g[0].Resource.ID != resourceID(11) || !g[0].ExpiresAt.Equal(end) || admits(t, r.plane, 1, 10) {
		t.Errorf("grants %+v", g)
	}
	r.tell(messages.RetainGrants{Gateway: ownAddresses})
	r.gone()
}

func TestExtendMovesTheEnd(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	end := time.Now().Add(3 * time.Hour).Truncate(time.Second)
	r.tell(messages.ExtendGrant{ResourceID: resourceID(10), ExpiresAt: end}, messages.ExtendGrant{ResourceID: "unknown", ExpiresAt: end})
	if g := r.plane.store.get(clientID(1)).Grants.List(); len(g) != 1 || !g[0].ExpiresAt.Equal(end) {
		t.Errorf("grants %+v", g)
	}
	r.tell(messages.ExtendGrant{ResourceID: resourceID(10), ExpiresAt: time.Now().Add(-time.Second)})
	r.gone()
}

func TestAnUpdatedResourceChangesItsFilters(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	resource := authorization(1, 10).Resource
	resource.Filters = []portal.Filter{{Protocol: portal.FilterICMP}}
	r.tell(messages.UpdateResource{Resource: resource})
	if admits(t, r.plane, 1, 10) {
		t.Error("UDP passes a filter for ICMP")
	}
	resource.Filters = []portal.Filter{{Protocol: portal.FilterUDP, First: 53, Last: 53}}
	r.tell(messages.UpdateResource{Resource: resource})
	if !admits(t, r.plane, 1, 10) {
		t.Error("UDP does not pass a filter for UDP")
	}
}

// Rule 37.
func TestAccessEndsByItself(t *testing.T) {
	r := newPeerRig(t)
	r.tell(authorize(authorization(1, 10)))
	r.tell(authorize(authorization(1, 11, func(a *portal.Authorize) { a.ExpiresAt = time.Now().Add(50 * time.Millisecond) })))
	eventually(t, func() bool { return len(r.grants()) == 1 }, "the grant ends")
	if !admits(t, r.plane, 1, 10) || admits(t, r.plane, 1, 11) {
		t.Error("the policy does not follow")
	}
	r.tell(authorize(authorization(1, 10, func(a *portal.Authorize) { a.ExpiresAt = time.Now().Add(50 * time.Millisecond) })))
	r.gone()
}

func TestAGrantWithoutEndHasNoTimer(t *testing.T) {
	r := newPeerRig(t)
	r.tell(authorize(authorization(1, 10, func(a *portal.Authorize) { a.ExpiresAt = time.Time{} })))
	r.expectTimer(expiryTimer, false, "never ends")
}

// leave has the peer say goodbye in one turn, with msgs behind in its mailbox.
func (r *peerRig) leave(msgs ...any) {
	r.t.Helper()
	r.look(r.pid, func(ctx actorkit.Context) {
		for _, m := range msgs {
			ctx.Send(ctx.Self(), m)
		}
		r.peer.Receive(received{ctx, messages.Revoke{ResourceID: resourceID(10)}})
		if !r.peer.leaving {
			r.t.Error("the goodbye is not on its way")
		}
	})
}

// received is a turn with another message.
type received struct {
	actorkit.Context
	msg any
}

func (r received) Message() any { return r.msg }

func TestWhatArrivesDuringTheGoodbyeWaitsForItsEnd(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	r.leave(authorize(authorization(1, 12)), messages.AddCandidates{Candidates: []string{remoteHost}}, messages.ConfirmEmpty{})
	eventually(t, func() bool { return len(r.plane.store.get(clientID(1)).Remote) == 1 }, "the candidate is taken")
	if c := r.client(); c == before || !admits(t, r.plane, 1, 12) || admits(t, r.plane, 1, 10) {
		t.Error("the new connection is not a new one")
	}
	if out := r.sent(); len(out) != 2 || out[0].Message.Event() != "authorization_created" {
		t.Errorf("sent %+v", out)
	}
}

func TestNotMoreThanTheLimitWaitsDuringTheGoodbye(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	var msgs []any
	for range pendingLimit + 3 {
		msgs = append(msgs, messages.Revoke{ResourceID: "unknown"})
	}
	r.leave(msgs...)
	r.gone()
	if got := r.dropped(drop.MailboxFull); got != 3 {
		t.Errorf("%d dropped, want 3", got)
	}
}

func TestOnlyAnEmptyPeerConfirmsThatItIsEmpty(t *testing.T) {
	r := newPeerRig(t)
	r.tell(messages.ConfirmEmpty{Last: 3})
	if e := next[messages.PeerEmpty](t, r.peers); e.Last != 3 {
		t.Error("not confirmed")
	}
	r.granted()
	r.tell(messages.ConfirmEmpty{})
	r.peers.do(func(actorkit.Context) {})
	r.peers.quiet("the peer is not empty")
}

// A crash keeps grants, session and policy, and what the client was told.
func TestAPeerTakesOverAfterItsCrash(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	r.tell(messages.AddCandidates{Candidates: []string{remoteHost}})
	first := r.peer
	r.system.Send(r.pid, boom{})
	r.settle(r.pid)
	if r.peer == first || r.client() != before || !admits(t, r.plane, 1, 10) {
		t.Fatal("the session was not taken over")
	}
	r.expectTimer(expiryTimer, true, "has a grant that ends")
	r.expectTimer(candidateTimer, false, "knows a candidate")
	if out := r.sent(); len(out) != 0 {
		t.Errorf("the restart signals %+v", out)
	}
	// A new authorization is acknowledged on the same session.
	r.tell(authorize(authorization(1, 11)))
	if out := r.sent(); len(out) != 2 || out[0].Message.Event() != "authorization_created" || r.client() != before {
		t.Errorf("sent %+v", out)
	}
	// What the client was told before the crash is taken back after it.
	r.tell(offersAfter(r, relayOffer("relay-1", "")))
	if out := r.sent(); len(out) != 1 || !slices.Equal(candidatesOf(out[0].Message), []string{asRelay}) {
		t.Errorf("sent %+v", out)
	}
}

func TestAPeerCatchesUpWithRelaysThatChangedWhileItWasDown(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	m := offers(2, relayOffer("relay-1", "127.0.0.9:50002"))
	r.plane.offers.store(m)
	r.system.Send(r.pid, boom{})
	r.tell(m)
	out := r.sent()
	if len(out) != 2 || !slices.Equal(candidatesOf(out[0].Message), []string{asRelay}) ||
		!slices.Equal(candidatesOf(out[1].Message), []string{"relay 127.0.0.9:50002"}) {
		t.Errorf("sent %+v", out)
	}
	r.expectTimer(candidateTimer, true, "waits for the first candidate as before")
}

func TestAPeerThatCrashesDuringTheGoodbyeLeavesNothing(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.leave(boom{})
	next[messages.PeerEmpty](t, r.peers)
	clients := func() (n int) { r.plane.Tunnel.Each(func(*tunnel.Client) { n++ }); return n }
	eventually(t, func() bool { return clients() == 0 && len(r.plane.store.ids()) == 0 }, "all is gone")
}

// A stop leaves the packet path alone: peers restarts with all its children.
func TestAStopKeepsTheSession(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	r.peers.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	next[*actorkit.Terminated](t, r.peers)
	if r.client() != before || !slices.Equal(r.grants(), []string{resourceID(10)}) || !admits(t, r.plane, 1, 10) {
		t.Error("the session is gone")
	}
}
