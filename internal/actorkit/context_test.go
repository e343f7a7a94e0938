package actorkit

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPoisonLetsAnActorFinishWhatStopDoesNot(t *testing.T) {
	for _, tc := range []struct {
		name    string
		end     func(ctx Context, pid PID)
		want    []string
		letters uint64
	}{
		{"poison", func(ctx Context, pid PID) { ctx.Poison(pid) }, []string{"Started", "one", "two", "Stopping", "Stopped"}, 0},
		{"stop", func(ctx Context, pid PID) { ctx.Stop(pid) }, []string{"Started", "Stopping", "Stopped"}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, d := newRig(t, Config{}, spec("p"), spec("c")), &diary{}
				p := r.spawn("p", "p", probes(&diary{}))
				c := r.child(p, "c", "c", probes(d))
				r.Send(c, do(func(Context) { time.Sleep(time.Millisecond) }))
				synctest.Wait()
				r.Send(c, "one")
				r.Send(c, "two")
				r.tell(p, do(func(ctx Context) { tc.end(ctx, c) }))
				time.Sleep(time.Second)
				synctest.Wait()
				d.expect(t, tc.want...)
				if n := r.Stats().DeadLetters; n != tc.letters {
					t.Errorf("%d dead letters, want %d", n, tc.letters)
				}
				r.stop()
			})
		})
	}
}

func TestContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		r, d := newRig(t, Config{Logger: logger}, spec("p"), spec("c")), &diary{}
		p := r.spawn("p", "p", probes(d))
		c := r.child(p, "c", "c", probes(&diary{}))
		other := r.spawn("c", "other", probes(&diary{}))
		r.tell(c, do(func(ctx Context) {
			if !Same(ctx.Parent(), p) || ctx.System() != r.System || !Same(ctx.Self(), c) || ctx.Sender() != nil {
				t.Errorf("parent %v, self %v, sender %v", ctx.Parent(), ctx.Self(), ctx.Sender())
			}
			ctx.Logger().Info("hello")
			ctx.Request(p, "question")
			// None of these may reach the library, which does not check.
			ctx.Watch(nil)
			ctx.Unwatch(nil)
			ctx.Stop(nil)
			ctx.Poison(nil)
		}))
		r.tell(p, do(func(ctx Context) { ctx.Watch(other); ctx.Unwatch(other) }))
		r.tell(other, do(func(ctx Context) { ctx.Stop(ctx.Self()) }))
		d.expect(t, "Started", "question")
		if !strings.Contains(log.String(), "msg=hello target=c actor=p/c") {
			t.Errorf("log %s", &log)
		}
		r.stop()
	})
}

func TestNoPIDsAreTheSame(t *testing.T) {
	r := newRig(t, Config{}, spec("a"))
	a := r.lib.NewLocalPID("a")
	if !Same(nil, nil) || Same(a, nil) || Same(nil, a) || !Same(a, r.lib.NewLocalPID("a")) || Path(nil) != "" {
		t.Error("PIDs are compared wrongly")
	}
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSupervisionIsLoggedOnceWithoutTheLibrarysLines(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		r := newRig(t, Config{Logger: logger}, spec("a", func(s *Spec) { s.Restart = Never }))
		pid := r.spawn("a", "a", func() Actor {
			return ActorFunc(func(ctx Context) {
				if _, ok := ctx.Message().(secret); ok {
					panic(errors.New("bad key"))
				}
			})
		})
		r.tell(pid, secret{"hunter2"})
		r.stop()
		got := log.String()
		if strings.Contains(got, "hunter2") {
			t.Errorf("a message's content is logged: %s", got)
		}
		if strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=ERROR msg="actor gave up" actor=a message=secret reason="bad key" stack=`) ||
			!strings.Contains(got, " failures=1") {
			t.Errorf("log %s", got)
		}
	})
}

type secret struct{ key string }

func TestTheLibrarysErrorsAreLoggedWithoutTheirAttributes(t *testing.T) {
	var log bytes.Buffer
	l := slog.New(libraryLog{slog.NewTextHandler(&log, nil)})
	l.Info("routine")
	l.With("a", "hunter2").WithGroup("g").Error("unknown system message", "message", secret{"hunter2"})
	if got := log.String(); strings.Contains(got, "hunter2") || strings.Contains(got, "routine") ||
		!strings.Contains(got, "actor library: unknown system message") {
		t.Errorf("log %s", got)
	}
}

func TestMisuseOfTheTableOrATimerPanics(t *testing.T) {
	for name, f := range map[string]func(){
		"a table that does not validate":   func() { NewSystem(Config{Table: Table{"a": {}}}) },
		"a period that is not positive":    func() { (&Timers{}).Every(nil, 0, 0, 0) },
		"a period that is not positive, 2": func() { (&Timers{}).Every(nil, 0, -time.Second, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("accepted")
				}
			}()
			f()
		})
	}
}

func TestAGateCountsWhatItRefused(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, g := newRig(t, Config{}, spec("a")), NewGate(0)
		pid := r.spawn("a", "a", probes(&diary{}))
		if g.TrySend(r.System, pid, "x") || g.Refused() != 1 || g.Pending() != 0 {
			t.Errorf("refused %d, pending %d", g.Refused(), g.Pending())
		}
		r.stop()
	})
}

func TestAGateHoldsItsLimitAmongManySenders(t *testing.T) {
	r := newRig(t, Config{}, spec("a"))
	const limit = 5
	g := NewGate(limit)
	pid, err := r.Spawn("a", "a", func() Actor {
		return ActorFunc(func(Context) {
			if n := g.Pending(); n > limit {
				t.Errorf("%d places taken", n)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan int)
	for range 4 {
		go func() {
			sent := 0
			for range 2000 {
				if g.TrySend(r.System, pid, sent) {
					sent++
				}
			}
			done <- sent
		}()
	}
	total := 0
	for range 4 {
		total += <-done
	}
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if handled := r.Stats().Kinds[0].Handled; g.Pending() != 0 || handled != uint64(total) || total+int(g.Refused()) != 8000 {
		t.Errorf("sent %d, handled %d, refused %d, pending %d", total, handled, g.Refused(), g.Pending())
	}
}
