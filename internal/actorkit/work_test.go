package actorkit

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// clockwork is an actor with timers that writes what it receives.
type clockwork struct {
	probe
	timers Timers
}

func (c *clockwork) Receive(ctx Context) {
	if f, ok := ctx.Message().(func(Context, *Timers)); ok {
		f(ctx, &c.timers)
		return
	}
	c.probe.Receive(ctx)
}

func clockworks(d *diary) func() Actor {
	return func() Actor { return &clockwork{probe: probe{d: d}} }
}

func TestTimers(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   []any
		wait time.Duration
		want []string
	}{
		{"After delivers once", []any{(func(ctx Context, ts *Timers) {
			ts.After(ctx, "k", time.Second, "tick")
		})}, 5 * time.Second, []string{"Started", "tick"}},
		{"Every delivers at each period", []any{(func(ctx Context, ts *Timers) {
			ts.Every(ctx, "k", time.Second, "tick")
		})}, 3500 * time.Millisecond, []string{"Started", "tick", "tick", "tick"}},
		{"a cancelled timer is silent", []any{(func(ctx Context, ts *Timers) {
			ts.After(ctx, "k", time.Second, "tick")
			ts.Cancel("k")
			ts.Cancel("unknown")
			if ts.Armed("k") {
				ctx.Logger().Error("armed")
			}
		})}, 5 * time.Second, []string{"Started"}},
		{"arming a key again replaces it", []any{(func(ctx Context, ts *Timers) {
			ts.After(ctx, "k", time.Second, "first")
			ts.After(ctx, "k", 2*time.Second, "second")
			ts.After(ctx, 7, time.Second, "other key")
		})}, 5 * time.Second, []string{"Started", "other key", "second"}},
		{"CancelAll silences all", []any{(func(ctx Context, ts *Timers) {
			ts.After(ctx, "a", time.Second, "a")
			ts.Every(ctx, "b", time.Second, "b")
			ts.CancelAll()
		})}, 5 * time.Second, []string{"Started"}},
		{"a failure ends the timers", []any{(func(ctx Context, ts *Timers) {
			ts.Every(ctx, "k", 50*time.Millisecond, "tick")
		}), boom("x")}, 5 * time.Second, []string{"Started", "boom x", "Restarting", "Started"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, d := newRig(t, Config{}, spec("a")), &diary{}
				pid := r.spawn("a", "a", clockworks(d))
				r.tell(pid, tc.do...)
				time.Sleep(tc.wait)
				synctest.Wait()
				d.expect(t, tc.want...)
				r.stop()
			})
		})
	}
}

func TestATickInTheMailboxIsStaleOnceItsTimerIs(t *testing.T) {
	type f = func(Context, *Timers)
	for _, tc := range []struct {
		name string
		then f
		want []string
	}{
		{"cancelled", func(_ Context, ts *Timers) { ts.Cancel("k") }, nil},
		{"armed again", func(ctx Context, ts *Timers) { ts.After(ctx, "k", time.Hour, "new") }, nil},
		{"of an earlier incarnation", func(Context, *Timers) { panic("x") }, []string{"Restarting", "Started"}},
		{"neither", func(Context, *Timers) {}, []string{"old"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, d := newRig(t, Config{}, spec("a")), &diary{}
				pid := r.spawn("a", "a", clockworks(d))
				d.take()
				r.tell(pid, (func(ctx Context, ts *Timers) {
					ts.After(ctx, "k", time.Millisecond, "old")
					// The tick arrives while this handler runs.
					time.Sleep(10 * time.Millisecond)
					synctestSettle(r, pid, 1)
					tc.then(ctx, ts)
				}))
				time.Sleep(time.Second)
				synctest.Wait()
				d.expect(t, tc.want...)
				r.stop()
			})
		})
	}
}

// synctestSettle checks from within a handler that n messages wait.
func synctestSettle(r *rig, pid PID, n int) {
	if c := r.find(pid); c == nil || c.mailbox.UserMessageCount() != n {
		r.t.Errorf("messages waiting: %v, want %d", c.mailbox.UserMessageCount(), n)
	}
}

func TestAnActorSlowerThanItsPeriodHasOneTickWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d, n := newRig(t, Config{}, spec("a")), &diary{}, 0
		began := time.Now()
		var ts Timers
		r.spawn("a", "a", func() Actor {
			return ActorFunc(func(ctx Context) {
				switch ctx.Message().(type) {
				case *Started:
					ts.Every(ctx, 0, 100*time.Millisecond, "tick")
				case string:
					n++
					d.add("%d", time.Since(began).Milliseconds())
					time.Sleep(250 * time.Millisecond)
					if n < 4 { // the fourth is overtaken by the shutdown
						synctestSettle(r, ctx.Self(), 0)
					}
				}
			})
		})
		time.Sleep(1050 * time.Millisecond)
		r.stop()
		// On the grid of 100 ms, missed ones skipped.
		d.expect(t, "100", "400", "700", "1000")
	})
}

func TestGo(t *testing.T) {
	t.Run("delivers a result as a message", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			pid := r.spawn("a", "a", probes(d))
			r.tell(pid, do(func(ctx Context) {
				Go(ctx, func(context.Context) any { time.Sleep(time.Second); return "done" })
				Go(ctx, func(context.Context) any { return nil })
			}))
			d.expect(t, "Started")
			time.Sleep(2 * time.Second)
			synctest.Wait()
			d.expect(t, "done")
			r.stop()
		})
	})
	t.Run("is cancelled by a failure, and its result does not reach the next incarnation", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			pid := r.spawn("a", "a", probes(d))
			r.tell(pid, do(func(ctx Context) {
				Go(ctx, func(c context.Context) any { <-c.Done(); return "late" })
			}), boom("x"))
			if n := r.Stats().Goroutines; n != 0 {
				t.Errorf("%d goroutines after the failure", n)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			d.expect(t, "Started", "boom x", "Restarting", "Started")
			r.stop()
		})
	})
	t.Run("is cancelled by a stop, which is waited for", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, ended := newRig(t, Config{}, spec("a")), false
			pid := r.spawn("a", "a", probes(&diary{}))
			r.tell(pid, do(func(ctx Context) {
				Go(ctx, func(c context.Context) any {
					<-c.Done()
					time.Sleep(100 * time.Millisecond)
					ended = true
					return "late"
				})
			}))
			r.stop()
			if !ended || r.Stats().DeadLetters != 0 {
				t.Errorf("ended %v, dead letters %d", ended, r.Stats().DeadLetters)
			}
		})
	})
	t.Run("fails the actor with the stack of its panic", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			pid := r.spawn("a", "a", probes(d))
			why := errors.New("dial")
			r.tell(pid, do(func(ctx Context) { Go(ctx, func(context.Context) any { panic(why) }) }))
			if r.count(EventFailed) != 1 || !errors.Is(r.events[0].Fault, why) || len(r.events[0].Fault.Stack) == 0 {
				t.Errorf("events %+v", r.events)
			}
			r.stop()
		})
	})
	t.Run("does nothing in an ending actor", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, ran := newRig(t, Config{}, spec("a")), false
			r.spawn("a", "a", func() Actor {
				return ActorFunc(func(ctx Context) {
					if _, ok := ctx.Message().(*Stopping); ok {
						Go(ctx, func(context.Context) any { ran = true; return nil })
					}
				})
			})
			r.stop()
			if ran {
				t.Error("ran")
			}
		})
	})
}

func TestGate(t *testing.T) {
	type step = func(t *testing.T, r *rig, g *Gate, pid PID)
	fill := func(t *testing.T, r *rig, g *Gate, pid PID, msg any) {
		for i := range 3 {
			if !g.TrySend(r.System, pid, msg) {
				t.Errorf("message %d refused", i)
			}
		}
		if g.TrySend(r.System, pid, "over") {
			t.Error("the gate let more than its limit in")
		}
	}
	for _, tc := range []struct {
		name string
		do   step
	}{
		{"handled messages give their places back", func(t *testing.T, r *rig, g *Gate, pid PID) {
			r.Send(pid, do(func(Context) { time.Sleep(time.Millisecond) }))
			fill(t, r, g, pid, "x")
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
		}},
		{"a message that panics gives its place back at once, those behind it after the restart",
			func(t *testing.T, r *rig, g *Gate, pid PID) {
				r.Send(pid, do(func(Context) { time.Sleep(time.Millisecond) }))
				g.TrySend(r.System, pid, boom("x"))
				g.TrySend(r.System, pid, "y")
				time.Sleep(2 * time.Millisecond)
				synctest.Wait()
				if g.Pending() != 1 {
					t.Errorf("%d places taken while suspended, want 1", g.Pending())
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}},
		{"a dead actor takes no place", func(t *testing.T, r *rig, g *Gate, pid PID) {
			r.tell(pid, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
			for range 10 {
				if !g.TrySend(r.System, pid, "x") {
					t.Error("refused")
				}
			}
		}},
		{"messages queued at the stop give their places back", func(t *testing.T, r *rig, g *Gate, pid PID) {
			r.tell(pid, boom("x"))
			fill(t, r, g, pid, "x")
			r.lib.Root.Stop(pid)
			synctest.Wait()
			if r.Stats().DeadLetters != 3 {
				t.Errorf("%d dead letters, want 3", r.Stats().DeadLetters)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, g := newRig(t, Config{}, spec("a")), NewGate(3)
				pid := r.spawn("a", "a", probes(&diary{}))
				tc.do(t, r, g, pid)
				if g.Pending() != 0 {
					t.Errorf("%d places still taken", g.Pending())
				}
				r.stop()
			})
		})
	}
}

func TestStashReleasesInOrderBeforeTheMailbox(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, d := newRig(t, Config{}, spec("a")), &diary{}
		stash, open, full := NewStash(2), false, 0
		pid := r.spawn("a", "a", func() Actor {
			return ActorFunc(func(ctx Context) {
				switch m := ctx.Message().(type) {
				case *Started:
					if stash.Push(ctx) {
						t.Error("a lifecycle message was set aside")
					}
				case string:
					if open {
						d.add("%s", m)
						ctx.Respond("answer to " + m)
					} else if !stash.Push(ctx) {
						full++
					}
				case do:
					open = true
					stash.Release(ctx)
				}
			})
		})
		answer := make(chan string, 1)
		go func() {
			a, err := Ask[string](t.Context(), r.System, pid, "one", time.Minute)
			if err != nil {
				t.Error(err)
			}
			answer <- a
		}()
		synctest.Wait()
		r.tell(pid, "two", "three")
		r.tell(pid, do(nil), "four")
		d.expect(t, "one", "two", "four")
		if full != 1 || stash.Len() != 0 {
			t.Errorf("full %d, left %d", full, stash.Len())
		}
		if got := <-answer; got != "answer to one" {
			t.Errorf("answer %q", got)
		}
		r.stop()
	})
}

func TestAsk(t *testing.T) {
	const timeout = time.Minute
	for _, tc := range []struct {
		name    string
		receive func(ctx Context)
		want    string
		err     error
		letters uint64
	}{
		{"returns the answer", func(ctx Context) { ctx.Respond("yes") }, "yes", nil, 0},
		{"returns the first of two answers", func(ctx Context) { ctx.Respond("yes"); ctx.Respond("no") }, "yes", nil, 1},
		{"returns an answer that is an error as the error", func(ctx Context) { ctx.Respond(ErrEnding) }, "", ErrEnding, 0},
		{"ends when the actor panics", func(Context) { panic(ErrStoppedItself) }, "", ErrStoppedItself, 0},
		{"ends when the actor stops with the question queued", func(ctx Context) {
			if ctx.Message() == "question" {
				ctx.Stop(ctx.Self())
				ctx.Forward(ctx.Self())
			}
		}, "", ErrDeadLetter, 1},
		{"times out without an answer", func(Context) {}, "", ErrTimeout, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRig(t, Config{}, spec("a"))
				pid := r.spawn("a", "a", func() Actor {
					return ActorFunc(func(ctx Context) {
						if _, ok := ctx.Message().(string); ok {
							tc.receive(ctx)
						}
					})
				})
				got, err := Ask[string](t.Context(), r.System, pid, "question", timeout)
				if got != tc.want || !errors.Is(err, tc.err) {
					t.Errorf("answer %q, %v; want %q, %v", got, err, tc.want, tc.err)
				}
				synctest.Wait()
				if n := r.Stats().DeadLetters; n != tc.letters {
					t.Errorf("%d dead letters, want %d", n, tc.letters)
				}
				r.stop()
			})
		})
	}
	t.Run("ends with its context, and for nobody, and for an answer of another type", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r := newRig(t, Config{}, spec("a"))
			pid := r.spawn("a", "a", func() Actor { return ActorFunc(func(Context) {}) })
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := Ask[int](ctx, r.System, pid, 1, timeout); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("context: %v", err)
			}
			if _, err := Ask[int](t.Context(), r.System, r.lib.NewLocalPID("nobody"), 1, timeout); !errors.Is(err, ErrDeadLetter) {
				t.Errorf("nobody: %v", err)
			}
			if _, err := Ask[int](t.Context(), r.System, nil, 1, timeout); !errors.Is(err, ErrDeadLetter) {
				t.Errorf("nil: %v", err)
			}
			echo := r.spawn("a", "echo", func() Actor {
				return ActorFunc(func(ctx Context) {
					if ctx.Sender() != nil {
						ctx.Respond("text")
					}
				})
			})
			if _, err := Ask[int](t.Context(), r.System, echo, 1, timeout); err == nil {
				t.Error("an answer of another type is accepted")
			}
			r.stop()
		})
	})
}
