package actorkit

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stuckRow is a row whose actors are stuck after a second and restart after
// 100 ms.
func stuckRow(kind string, change ...func(*Spec)) Spec {
	return spec(kind, append([]func(*Spec){func(s *Spec) { s.Stuck = time.Second }}, change...)...)
}

// blocked is a handler that returns when it is told to.
type blocked struct {
	release chan struct{}
	after   func(ctx Context) // what it does then
}

func newBlocked(after func(ctx Context)) *blocked {
	return &blocked{release: make(chan struct{}), after: after}
}

func (b *blocked) handle(ctx Context) {
	<-b.release
	if b.after != nil {
		b.after(ctx)
	}
}

func TestAStuckActorIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		r, d, dp := newRig(t, Config{Logger: logger}, spec("p"), stuckRow("c")), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(dp))
		c := r.child(p, "c", "c", probes(d))
		b := newBlocked(nil)
		var honoured atomic.Bool
		r.tell(c, do(func(ctx Context) {
			context.AfterFunc(TraceContext(ctx), func() { honoured.Store(true) })
			b.handle(ctx)
		}), "one", "two")
		d.expect(t, "Started")

		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if s := r.Stats().Actors[1]; s.Phase != "running" || s.Stuck != 0 {
			t.Errorf("before its time: %+v", s)
		}
		time.Sleep(250 * time.Millisecond)
		synctest.Wait()
		s := r.Stats().Actors[1]
		if s.Phase != "stuck" || s.Stuck != 1 || s.Failures != 1 || s.Pending != 2 || !strings.Contains(s.LastFailure, ErrStuck.Error()) {
			t.Errorf("stats %+v", s)
		}
		if !honoured.Load() {
			t.Error("the context is not cancelled")
		}
		d.expect(t)

		time.Sleep(time.Second)
		r.tell(c, "three")
		d.expect(t, "Started", "one", "two", "three")
		if s := r.Stats().Actors[1]; s.Phase != "running" || s.Restarts != 1 || s.Handled != 3 || s.Pending != 0 || s.MaxPending != 2 {
			t.Errorf("stats %+v", s)
		}
		dp.expect(t, "Started")

		close(b.release)
		synctest.Wait()
		d.expect(t)
		if r.count(EventReturned) != 1 || r.count(EventStuck) != 1 || r.count(EventFailed) != 1 || r.count(EventRestarted) != 1 {
			t.Errorf("events %+v", r.events)
		}
		r.tell(c, "four")
		r.stop()
		d.expect(t, "four", "Stopping", "Stopped")
		dp.expect(t, "Stopping", "Stopped")
		if text := log.String(); !strings.Contains(text, `level=ERROR msg="actor is stuck" actor=p/c message=do for=1`) {
			t.Errorf("log %s", text)
		}
	})
}

// What a left-behind handler does through its context must reach nobody.
func TestAHandlerThatWasLeftBehindHasNoSay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d, other := newRig(t, Config{}, spec("p"), stuckRow("c")), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(&diary{}))
		o := r.spawn("c", "o", probes(other))
		c := r.child(p, "c", "c", probes(d))
		stash := NewStash(1)
		timers := &Timers{}
		b := newBlocked(func(ctx Context) {
			ctx.Send(o, "send")
			ctx.Request(o, "request")
			ctx.Respond("respond")
			ctx.Forward(o)
			ctx.Watch(o)
			ctx.Unwatch(o)
			ctx.Stop(ctx.Self())
			ctx.Poison(ctx.Self())
			ctx.Stop(o)
			if _, err := SpawnChild(ctx, "c", "x", probes(other)); !errors.Is(err, ErrEnding) {
				t.Errorf("spawn: %v", err)
			}
			Go(ctx, func(context.Context) any { other.add("goroutine"); return "result" })
			timers.After(ctx, "key", time.Millisecond, "tick")
			stash.Release(ctx)
			if err := TraceContext(ctx).Err(); err == nil {
				t.Error("its context is alive")
			}
			panic("last words")
		})
		r.tell(c, do(func(ctx Context) { stash.Push(ctx) }))
		r.tell(c, do(b.handle))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		d.expect(t, "Started", "Started")
		other.expect(t, "Started")

		close(b.release)
		time.Sleep(time.Second)
		synctest.Wait()
		d.expect(t)
		other.expect(t)
		s := r.Stats().Actors
		if len(s) != 3 || s[2].Path != "p/c" || s[2].Suppressed != 10 || s[2].Failures != 1 || s[2].Restarts != 1 {
			t.Errorf("stats %+v", s)
		}
		r.stop()
	})
}

func TestWhoWaitsForAStuckActorHearsOfIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, stuckRow("a"), stuckRow("b", func(s *Spec) { s.Restart = Never }))
		a := r.spawn("a", "a", probes(&diary{}))
		b := newBlocked(nil)
		answer := make(chan error, 1)
		go func() {
			_, err := Ask[string](t.Context(), r.System, a, do(b.handle), time.Hour)
			answer <- err
		}()
		gate, gated := NewGate(1), newBlocked(nil)
		other := r.spawn("b", "b", probes(&diary{}))
		watcher := &diary{}
		w := r.spawn("a", "w", probes(watcher))
		r.tell(w, do(func(ctx Context) { ctx.Watch(other) }))
		if !gate.TrySend(r.System, other, do(gated.handle)) || gate.TrySend(r.System, other, "refused") {
			t.Error("the gate is not full")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := <-answer; !errors.Is(err, ErrStuck) {
			t.Errorf("answer %v", err)
		}
		if gate.Pending() != 0 {
			t.Error("the place is still taken")
		}
		// The top actor of class Never has ended the process, and is gone.
		watcher.expect(t, "Started", "Terminated b")
		if e := <-r.ExitRequests(); e.Path != "b" || !errors.Is(e.Reason, ErrStuck) {
			t.Errorf("exit %+v", e)
		}
		for _, k := range r.Stats().Kinds {
			if k.Kind == "b" && (k.Live != 0 || k.Refused != 1 || k.Stuck != 1) {
				t.Errorf("stats %+v", k)
			}
		}
		close(b.release)
		close(gated.release)
		r.stop()
	})
}

func TestChildrenOfAStuckActorEndBeforeItIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d, dc := newRig(t, Config{}, spec("p"), stuckRow("a"), spec("c")), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(d))
		starts := 0
		a := r.child(p, "a", "a", func() Actor {
			return ActorFunc(func(ctx Context) {
				switch m := ctx.Message().(type) {
				case *Started:
					starts++
					if _, err := SpawnChild(ctx, "c", "c", probes(dc)); err != nil {
						t.Error(err)
					}
				case *Terminated:
					t.Error("the new one hears of the end of the old one's child")
				case do:
					m(ctx)
				}
			})
		})
		old := r.child(p, "a", "a2", probes(&diary{})) // another child, which stays
		c := r.lib.NewLocalPID("p/a/c")
		r.tell(c, do(func(Context) { time.Sleep(1900 * time.Millisecond) }), "lost")
		b := newBlocked(nil)
		r.tell(a, do(b.handle))
		// Stuck at 1.2 s; the child is told to stop at 1.3 s and can at 1.9 s.
		time.Sleep(1800 * time.Millisecond)
		synctest.Wait()
		dc.expect(t, "Started")
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		dc.expect(t, "Stopping", "Stopped", "Started")
		if starts != 2 {
			t.Errorf("%d starts, want 2", starts)
		}
		r.tell(c, "found under the old name")
		dc.expect(t, "found under the old name")
		close(b.release)
		synctest.Wait()
		if n := len(r.Stats().Actors); n != 4 || r.find(old) == nil {
			t.Errorf("%d actors, want 4", n)
		}
		r.stop()
		d.expect(t, "Started", "Stopping", "Stopped")
	})
}

func TestStuckAgainAndAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d, dc := newRig(t, Config{}, spec("p"), stuckRow("c")), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(dc))
		b, want := newBlocked(nil), []string{"Started", "Started", "next"}
		for range 3 {
			r.tell(c, do(b.handle), "next")
			time.Sleep(3 * time.Second)
			synctest.Wait()
			dc.expect(t, want...)
			want = []string{"Started", "next"}
			if got := r.Stats().Actors[1]; got.Phase != "running" {
				t.Errorf("stats %+v", got)
			}
			r.tell(c, "here")
			dc.expect(t, "here")
		}
		if m := r.cellAt("p/c").mailbox; m.root == nil || m.root.heir != m {
			t.Error("the way to the actor gets longer")
		}
		// The fourth within a minute is one too many.
		r.tell(c, do(b.handle), "dead letter")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		d.expect(t, "Started", "ChildGaveUp c "+ErrStuck.Error()+": do for 1s", "Terminated p/c")
		if s := r.Stats(); s.DeadLetters != 1 || len(s.Actors) != 1 || s.Kinds[0].Stuck != 4 || s.Kinds[0].Restarts != 3 {
			t.Errorf("stats %+v", s)
		}
		again := r.child(p, "c", "c", probes(dc))
		r.tell(c, "the old PID reaches the new actor")
		dc.expect(t, "Started", "the old PID reaches the new actor")
		if !Same(again, c) {
			t.Errorf("pid %v", again)
		}
		close(b.release)
		synctest.Wait()
		dc.expect(t)
		r.stop()
	})
}

func (r *rig) cellAt(path string) *cell {
	r.System.mu.Lock()
	defer r.System.mu.Unlock()
	return r.cells[path]
}

func TestWhereAnActorMayGetStuck(t *testing.T) {
	const limit = time.Second
	for _, tc := range []struct {
		name string
		row  func(*Spec)
		// on names the lifecycle message in whose handler the first incarnation
		// stays; producer means there.
		on   string
		act  func(r *rig, p, c PID)
		want []string // of the parent
		last []string // of the child
	}{
		{"in Started it is replaced", nil, "Started", nil,
			[]string{"Started"}, []string{"Started", "Started"}},
		{"in Restarting it is replaced", nil, "Restarting", func(r *rig, _, c PID) { r.tell(c, boom("x")) },
			[]string{"Started"}, []string{"Started", "boom x", "Restarting", "Started"}},
		{"in a producer that runs again it is replaced", nil, "producer", func(r *rig, _, c PID) { r.tell(c, boom("x")) },
			[]string{"Started"}, []string{"Started", "boom x", "Restarting", "Started"}},
		{"in Terminated of what it watches it is replaced", nil, "Terminated",
			func(r *rig, p, c PID) {
				o := r.spawn("p", "o", probes(&diary{}))
				r.tell(c, do(func(ctx Context) { ctx.Watch(o) }))
				r.tell(o, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
			},
			[]string{"Started"}, []string{"Started", "Terminated o", "Started"}},
		{"in Stopping it is left behind at the end of its budget", func(s *Spec) { s.ShutdownBudget = limit / 2 }, "Stopping", stopChild,
			[]string{"Started", "Terminated p/c"}, []string{"Started", "Stopping"}},
		{"in Stopping with a long budget it is left behind when it is stuck", func(s *Spec) { s.ShutdownBudget = time.Hour }, "Stopping", stopChild,
			[]string{"Started", "Terminated p/c"}, []string{"Started", "Stopping"}},
		{"in Stopped it is left behind", func(s *Spec) { s.ShutdownBudget = time.Hour }, "Stopped", stopChild,
			[]string{"Started", "Terminated p/c"}, []string{"Started", "Stopping", "Stopped"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				row := stuckRow("c", func(s *Spec) {
					s.Stuck = limit
					if tc.row != nil {
						tc.row(s)
					}
				})
				r, d, dc := newRig(t, Config{}, spec("p"), row), &diary{}, &diary{}
				p := r.spawn("p", "p", probes(d))
				release := make(chan struct{})
				var made atomic.Int64
				c := r.child(p, "c", "c", func() Actor {
					n := made.Add(1)
					if n == 2 && tc.on == "producer" {
						<-release
					}
					inner := &probe{d: dc}
					return ActorFunc(func(ctx Context) {
						inner.Receive(ctx)
						if n == 1 && typeName(ctx.Message()) == tc.on {
							<-release
						}
					})
				})
				if tc.act != nil {
					tc.act(r, p, c)
				}
				time.Sleep(3 * limit)
				synctest.Wait()
				d.expect(t, tc.want...)
				dc.expect(t, tc.last...)
				close(release)
				time.Sleep(time.Second)
				synctest.Wait()
				d.expect(t)
				dc.expect(t)
				if r.count(EventReturned) != 1 {
					t.Errorf("events %+v", r.events)
				}
				r.stop()
			})
		})
	}
}

func TestEndingWhileAnActorIsStuck(t *testing.T) {
	for _, tc := range []struct {
		name string
		at   time.Duration // of the shutdown; the actor is stuck from 1 s on, replaced from 2 s on
		ends time.Duration // how long it takes at most
		left bool
	}{
		{"before it is known", 500 * time.Millisecond, 200 * time.Millisecond, true},
		{"while it waits to be replaced", 1500 * time.Millisecond, 0, false},
		{"after it was replaced", 2500 * time.Millisecond, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, d := newRig(t, Config{}, spec("p"), stuckRow("c", func(s *Spec) {
					s.Backoff = Backoff{Start: time.Second, Factor: 1, Cap: time.Second}
					s.ShutdownBudget = 200 * time.Millisecond
				})), &diary{}
				p := r.spawn("p", "p", probes(d))
				c := r.child(p, "c", "c", probes(&diary{}))
				b := newBlocked(nil)
				r.tell(c, do(b.handle))
				r.child(p, "c", "c2", probes(&diary{})) // does not matter
				time.Sleep(tc.at)
				began := time.Now()
				err := r.Shutdown(t.Context())
				if errors.Is(err, ErrLeftBehind) != tc.left {
					t.Errorf("shutdown %v", err)
				}
				if took := time.Since(began); took > tc.ends {
					t.Errorf("took %v", took)
				}
				d.expect(t, "Started", "Stopping", "Stopped")
				close(b.release)
				time.Sleep(20 * time.Millisecond)
				synctest.Wait()
			})
		})
	}
}

func TestAnActorThatIsToldToStopIsNotReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d, dc := newRig(t, Config{}, spec("p"), stuckRow("c", func(s *Spec) { s.ShutdownBudget = time.Hour })), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(dc))
		b := newBlocked(nil)
		r.tell(c, do(b.handle), "dead letter")
		stopChild(r, p, c)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		dc.expect(t, "Started")
		d.expect(t, "Started", "Terminated p/c")
		if s := r.Stats(); s.DeadLetters != 1 || r.count(EventFailed) != 0 || r.count(EventStuck) != 1 {
			t.Errorf("stats %+v, events %+v", s, r.events)
		}
		close(b.release)
		r.stop()
	})
}

func TestWhoWatchesAReplacedActorHearsOfItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("w"), stuckRow("a")), &diary{}
		w, gone := r.spawn("w", "w", probes(d)), r.spawn("w", "gone", probes(&diary{}))
		a := r.spawn("a", "a", probes(&diary{}))
		r.tell(w, do(func(ctx Context) { ctx.Watch(a) }))
		r.tell(gone, do(func(ctx Context) { ctx.Watch(a); ctx.Unwatch(a) }))
		b := newBlocked(nil)
		r.tell(a, do(b.handle))
		time.Sleep(2 * time.Second)
		r.tell(a, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
		d.expect(t, "Started", "Terminated a")
		close(b.release)
		r.stop()
	})
}

func TestTopActorsThatGetStuck(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d, dc := newRig(t, Config{}, stuckRow("top"), spec("c")), &diary{}, &diary{}
		top := r.spawn("top", "top", probes(d))
		r.child(top, "c", "c", probes(dc))
		b := newBlocked(nil)
		r.tell(top, do(b.handle), "waits")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		d.expect(t, "Started", "Started", "waits")
		dc.expect(t, "Started", "Stopping", "Stopped")
		r.child(top, "c", "c", probes(dc))
		// A crash of the replacement, and an orderly end.
		r.tell(top, boom("x"), "after")
		time.Sleep(time.Second)
		synctest.Wait()
		d.expect(t, "boom x", "Restarting", "Started", "after")
		close(b.release)
		r.stop()
		d.expect(t, "Stopping", "Stopped")
	})
}

func TestAStuckActorWithAStuckChild(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("p"), stuckRow("a"), stuckRow("c", func(s *Spec) { s.Restart = Never; s.GiveUp = Escalate })), &diary{}
		p := r.spawn("p", "p", probes(&diary{}))
		a := r.child(p, "a", "a", probes(d))
		c := r.child(a, "c", "c", probes(&diary{}))
		b := newBlocked(nil)
		r.tell(c, do(b.handle))
		r.tell(a, do(b.handle), "waits")
		time.Sleep(5 * time.Second)
		r.child(a, "c", "c", probes(&diary{}))
		d.expect(t, "Started", "Started", "waits")
		close(b.release)
		synctest.Wait()
		if n := len(r.Stats().Actors); n != 3 || r.count(EventReturned) != 2 {
			t.Errorf("%d actors, events %+v", n, r.events)
		}
		// A child alone whose row escalates takes its parent along.
		b = newBlocked(nil)
		r.tell(c, do(b.handle))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		d.expect(t, "Restarting", "Started")
		close(b.release)
		r.stop()
	})
}

func TestAProcessThatStoodStillHasNoStuckActors(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, stuckRow("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		b := newBlocked(nil)
		r.tell(pid, do(b.handle))
		w := r.guard
		r.stopWatchdog()
		now := w.last
		w.look(now)
		for range 4 {
			now = now.Add(time.Hour)
			w.look(now)
		}
		if r.count(EventStuck) != 0 {
			t.Error("found stuck too early")
		}
		w.look(now.Add(w.period))
		if r.count(EventStuck) != 1 {
			t.Error("not found stuck")
		}
		r.System.guard = startWatchdog(r.System)
		close(b.release)
		r.stop()
	})
}

// Messages of many senders while actors get stuck and are replaced: none is
// lost, doubled or out of order, but for the one that each is stuck in.
func TestReplacementsLoseNothing(t *testing.T) {
	type numbered struct{ sender, n int }
	r := newRig(t, Config{}, spec("p"), spec("c", func(s *Spec) {
		s.Stuck = 25 * time.Millisecond
		s.Backoff = Backoff{Start: time.Millisecond, Factor: 1, Cap: time.Millisecond}
		s.Intensity = Intensity{}
	}))
	const senders, each = 4, 2000
	release := make(chan struct{})
	got := [senders]int{}
	total := 0
	done := make(chan struct{})
	var p, c PID
	var err error
	if p, err = r.Spawn("p", "p", probes(&diary{})); err != nil {
		t.Fatal(err)
	}
	spawned := make(chan struct{})
	r.Send(p, do(func(ctx Context) {
		defer close(spawned)
		c, err = SpawnChild(ctx, "c", "c", func() Actor {
			return ActorFunc(func(ctx Context) {
				switch m := ctx.Message().(type) {
				case do:
					m(ctx)
				case numbered:
					if m.n != got[m.sender] {
						t.Errorf("sender %d: message %d, want %d", m.sender, m.n, got[m.sender])
					}
					got[m.sender]++
					if total++; total == senders*each {
						close(done)
					}
				}
			})
		})
	}))
	<-spawned
	if err != nil {
		t.Fatal(err)
	}
	for s := range senders {
		go func() {
			for n := range each {
				r.Send(c, numbered{s, n})
				if n%1000 == 500 {
					r.Send(c, do(func(Context) { <-release }))
				}
				if n%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Error("messages are missing")
	}
	if k := r.Stats().Kinds[0]; k.Stuck < 2*senders {
		t.Errorf("stats %+v", k)
	}
	close(release)
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
