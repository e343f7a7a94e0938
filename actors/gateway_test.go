package actors

import (
	"errors"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// gatewayRig is a system with the gateway actor and fake siblings, which hand
// their messages to the test.
type gatewayRig struct {
	t      testing.TB
	system *actorkit.System
	pid    actorkit.PID
	said   chan toSibling
	ended  chan end
}

// toSibling is one message to a top-level actor.
type toSibling struct {
	kind   string
	sender actorkit.PID
	msg    any
}

func newGatewayRig(t testing.TB) *gatewayRig {
	t.Helper()
	p := newTestPlane(t, "")
	r := &gatewayRig{t: t, said: make(chan toSibling, 64), ended: make(chan end, 8)}
	sibling := func(*Plane) actorkit.Actor {
		return faulty{actorkit.ActorFunc(func(ctx actorkit.Context) {
			switch m := ctx.Message().(type) {
			case *actorkit.Started, *actorkit.Stopping, *actorkit.Restarting, *actorkit.Stopped:
			default:
				r.said <- toSibling{ctx.Kind(), ctx.Sender(), m}
			}
		})}
	}
	p.players.portal, p.players.tun, p.players.transport, p.players.peers = sibling, sibling, sibling, sibling
	r.system = actorkit.NewSystem(actorkit.Config{Logger: p.log.logger(t), Table: quick(Table)})
	t.Cleanup(func() { stopSystem(t, r.system) })
	var err error
	r.pid, err = r.system.Spawn(KindGateway, "gateway", func() actorkit.Actor {
		return faulty{newGateway(p.Plane, func(code int, cause error) { r.ended <- end{code, cause} })}
	})
	if err != nil {
		t.Fatal(err)
	}
	siblings := map[string]messages.Siblings{}
	for range 4 {
		m := r.sibling()
		siblings[m.kind], _ = m.msg.(messages.Siblings)
	}
	for _, kind := range []string{KindPeers, KindTransport, KindTUN, KindPortal} {
		if siblings[kind] != p.siblings.load() || siblings[kind].Portal == nil {
			t.Errorf("%s knows %+v", kind, siblings[kind])
		}
	}
	return r
}

func (r *gatewayRig) sibling() toSibling {
	r.t.Helper()
	select {
	case m := <-r.said:
		return m
	case <-time.After(patience):
		r.t.Fatal("nothing is said to any sibling")
		return toSibling{}
	}
}

// asked takes the requests of an orderly end.
func (r *gatewayRig) asked() {
	r.t.Helper()
	kinds := map[string]bool{}
	for range 2 {
		m := r.sibling()
		switch m.msg.(type) {
		case messages.ClosePortal, messages.GoodbyeAll:
			kinds[m.kind] = actorkit.Same(m.sender, r.pid)
		}
	}
	if !kinds[KindPortal] || !kinds[KindPeers] {
		r.t.Errorf("asked %v", kinds)
	}
}

func (r *gatewayRig) end() end {
	r.t.Helper()
	select {
	case e := <-r.ended:
		return e
	case <-time.After(patience):
		r.t.Fatal("no end")
		return end{}
	}
}

// Rule 41.
func TestAnOrderlyEndWaitsForGoodbyesAndClose(t *testing.T) {
	for _, replies := range [][]any{
		{messages.GoodbyeDone{}, messages.PortalClosed{}},
		{messages.PortalClosed{}, messages.GoodbyeDone{Err: errors.New("somebody was away")}},
	} {
		r := newGatewayRig(t)
		r.system.Send(r.pid, messages.Shutdown{})
		r.system.Send(r.pid, messages.Shutdown{})
		r.asked()
		r.system.Send(r.pid, replies[0])
		select {
		case <-r.ended:
			t.Error("ended without waiting for both")
		case m := <-r.said:
			t.Errorf("%s is asked again: %T", m.kind, m.msg)
		case <-time.After(20 * time.Millisecond):
		}
		r.system.Send(r.pid, replies[1])
		if e := r.end(); e.code != 0 || e.cause != nil {
			t.Errorf("end %+v", e)
		}
	}
}

func TestAPortalThatRefusesEndsTheProcess(t *testing.T) {
	r := newGatewayRig(t)
	cause := errors.New("refused")
	r.system.Send(r.pid, messages.PortalGaveUp{Cause: cause})
	r.asked()
	r.system.Send(r.pid, messages.PortalClosed{})
	r.system.Send(r.pid, messages.GoodbyeDone{})
	if e := r.end(); e.code != ExitGaveUp || e.cause != cause {
		t.Errorf("end %+v", e)
	}
}

// Actors that happen to be down when the end begins cannot hold it up.
func TestTheEndDoesNotWaitForever(t *testing.T) {
	r := newGatewayRig(t)
	before := time.Now()
	r.system.Send(r.pid, messages.Shutdown{})
	if e := r.end(); e.code != 0 || time.Since(before) < endPatience {
		t.Errorf("end %+v after %s", e, time.Since(before))
	}
}

func TestAGatewayThatFailsEndsTheProcess(t *testing.T) {
	r := newGatewayRig(t)
	r.system.Send(r.pid, boom{})
	select {
	case e := <-r.system.ExitRequests():
		if e.Code != ExitGaveUp || e.Path != "gateway" {
			t.Errorf("exit %+v", e)
		}
	case <-time.After(patience):
		t.Fatal("no exit is asked for")
	}
}
