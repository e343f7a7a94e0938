package actorkit

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestRestartKeepsTheMailboxInOrderAndDropsTheMessageThatPanicked(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("a")), &diary{}
		pid := r.spawn("a", "a", probes(d))
		r.tell(pid, "one", boom("x"), "two", "three")
		d.expect(t, "Started", "one", "boom x")

		time.Sleep(99 * time.Millisecond)
		r.tell(pid, "four")
		d.expect(t)

		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		d.expect(t, "Restarting", "Started", "two", "three", "four")
		if s := r.Stats().Actors[0]; s.Restarts != 1 || s.Failures != 1 || s.LastFailure != "x" || s.Pending != 0 {
			t.Errorf("stats %+v", s)
		}
		r.stop()
		d.expect(t, "Stopping", "Stopped")
	})
}

func TestDelaysBetweenRestartsGrowToTheCap(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		unlimited := func(s *Spec) { s.Intensity = Intensity{} }
		r, d := newRig(t, Config{}, spec("a", unlimited)), &diary{}
		pid := r.spawn("a", "a", probes(d))
		for i, want := range []int{100, 200, 400, 800, 1000, 1000} {
			d.take()
			r.tell(pid, boom("x"))
			began := time.Now()
			for len(d.take()) < 2 { // boom, then Restarting and Started
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			if got := int(time.Since(began).Milliseconds()); got != want {
				t.Errorf("restart %d after %d ms, want %d", i, got, want)
			}
		}
		r.stop()
	})
}

func TestFaultCarriesTheStackOfThePanic(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, spec("a"))
		pid := r.spawn("a", "a", func() Actor { return ActorFunc(panicsByName) })
		r.tell(pid, "x")
		f := r.events[0].Fault
		if r.events[0].Type != EventFailed || f == nil || !strings.Contains(string(f.Stack), "panicsByName") {
			t.Errorf("event %+v", r.events[0])
		}
		if r.events[0].Message != "string" || r.events[0].Path != "a" || r.events[0].Delay != 100*time.Millisecond {
			t.Errorf("event %+v", r.events[0])
		}
		r.stop()
	})
}

func panicsByName(ctx Context) {
	if ctx.Message() == "x" {
		panic(errors.New("by name"))
	}
}

func TestPanicsWhileEndingAreSwallowed(t *testing.T) {
	for _, tc := range []struct {
		name, on string
		end      func(r *rig, parent, pid PID)
		want     []string
	}{
		{"in Stopping the actor stops all the same", "Stopping", stopChild,
			[]string{"Stopping", "Stopped", "Terminated p/c"}},
		{"in Stopped the parent still hears of it", "Stopped", stopChild,
			[]string{"Stopping", "Stopped", "Terminated p/c"}},
		{"in Restarting the actor restarts all the same", "Restarting", failChild,
			[]string{"boom x", "Restarting", "Started"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, d := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
				parent := r.spawn("p", "p", probes(d))
				c := r.child(parent, "c", "c", func() Actor { return &probe{d, tc.on} })
				d.take()
				tc.end(r, parent, c)
				d.expect(t, tc.want...)
				if r.count(EventSwallowed) != 1 {
					t.Errorf("events %+v", r.events)
				}
				r.stop()
			})
		})
	}
}

func stopChild(r *rig, parent, pid PID) {
	r.tell(parent, do(func(ctx Context) { ctx.Stop(pid) }))
}

func failChild(r *rig, _, pid PID) {
	r.tell(pid, boom("x"))
	time.Sleep(150 * time.Millisecond)
	synctest.Wait()
}

func TestGivingUp(t *testing.T) {
	with := func(how GiveUp) func(*Spec) {
		return func(s *Spec) { s.GiveUp, s.Restart = how, Never }
	}
	t.Run("Degrade stops the child and tells the parent before Terminated", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("p"), spec("c", with(Degrade))), &diary{}
			p := r.spawn("p", "p", probes(d))
			c := r.child(p, "c", "c", probes(&diary{}))
			r.tell(c, boom("x"))
			d.expect(t, "Started", "ChildGaveUp c x", "Terminated p/c")
			if r.count(EventGaveUp) != 1 {
				t.Errorf("events %+v", r.events)
			}
			r.stop()
		})
	})
	t.Run("Escalate restarts the parent, which ends the child", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d, dc := newRig(t, Config{}, spec("p"), spec("c", with(Escalate))), &diary{}, &diary{}
			p := r.spawn("p", "p", probes(d))
			c := r.child(p, "c", "c", probes(dc))
			r.tell(c, boom("x"))
			r.tell(p, "waits")
			d.expect(t, "Started")
			time.Sleep(time.Second)
			synctest.Wait()
			d.expect(t, "Restarting", "Started", "waits")
			dc.expect(t, "Started", "boom x", "Stopping", "Stopped")
			if r.count(EventGaveUp) != 1 || r.count(EventFailed) != 1 {
				t.Errorf("events %+v", r.events)
			}
			var why *Escalated
			for _, e := range r.events {
				if e.Type == EventFailed && (!errors.As(e.Fault, &why) || why.Path != "p/c") {
					t.Errorf("fault %v", e.Fault)
				}
			}
			if n := r.child(p, "c", "c", probes(dc)); n == nil {
				t.Error("the child cannot be spawned again")
			}
			r.stop()
		})
	})
	t.Run("Exit asks the process to end with the code", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("p"), spec("c", with(Exit(7)))), &diary{}
			p := r.spawn("p", "p", probes(d))
			c := r.child(p, "c", "c", probes(&diary{}))
			r.tell(c, boom("x"))
			select {
			case e := <-r.ExitRequests():
				if e.Code != 7 || e.Path != "p/c" || e.Reason.Error() != "x" {
					t.Errorf("request %+v", e)
				}
			default:
				t.Error("no exit request")
			}
			d.expect(t, "Started", "Terminated p/c")
			r.stop()
		})
	})
	t.Run("a top actor that gives up ends the process", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r := newRig(t, Config{}, spec("p", with(Escalate)))
			p := r.spawn("p", "p", probes(&diary{}))
			r.tell(p, boom("x"))
			if e := <-r.ExitRequests(); e.Code != 1 {
				t.Errorf("request %+v", e)
			}
			r.stop()
		})
	})
	t.Run("an escalation climbs until somebody restarts", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("top"), spec("p", with(Escalate)), spec("c", with(Escalate))), &diary{}
			top := r.spawn("top", "top", probes(d))
			p := r.child(top, "p", "p", probes(&diary{}))
			c := r.child(p, "c", "c", probes(&diary{}))
			r.tell(c, boom("x"))
			time.Sleep(time.Second)
			synctest.Wait()
			d.expect(t, "Started", "Restarting", "Started")
			if n := len(r.Stats().Actors); n != 1 {
				t.Errorf("%d actors left, want 1", n)
			}
			r.stop()
		})
	})
}

func TestUsedUpIntensityGivesUp(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(&diary{}))
		for range 4 {
			r.tell(c, boom("x"))
			time.Sleep(2 * time.Second)
		}
		synctest.Wait()
		d.expect(t, "Started", "ChildGaveUp c x", "Terminated p/c")
		if r.count(EventRestarted) != 3 {
			t.Errorf("%d restarts, want 3", r.count(EventRestarted))
		}
		r.stop()
	})
}

func TestStopDuringBackoff(t *testing.T) {
	t.Run("of the child ends it for good", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d, dc := newRig(t, Config{}, spec("p"), spec("c")), &diary{}, &diary{}
			p := r.spawn("p", "p", probes(d))
			c := r.child(p, "c", "c", probes(dc))
			r.tell(c, boom("x"), "queued")
			r.tell(p, do(func(ctx Context) { ctx.Stop(c) }))
			time.Sleep(time.Minute)
			synctest.Wait()
			dc.expect(t, "Started", "boom x", "Stopping", "Stopped")
			d.expect(t, "Started", "Terminated p/c")
			if got := r.Stats().DeadLetters; got != 1 {
				t.Errorf("%d dead letters, want 1", got)
			}
			r.stop()
		})
	})
	t.Run("of the parent ends both", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d, dc := newRig(t, Config{}, spec("p"), spec("c")), &diary{}, &diary{}
			p := r.spawn("p", "p", probes(d))
			c := r.child(p, "c", "c", probes(dc))
			r.tell(c, boom("x"))
			r.stop()
			time.Sleep(time.Minute)
			synctest.Wait()
			dc.expect(t, "Started", "boom x", "Stopping", "Stopped")
			d.expect(t, "Started", "Stopping", "Stopped")
		})
	})
	t.Run("a new actor of that name is not restarted by the old timer", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, dn := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
			p := r.spawn("p", "p", probes(&diary{}))
			c := r.child(p, "c", "c", probes(&diary{}))
			r.tell(c, boom("x"))
			r.tell(p, do(func(ctx Context) { ctx.Stop(c) }))
			r.child(p, "c", "c", probes(dn))
			time.Sleep(time.Minute)
			r.tell(c, "the old PID reaches the new actor")
			dn.expect(t, "Started", "the old PID reaches the new actor")
			r.stop()
		})
	})
}

func TestTheKindsOfFailure(t *testing.T) {
	always := func(s *Spec) { s.Restart = Always }
	for _, tc := range []struct {
		name string
		row  Spec
		make func(d *diary, incarnation int) Actor
		act  func(r *rig, pid PID)
		want []string
	}{
		{"a panic in Started is a failure of the actor", spec("a"),
			func(d *diary, n int) Actor {
				if n == 1 {
					return &probe{d, "Started"}
				}
				return &probe{d: d}
			}, nil, []string{"Started", "Restarting", "Started"}},
		{"a producer that panics is a failure of the actor", spec("a"),
			func(d *diary, n int) Actor {
				if n == 1 {
					panic("no socket")
				}
				return &probe{d: d}
			}, nil, []string{"Started"}},
		{"a handler that ends its goroutine is a failure", spec("a"),
			func(d *diary, _ int) Actor { return &probe{d: d} },
			func(r *rig, pid PID) { r.tell(pid, do(func(Context) { runtime.Goexit() }), "next") },
			[]string{"Started", "Restarting", "Started", "next"}},
		{"an actor of class Always that stops itself restarts", spec("a", always),
			func(d *diary, _ int) Actor { return &probe{d: d} },
			func(r *rig, pid PID) { r.tell(pid, do(func(ctx Context) { ctx.Stop(ctx.Self()) }), "next") },
			[]string{"Started", "Restarting", "Started", "next"}},
		{"an actor of class Always that poisons itself restarts", spec("a", always),
			func(d *diary, _ int) Actor { return &probe{d: d} },
			func(r *rig, pid PID) {
				r.tell(pid, do(func(ctx Context) { ctx.Send(ctx.Self(), "next"); ctx.Poison(ctx.Self()) }))
			},
			[]string{"Started", "next", "Restarting", "Started"}},
		{"an actor of class OnFailure that stops itself is gone", spec("a"),
			func(d *diary, _ int) Actor { return &probe{d: d} },
			func(r *rig, pid PID) { r.tell(pid, do(func(ctx Context) { ctx.Stop(ctx.Self()) }), "next") },
			[]string{"Started", "Stopping", "Stopped"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, d, n := newRig(t, Config{}, tc.row), &diary{}, 0
				pid := r.spawn("a", "a", func() Actor { n++; return tc.make(d, n) })
				if tc.act != nil {
					tc.act(r, pid)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				d.expect(t, tc.want...)
				r.stop()
			})
		})
	}
}

func TestAParentThatRestartsEndsItsChildrenAndKeepsItsWatches(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
		p := r.spawn("p", "p", probes(d))
		other := r.spawn("c", "other", probes(&diary{}))
		r.child(p, "c", "c", probes(&diary{}))
		r.tell(p, do(func(ctx Context) { ctx.Watch(other) }), boom("x"))
		// The watched actor ends while the watcher is suspended.
		r.tell(other, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
		d.expect(t, "Started", "boom x")
		time.Sleep(time.Second)
		synctest.Wait()
		d.expect(t, "Restarting", "Started", "Terminated other")
		if n := len(r.Stats().Actors); n != 1 {
			t.Errorf("%d actors, want the parent only", n)
		}
		r.stop()
	})
}

func TestNames(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(d))
		r.tell(p, do(func(ctx Context) {
			if len(ctx.Children()) != 1 || ctx.Name() != "p" || ctx.Kind() != "p" || ctx.Parent() != nil {
				t.Errorf("context %v %v %v %v", ctx.Children(), ctx.Name(), ctx.Kind(), ctx.Parent())
			}
			if _, err := SpawnChild(ctx, "c", "c", probes(d)); !errors.Is(err, ErrNameTaken) {
				t.Errorf("second c: %v", err)
			}
			if _, err := SpawnChild(ctx, "x", "x", probes(d)); !errors.Is(err, ErrUnknownKind) {
				t.Errorf("unknown kind: %v", err)
			}
			ctx.Stop(c)
			if _, err := SpawnChild(ctx, "c", "c", probes(d)); !errors.Is(err, ErrNameTaken) {
				t.Errorf("before Terminated: %v", err)
			}
		}))
		if again := r.child(p, "c", "c", probes(d)); !Same(again, c) || Path(again) != "p/c" {
			t.Errorf("pid %v", again)
		}
		if _, err := r.Spawn("p", "p", probes(d)); !errors.Is(err, ErrNameTaken) {
			t.Errorf("second top: %v", err)
		}
		r.stop()
		if _, err := r.Spawn("p", "late", probes(d)); !errors.Is(err, ErrEnding) {
			t.Errorf("after shutdown: %v", err)
		}
	})
}

func TestSpawningFromAnEndingActorIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, spec("p"), spec("c"))
		refused := 0
		r.spawn("p", "p", func() Actor {
			return ActorFunc(func(ctx Context) {
				switch ctx.Message().(type) {
				case *Stopping, *Stopped:
					if _, err := SpawnChild(ctx, "c", "c", probes(&diary{})); errors.Is(err, ErrEnding) {
						refused++
					}
				}
			})
		})
		r.stop()
		if refused != 2 {
			t.Errorf("%d refusals, want 2", refused)
		}
	})
}

// slowChild gives pid a child that needs 500 ms to end.
func slowChild(r *rig, pid PID, kind string) {
	c := r.child(pid, kind, "slow", probes(&diary{}))
	r.tell(c, do(func(Context) { time.Sleep(500 * time.Millisecond) }))
}

func TestAnActorThatWaitsForItsChildrenToEnd(t *testing.T) {
	t.Run("handles no message", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			a := r.spawn("a", "a", probes(d))
			slowChild(r, a, "a")
			r.tell(a, do(func(ctx Context) { ctx.Stop(ctx.Self()) }), "late")
			d.expect(t, "Started", "Stopping")
			time.Sleep(time.Second)
			synctest.Wait()
			d.expect(t, "Stopped")
			if n := r.Stats().DeadLetters; n != 1 {
				t.Errorf("%d dead letters, want 1", n)
			}
			r.stop()
		})
	})
	t.Run("is not brought back by a restart that comes too late", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			a := r.spawn("a", "a", probes(d))
			slowChild(r, a, "a")
			c := r.find(a)
			r.tell(a, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
			c.scheduleRestart(0)
			time.Sleep(time.Second)
			synctest.Wait()
			d.expect(t, "Started", "Stopping", "Stopped")
			r.stop()
		})
	})
	t.Run("may be told to stop while it restarts", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			a := r.spawn("a", "a", probes(d))
			slowChild(r, a, "a")
			r.tell(a, boom("x"))
			time.Sleep(200 * time.Millisecond)
			r.lib.Root.Stop(a)
			time.Sleep(time.Second)
			synctest.Wait()
			d.expect(t, "Started", "boom x", "Restarting", "Stopping", "Stopped")
			r.stop()
		})
	})
}

func TestABusyParentHearsOfAGivenUpChildInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("p"), spec("c", func(s *Spec) { s.Restart = Never })), &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(&diary{}))
		for range 3 {
			r.Send(p, do(func(Context) { time.Sleep(10 * time.Millisecond) }))
		}
		r.Send(p, "last")
		r.tell(c, boom("x"))
		time.Sleep(time.Second)
		synctest.Wait()
		d.expect(t, "Started", "ChildGaveUp c x", "Terminated p/c", "last")
		r.stop()
	})
}

func TestWatchingAChildChangesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(&diary{}))
		r.tell(p, do(func(ctx Context) { ctx.Watch(c); ctx.Stop(c) }))
		d.expect(t, "Started", "Terminated p/c")
		r.stop()
	})
}

func TestManyFailingTreesEndClean(t *testing.T) {
	r := newRig(t, Config{}, spec("p"), spec("c", func(s *Spec) {
		s.Backoff = Backoff{Start: time.Microsecond, Factor: 1, Cap: time.Microsecond}
		s.Intensity = Intensity{}
	}))
	d := &diary{}
	for i := range 4 {
		p, err := r.Spawn("p", fmt.Sprint("p", i), probes(d))
		if err != nil {
			t.Fatal(err)
		}
		for j := range 8 {
			r.Send(p, do(func(ctx Context) {
				c, err := SpawnChild(ctx, "c", fmt.Sprint("c", j), probes(d))
				if err != nil {
					t.Error(err)
					return
				}
				for range 20 {
					ctx.Send(c, boom("x"))
					ctx.Send(c, "after")
				}
			}))
		}
	}
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(r.Stats().Actors); n != 0 {
		t.Errorf("%d actors left", n)
	}
}
