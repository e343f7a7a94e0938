package actors

import (
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"firezone-gateway/internal/actorkit"
)

// parentOf is the tree of actors by kind; gateway has no parent.
var parentOf = map[string]string{
	KindPortal: KindGateway, KindTUN: KindGateway, KindTransport: KindGateway, KindPeers: KindGateway, KindDNS: KindGateway,
	KindRelay: KindTransport, KindPeer: KindPeers, KindNAT: KindPeer, KindDNSServer: KindDNS, KindResolver: KindDNS,
}

// row is one row of the table at work: an actor of that kind below puppets of the
// kinds that it really is below, on a fake clock.
type row struct {
	t      *testing.T
	spec   actorkit.Spec
	system *actorkit.System
	pid    actorkit.PID // of the actor
	parent actorkit.PID // nil for gateway

	mu     sync.Mutex
	events []actorkit.Event
	told   []string // what its parent heard about it
	starts map[string]int
}

// eachRow runs f for every row of the table that ok admits.
func eachRow(t *testing.T, ok func(actorkit.Spec) bool, f func(r *row)) {
	for kind, spec := range Table {
		if !ok(spec) {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &row{t: t, spec: spec, starts: map[string]int{}}
				r.system = actorkit.NewSystem(actorkit.Config{Table: Table, OnEvent: r.note})
				r.build()
				f(r)
				_ = r.system.Shutdown(t.Context()) // what is left behind is in the test's hands
				time.Sleep(time.Minute)
			})
		})
	}
}

func restarts(s actorkit.Spec) bool { return s.Restart != actorkit.Never }
func bounded(s actorkit.Spec) bool  { return s.Intensity.Max > 0 }
func every(actorkit.Spec) bool      { return true }

func (r *row) note(e actorkit.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// build spawns the actor's ancestors, each below the one before, and the actor.
func (r *row) build() {
	r.t.Helper()
	chain := []string{r.spec.Kind}
	for kind := parentOf[r.spec.Kind]; kind != ""; kind = parentOf[kind] {
		chain = append(chain, kind)
	}
	slices.Reverse(chain)
	pid, err := r.system.Spawn(chain[0], chain[0], r.puppet)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, kind := range chain[1:] {
		r.parent = pid
		r.in(pid, func(ctx actorkit.Context) { pid, err = actorkit.SpawnChild(ctx, kind, kind, r.puppet) })
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.pid = pid
	synctest.Wait()
}

func (r *row) puppet() actorkit.Actor {
	return actorkit.ActorFunc(func(ctx actorkit.Context) {
		switch m := ctx.Message().(type) {
		case act:
			m(ctx)
		case boom:
			panic("told to")
		case *actorkit.Started:
			r.mu.Lock()
			r.starts[ctx.Kind()]++
			r.mu.Unlock()
		case *actorkit.ChildGaveUp:
			r.hear("gave up")
		case *actorkit.Terminated:
			r.hear("terminated")
		}
	})
}

func (r *row) hear(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, what)
}

func (r *row) in(pid actorkit.PID, f func(ctx actorkit.Context)) {
	r.system.Send(pid, act(f))
	synctest.Wait()
}

// crash has the actor crash, and returns what supervision decided.
func (r *row) crash() actorkit.Event {
	r.t.Helper()
	r.system.Send(r.pid, boom{})
	synctest.Wait()
	return r.verdict()
}

// verdict returns the last decision, and forgets it.
func (r *row) verdict() actorkit.Event {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range slices.Backward(r.events) {
		if e.Path == actorkit.Path(r.pid) && (e.Type == actorkit.EventFailed || e.Type == actorkit.EventGaveUp) {
			r.events = r.events[:i]
			return e
		}
	}
	r.t.Fatal("nothing was decided")
	return actorkit.Event{}
}

// restart waits for the restart that e announces, and fails if it comes at
// another time.
func (r *row) restart(e actorkit.Event) {
	r.t.Helper()
	before := r.started(r.spec.Kind)
	time.Sleep(e.Delay - time.Nanosecond)
	synctest.Wait()
	if r.started(r.spec.Kind) != before {
		r.t.Error("restarted too early")
	}
	time.Sleep(time.Nanosecond)
	synctest.Wait()
	if r.started(r.spec.Kind) != before+1 {
		r.t.Fatalf("not restarted after %v", e.Delay)
	}
}

func (r *row) started(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.starts[kind]
}

// delayOf fails unless e is a restart after what the row says of the nth failure in
// a row.
func (r *row) delayOf(e actorkit.Event, n int) {
	r.t.Helper()
	b := r.spec.Backoff
	longest := min(float64(b.Start)*math.Pow(b.Factor, float64(n-1)), float64(b.Cap))
	shortest := longest * (1 - b.Jitter)
	if d := float64(e.Delay); e.Type != actorkit.EventFailed || e.Failures != n || d > longest || d < math.Floor(shortest) {
		r.t.Errorf("failure %d: %v after %v, want a restart after %v to %v", e.Failures, e.Type, e.Delay,
			time.Duration(shortest), time.Duration(longest))
	}
}

// expectGiveUp checks that giving up did what the row says.
func (r *row) expectGiveUp(e actorkit.Event) {
	r.t.Helper()
	if e.Type != actorkit.EventGaveUp {
		r.t.Fatalf("decided %v, want to give up", e.Type)
	}
	var exit *actorkit.ExitRequest
	select {
	case x := <-r.system.ExitRequests():
		exit = &x
	default:
	}
	r.mu.Lock()
	told, parents := r.told, r.starts[parentOf[r.spec.Kind]]
	r.mu.Unlock()
	switch r.spec.GiveUp {
	case actorkit.Degrade:
		if exit != nil || strings.Join(told, ", ") != "gave up, terminated" || parents != 1 {
			r.t.Errorf("degrade: exit %+v, parent heard %q and started %d times", exit, told, parents)
		}
	case actorkit.Escalate:
		time.Sleep(time.Minute)
		synctest.Wait()
		if exit != nil || r.started(parentOf[r.spec.Kind]) != 2 {
			r.t.Errorf("escalate: exit %+v, parent started %d times", exit, r.started(parentOf[r.spec.Kind]))
		}
	case actorkit.Exit(ExitGaveUp):
		if exit == nil || exit.Code != ExitGaveUp || exit.Path != actorkit.Path(r.pid) {
			r.t.Errorf("exit: %+v", exit)
		}
	default:
		r.t.Errorf("the test does not know %v", r.spec.GiveUp)
	}
}

// rowLength is the number of failures in a row that a kind bears, and enough of
// them to reach the cap where it bears any number.
func rowLength(s actorkit.Spec) int {
	if s.Intensity.Max > 0 {
		return s.Intensity.Max
	}
	return 3 + int(math.Ceil(math.Log(float64(s.Backoff.Cap)/float64(s.Backoff.Start))/math.Log(s.Backoff.Factor)))
}

func TestDelaysOfEveryRow(t *testing.T) {
	eachRow(t, restarts, func(r *row) {
		n := rowLength(r.spec)
		for i := range n {
			e := r.crash()
			r.delayOf(e, i+1)
			r.restart(e)
		}
		// A healthy time ends the row. One that is healthy for less does not.
		time.Sleep(r.spec.Backoff.ResetAfter)
		e := r.crash()
		r.delayOf(e, 1)
		r.restart(e)
		time.Sleep(r.spec.Backoff.ResetAfter - time.Nanosecond)
		e = r.crash()
		r.delayOf(e, 2)
		r.restart(e)
		time.Sleep(r.spec.Backoff.ResetAfter)
		r.delayOf(r.crash(), 1)
	})
}

func TestGivingUpOfEveryRow(t *testing.T) {
	gives := func(s actorkit.Spec) bool { return bounded(s) || !restarts(s) }
	eachRow(t, gives, func(r *row) {
		if restarts(r.spec) {
			for range r.spec.Intensity.Max {
				r.restart(r.crash())
				time.Sleep(r.spec.Backoff.ResetAfter / 2)
			}
		}
		r.expectGiveUp(r.crash())
	})
}

// Rows without an intensity bear any loop, the others any number of failures of
// incarnations that were healthy.
func TestFailuresThatARowBearsForEver(t *testing.T) {
	eachRow(t, restarts, func(r *row) {
		for range 200 {
			if bounded(r.spec) {
				time.Sleep(r.spec.Backoff.ResetAfter)
			}
			e := r.crash()
			if e.Type != actorkit.EventFailed {
				t.Fatalf("decided %v after %d failures", e.Type, e.Failures)
			}
			r.restart(e)
		}
		select {
		case e := <-r.system.ExitRequests():
			t.Errorf("exit %+v", e)
		default:
		}
	})
}

func TestStoppingItselfInEveryRow(t *testing.T) {
	eachRow(t, restarts, func(r *row) {
		r.in(r.pid, func(ctx actorkit.Context) { ctx.Stop(ctx.Self()) })
		if r.spec.Restart == actorkit.OnFailure {
			if !slices.Equal(r.told, []string{"terminated"}) {
				r.t.Errorf("the parent heard %q", r.told)
			}
			return
		}
		e := r.verdict()
		r.delayOf(e, 1)
		r.restart(e)
	})
}

// stay keeps the actor in a handler until the test ends.
func (r *row) stay() {
	forever := make(chan struct{})
	r.in(r.pid, func(actorkit.Context) { <-forever })
	time.AfterFunc(time.Hour, func() { close(forever) })
}

func TestStuckInEveryRow(t *testing.T) {
	eachRow(t, every, func(r *row) {
		r.stay()
		time.Sleep(r.spec.Stuck - time.Nanosecond)
		synctest.Wait()
		for _, k := range r.system.Stats().Kinds {
			if k.Stuck != 0 {
				r.t.Errorf("stuck too early: %+v", k)
			}
		}
		// The watchdog looks five times within that span.
		time.Sleep(r.spec.Stuck/5 + time.Nanosecond)
		synctest.Wait()
		e := r.verdict()
		if restarts(r.spec) {
			r.delayOf(e, 1)
			time.Sleep(e.Delay)
			synctest.Wait()
			if r.started(r.spec.Kind) != 2 {
				r.t.Error("not replaced")
			}
			again := r.crash() // the history goes over to the replacement
			r.delayOf(again, 2)
			r.restart(again)
			// The time in which it was stuck was no healthy one.
			r.stay()
			time.Sleep(r.spec.Stuck + r.spec.Stuck/5)
			synctest.Wait()
			r.delayOf(r.verdict(), 3)
		} else {
			r.expectGiveUp(e)
		}
		time.Sleep(time.Hour)
	})
}

func TestShutdownBudgetOfEveryRow(t *testing.T) {
	eachRow(t, func(s actorkit.Spec) bool { return s.Kind != KindGateway }, func(r *row) {
		r.stay()
		began := time.Now()
		r.in(r.parent, func(ctx actorkit.Context) { ctx.Stop(r.pid) })
		for len(r.heard()) == 0 && time.Since(began) < time.Minute {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(began); took != r.spec.ShutdownBudget {
			r.t.Errorf("left behind after %v, want %v", took, r.spec.ShutdownBudget)
		}
		time.Sleep(time.Hour)
	})
}

func (r *row) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told)
}

// A parent can only keep its budget if its children have no larger one: it tells
// them to stop when it is told, and waits for them.
func TestNoChildHasALargerBudgetThanItsParent(t *testing.T) {
	for kind, parent := range parentOf {
		if Table[kind].ShutdownBudget > Table[parent].ShutdownBudget {
			t.Errorf("%s may take %v to end, its parent %s %v", kind, Table[kind].ShutdownBudget, parent, Table[parent].ShutdownBudget)
		}
	}
	if len(parentOf) != len(Table)-1 {
		t.Errorf("%d kinds have a parent, the table has %d rows", len(parentOf), len(Table))
	}
}
