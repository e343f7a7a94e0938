package actorkit

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestShutdown(t *testing.T) {
	t.Run("handles what is queued first", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			pid := r.spawn("a", "a", probes(d))
			r.Send(pid, do(func(Context) { time.Sleep(time.Millisecond) }))
			r.Send(pid, "queued")
			r.stop()
			d.expect(t, "Started", "queued", "Stopping", "Stopped")
		})
	})
	t.Run("ends children before their parents and later tops first", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r, d := newRig(t, Config{}, spec("a")), &diary{}
			note := func() Actor {
				return ActorFunc(func(ctx Context) {
					switch m := ctx.Message().(type) {
					case do:
						m(ctx)
					case *Stopped:
						d.add("%s", Path(ctx.Self()))
					}
				})
			}
			one := r.spawn("a", "one", note)
			r.spawn("a", "two", note)
			r.child(r.child(one, "a", "b", note), "a", "c", note)
			r.stop()
			d.expect(t, "two", "one/b/c", "one/b", "one")
			if err := r.Shutdown(t.Context()); err != nil {
				t.Errorf("second shutdown: %v", err)
			}
		})
	})
	t.Run("does not wait for the restart of a suspended actor", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r := newRig(t, Config{}, spec("a", func(s *Spec) { s.Backoff = Backoff{time.Hour, 1, time.Hour, 0, 0} }))
			pid := r.spawn("a", "a", probes(&diary{}))
			r.tell(pid, boom("x"))
			began := time.Now()
			if err := r.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 0 {
				t.Errorf("took %v", took)
			}
		})
	})
	t.Run("leaves an actor behind that overruns its budget, and the tree ends", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			slow := spec("slow", func(s *Spec) { s.ShutdownBudget = 100 * time.Millisecond })
			r, d := newRig(t, Config{}, spec("p"), slow), &diary{}
			p := r.spawn("p", "p", probes(d))
			c := r.child(p, "slow", "c", probes(&diary{}))
			r.tell(p, do(func(ctx Context) {
				ctx.Send(c, do(func(Context) { time.Sleep(10 * time.Second) }))
			}))
			began := time.Now()
			err := r.Shutdown(t.Context())
			if !errors.Is(err, ErrLeftBehind) || !strings.Contains(err.Error(), "p/c") || strings.Contains(err.Error(), "p,") {
				t.Errorf("error %v", err)
			}
			if took := time.Since(began); took != 100*time.Millisecond {
				t.Errorf("took %v, want the budget of the slow one", took)
			}
			d.expect(t, "Started", "Stopping", "Stopped")
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := len(r.Stats().Actors); n != 0 || r.count(EventOverrun) != 1 {
				t.Errorf("%d actors left, events %+v", n, r.events)
			}
		})
	})
	t.Run("returns when its context ends", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r := newRig(t, Config{}, spec("a", func(s *Spec) { s.ShutdownBudget = time.Hour }))
			pid := r.spawn("a", "a", probes(&diary{}))
			r.tell(pid, do(func(ctx Context) {
				Go(ctx, func(context.Context) any { time.Sleep(time.Minute); return nil })
			}))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := r.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			time.Sleep(time.Minute)
		})
	})
}

func TestAChildThatWaitsForItsOwnIsLeftBehindOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		hasty := spec("hasty", func(s *Spec) { s.ShutdownBudget = 100 * time.Millisecond })
		r, d, dn := newRig(t, Config{}, spec("p"), hasty), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "hasty", "c", probes(&diary{}))
		slowChild(r, c, "p")
		r.tell(p, do(func(ctx Context) { ctx.Stop(c) }))
		time.Sleep(200 * time.Millisecond)
		r.tell(p, do(func(ctx Context) {
			if _, err := SpawnChild(ctx, "hasty", "c", probes(dn)); !errors.Is(err, ErrNameTaken) {
				t.Errorf("while the old one waits: %v", err)
			}
		}))
		// The old one ends at 500 ms: its name is free, and its end, which is no news,
		// is on its way while the parent is busy. The successor must not be mistaken
		// for it.
		r.tell(p, do(func(ctx Context) {
			time.Sleep(time.Second)
			if _, err := SpawnChild(ctx, "hasty", "c", probes(dn)); err != nil {
				t.Error(err)
			}
		}))
		time.Sleep(2 * time.Second)
		r.tell(p, do(func(ctx Context) {
			if len(ctx.Children()) != 1 {
				t.Errorf("children %v", ctx.Children())
			}
		}))
		d.expect(t, "Started", "Terminated p/c")
		dn.expect(t, "Started")
		r.stop()
	})
}

func TestAChildLeftBehindDoesNotEndItsSuccessor(t *testing.T) {
	for name, lastWords := range map[string]func(){
		"by its late end":     func() {},
		"by its late failure": func() { panic("late") },
	} {
		t.Run(name, func(t *testing.T) { leaveBehind(t, lastWords) })
	}
}

func leaveBehind(t *testing.T, lastWords func()) {
	inBubble(t, func(t *testing.T) {
		slow := spec("slow", func(s *Spec) { s.ShutdownBudget, s.Restart = 100*time.Millisecond, Never })
		r, d, dn := newRig(t, Config{}, spec("p"), slow), &diary{}, &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "slow", "c", probes(&diary{}))
		r.tell(c, do(func(Context) { time.Sleep(time.Second); lastWords() }))
		r.tell(p, do(func(ctx Context) { ctx.Stop(c) }))
		time.Sleep(500 * time.Millisecond)
		r.tell(p, do(func(ctx Context) {
			if _, err := SpawnChild(ctx, "slow", "c", probes(dn)); err != nil {
				t.Error(err)
			}
		}))
		// The old one returns at 1 s, and must not be mistaken for its successor.
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.count(EventReturned); n != 1 {
			t.Errorf("%d handlers returned, want 1", n)
		}
		d.expect(t, "Started", "Terminated p/c")
		dn.expect(t, "Started")
		r.stop()
		dn.expect(t, "Stopping", "Stopped")
	})
}

func TestWhatTheActorsOfAKindDidOutlivesThem(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, spec("p"), spec("c"))
		p := r.spawn("p", "p", probes(&diary{}))
		c := r.child(p, "c", "c", probes(&diary{}))
		r.tell(c, "one", "two", do(func(Context) { time.Sleep(time.Second) }), "waits a second")
		time.Sleep(2 * time.Second)
		r.tell(c, boom("x"))
		time.Sleep(time.Second)
		check := func(live int) {
			t.Helper()
			k := r.Stats().Kinds[0]
			if k.Kind != "c" || k.Live != live || k.Handled != 5 || k.Restarts != 1 || k.Failures != 1 ||
				k.Busy != time.Second || k.Waited != time.Second {
				t.Errorf("stats %+v", k)
			}
		}
		synctest.Wait()
		check(1)
		if a := r.Stats().Actors[1]; a.MaxBusy != time.Second || a.MaxWait != time.Second || a.Phase != "running" {
			t.Errorf("stats %+v", a)
		}
		r.tell(p, do(func(ctx Context) { ctx.Stop(c) }))
		check(0)
		r.stop()
	})
}

func TestDeadLettersAreCountedAndNamedButNotShown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		r := newRig(t, Config{Logger: logger}, spec("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		r.tell(pid, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
		r.tell(pid, "token-123")
		r.tell(nil, "token-123")
		if n := r.Stats().DeadLetters; n != 2 || r.count(EventDeadLetter) != 2 {
			t.Errorf("%d dead letters, %d events", n, r.count(EventDeadLetter))
		}
		r.stop()
		if s := log.String(); strings.Contains(s, "token-123") || !strings.Contains(s, "message=string") {
			t.Errorf("log %s", s)
		}
	})
}

func TestMessagesSentByNameWhileAnActorStartsWait(t *testing.T) {
	d := &diary{}
	r := newRig(t, Config{}, spec("a"))
	var senders sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					r.Send(r.lib.NewLocalPID("a"), "x")
				}
			}
		})
	}
	for range 50 {
		pid, err := r.Spawn("a", "a", probes(d))
		if err != nil {
			t.Fatal(err)
		}
		c := r.find(pid)
		r.lib.Root.Stop(pid)
		<-c.life.over
	}
	close(stop)
	senders.Wait()
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for i, l := range d.take() {
		if i == 0 && l != "Started" {
			t.Errorf("first message %q", l)
		}
	}
}

func TestAnEmptiedBacklogGivesItsMemoryBack(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, spec("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		r.Send(pid, do(func(Context) { time.Sleep(time.Second) }))
		for i := range 20_000 {
			r.Send(pid, i)
		}
		time.Sleep(2 * time.Second)
		r.tell(pid, "one", "two")
		r.tell(pid, "three")
		m := r.find(pid).mailbox
		if n := cap(m.in) + cap(m.out); n > 2*keptQueue {
			t.Errorf("%d slots kept", n)
		}
		r.stop()
	})
}

func TestManySendersKeepTheirOwnOrder(t *testing.T) {
	type numbered struct{ sender, n int }
	r := newRig(t, Config{}, spec("a"))
	const senders, each = 8, 2000
	var got [senders]int
	total := 0
	done := make(chan struct{})
	pid, err := r.Spawn("a", "a", func() Actor {
		return ActorFunc(func(ctx Context) {
			m, ok := ctx.Message().(numbered)
			if !ok {
				return
			}
			if m.n != got[m.sender] {
				t.Errorf("sender %d: message %d, want %d", m.sender, m.n, got[m.sender])
			}
			got[m.sender]++
			if total++; total == senders*each {
				close(done)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for s := range senders {
		go func() {
			for n := range each {
				r.Send(pid, numbered{s, n})
			}
		}()
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("messages are missing")
	}
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
