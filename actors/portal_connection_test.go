package actors

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// Rule 27, and what a late acknowledgement does.
func TestAcknowledgementsNeverOutliveTheirConnection(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	ack := authorization(1, 10).Acknowledge()
	r.send(ack, 1)
	r.event(labportal.InvalidRef) // it arrives; the portal never issued it
	r.lab.DropConnections()
	r.event(labportal.PeerLeft)
	r.send(ack, 1)
	r.init()
	r.send(ack, 1)
	r.send(portal.NoRelays{}, 0)
	r.event(labportal.NoRelays)
	invalid := 0
	for _, e := range r.lab.Events(0) {
		if e.Kind == labportal.InvalidRef {
			invalid++
		}
	}
	if invalid != 1 {
		t.Errorf("%d acknowledgements arrived, want the first", invalid)
	}
	if !strings.Contains(r.plane.log.String(), "message outlived its portal connection") {
		t.Error("nothing is said")
	}
}

// Rule 40, T-62.
func TestCandidatesAreNettedWhileThePortalIsAway(t *testing.T) {
	r := newPortalRig(t, labportal.Config{})
	// The client must be known to the portal for its events to name it.
	c := dialClient(t, r.lab, "client", nil)
	r.dial()
	r.init()
	if err := r.lab.SetFaults(labportal.Faults{Roles: []labportal.Role{labportal.Gateway}, Refuse: &labportal.Refusal{Status: 503}}); err != nil {
		t.Fatal(err)
	}
	r.lab.DropConnections()
	r.event(labportal.PeerLeft)
	eventually(t, func() bool { return slices.Contains(r.plane.Missing(), "portal") }, "the loss is noticed")
	announce := func(lines ...string) {
		r.send(portal.BroadcastICECandidates{ClientIDs: []string{c.id}, Candidates: lines}, 0)
	}
	withdraw := func(lines ...string) {
		r.send(portal.BroadcastInvalidatedICECandidates{ClientIDs: []string{c.id}, Candidates: lines}, 0)
	}
	announce("a", "b")
	withdraw("b", "old")
	r.send(portal.NoRelays{}, 0) // of no use later
	// A crash of the actor loses none of it.
	r.system.Send(r.pid, boom{})
	announce("c")
	if err := r.lab.SetFaults(labportal.Faults{}); err != nil {
		t.Fatal(err)
	}
	r.init()
	gone := waitEvent(t, r.lab, r.seen, labportal.CandidatesInvalidated, nil)
	if !slices.Equal(gone.Candidates, []string{"old"}) {
		t.Errorf("withdrawn %q", gone.Candidates)
	}
	fresh := waitEvent(t, r.lab, r.seen, labportal.CandidatesAdded, nil)
	if !slices.Equal(fresh.Candidates, []string{"a", "c"}) || fresh.Seq < gone.Seq {
		t.Errorf("announced %q", fresh.Candidates)
	}
}

func TestTheConnectionComesBackWithBackOff(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	for want := messages.Connection(2); want < 4; want++ {
		before := time.Now()
		r.lab.DropConnections()
		r.event(labportal.PeerLeft)
		r.init()
		if took := time.Since(before); took < 500*time.Millisecond {
			t.Errorf("came back after %s", took)
		}
		r.push("reject_access", reject(10))
		if _, connection := fromPortal[portal.RejectAccess](r); connection != want {
			t.Errorf("connection %d, want %d", connection, want)
		}
	}
	if !strings.Contains(r.plane.log.String(), "WARN portal: no portal, trying again") {
		t.Error("nothing is said")
	}
}

// Portals before no_relays hand out relays on re-connect only (portal §5.5).
func TestARefusedNoRelaysReconnects(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{V1Only: true})
	r.send(portal.NoRelays{}, 0)
	r.event(labportal.UnknownMessage)
	r.init()
}

// Rule 15.
func TestARefusedTokenEndsIt(t *testing.T) {
	r := newPortalRig(t, labportal.Config{GatewayToken: "another"})
	r.dial()
	m := next[messages.PortalGaveUp](t, r.root)
	if m.Cause == nil || strings.Contains(m.Cause.Error(), "s3cret") {
		t.Errorf("cause %v", m.Cause)
	}
}

// Rules 10 and 20, and a 503 that is no reason to give up.
func TestWhatEndsTheSessionForGood(t *testing.T) {
	t.Run("a refused join", func(t *testing.T) {
		r := newPortalRig(t, labportal.Config{})
		if err := r.lab.SetFaults(labportal.Faults{JoinError: "no"}); err != nil {
			t.Fatal(err)
		}
		r.dial()
		next[messages.PortalGaveUp](t, r.root)
	})
	t.Run("an expired token", func(t *testing.T) {
		r := newJoinedRig(t, labportal.Config{})
		if err := r.lab.DisconnectGateway("", "token_expired", 0); err != nil {
			t.Fatal(err)
		}
		next[messages.PortalGaveUp](t, r.root)
	})
	t.Run("not a busy portal", func(t *testing.T) {
		r := newPortalRig(t, labportal.Config{})
		refusal := &labportal.Refusal{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"0"}}, Times: 1}
		if err := r.lab.SetFaults(labportal.Faults{Refuse: refusal}); err != nil {
			t.Fatal(err)
		}
		r.dial()
		r.init()
	})
}

// Rule 41.
func TestAnOrderlyCloseHasCode1000(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	r.root.do(func(ctx actorkit.Context) { ctx.Request(r.pid, messages.ClosePortal{}) })
	next[messages.PortalClosed](t, r.root)
	if e := r.event(labportal.PeerLeft); e.Status != 1000 {
		t.Errorf("close code %d", e.Status)
	}
	if !slices.Contains(r.plane.Missing(), "portal") {
		t.Error("ready after the end")
	}
	// Nothing is dialled any more, and messages go nowhere.
	r.send(portal.NoRelays{}, 0)
	r.root.do(func(ctx actorkit.Context) { ctx.Request(r.pid, messages.ClosePortal{}) })
	next[messages.PortalClosed](t, r.root)
}

func TestThePortalDialsAgainAfterACrash(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	// The crash of a message drops that message, and none of the others.
	r.look(r.pid, func(ctx actorkit.Context) {
		ctx.Send(ctx.Self(), messages.SendToPortal{})
		ctx.Send(ctx.Self(), pushed{portal.RejectAccess{ClientID: "c", ResourceID: "r"}, 1, 1})
	})
	fromPortal[portal.RejectAccess](r)
	r.event(labportal.PeerLeft)
	r.init()
	r.push("reject_access", reject(10))
	if _, connection := fromPortal[portal.RejectAccess](r); connection != 2 {
		t.Errorf("connection %d, want 2", connection)
	}
}

func TestAStoppedPortalLeavesNoConnection(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	r.root.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	next[*actorkit.Terminated](t, r.root)
	r.event(labportal.PeerLeft)
}

// A connection that comes up while its actor ends is nobody's.
func TestAnActorThatEndsWhileDiallingLeavesNoConnection(t *testing.T) {
	for i := range 20 {
		r := newPortalRig(t, labportal.Config{})
		r.dial()
		if i%2 == 0 {
			waitEvent(t, r.lab, 0, labportal.PeerConnected, nil)
		}
		r.root.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
		next[*actorkit.Terminated](t, r.root)
		eventually(t, func() bool {
			for _, g := range r.lab.State().Gateways {
				if len(g.Sessions) > 0 {
					return false
				}
			}
			return true
		}, "no session is left")
	}
}

func TestMessagesBeyondTheQueueAreDropped(t *testing.T) {
	r := newPortalRig(t, labportal.Config{})
	if err := r.lab.SetFaults(labportal.Faults{JoinDelay: time.Hour}); err != nil {
		t.Fatal(err)
	}
	r.dial()
	r.event(labportal.PeerConnected)
	eventually(t, func() bool {
		open := false
		r.look(r.pid, func(actorkit.Context) { open = r.actor.session != nil })
		return open
	}, "a session")
	for i := range portal.QueueLimit + 3 {
		r.system.Send(r.pid, messages.SendToPortal{Message: portal.Acknowledge{Ref: portal.Ref(fmt.Sprint(i))}, Connection: 1})
	}
	r.settle(r.pid)
	if got := r.dropped(drop.MailboxFull); got != 3 {
		t.Errorf("%d dropped, want 3", got)
	}
}
