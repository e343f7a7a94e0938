package actorkit

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMatching(t *testing.T) {
	for _, tc := range []struct {
		pattern, path string
		want          bool
	}{
		{"gateway", "gateway", true},
		{"gateway", "gateway/peers", false},
		{"gateway/*", "gateway/peers", true},
		{"gateway/*", "gateway/peers/a", false},
		{"gateway/*/a", "gateway/peers/a", true},
		{"gateway/pe?rs/[ab]", "gateway/peers/b", true},
		{"gateway/pe?rs/[ab]", "gateway/peers/c", false},
		{"gateway/**", "gateway", false},
		{"gateway/**", "gateway/peers", true},
		{"gateway/**", "gateway/peers/a/nat.1", true},
		{"gateway/p*/**", "gateway/peers/a/nat.1", true},
		{"gateway/d*/**", "gateway/peers/a/nat.1", false},
		{"**", "gateway", true},
		{"*", "gateway", true},
		{"*", "gateway/peers", false},
		{`g\*`, "g*", true},
	} {
		if err := checkPattern(tc.pattern); err != nil {
			t.Errorf("%s: %v", tc.pattern, err)
		}
		if got := matches(strings.Split(tc.pattern, "/"), strings.Split(tc.path, "/")); got != tc.want {
			t.Errorf("%s matches %s: %v", tc.pattern, tc.path, got)
		}
	}
}

func TestInjectionsThatMakeNoSense(t *testing.T) {
	r := newRig(t, Config{}, spec("a"))
	for _, tc := range []struct {
		i    Injection
		want string
	}{
		{Injection{Fault: Crash}, "empty element"},
		{Injection{Actor: "/gateway", Fault: Crash}, "empty element"},
		{Injection{Actor: "gateway/", Fault: Crash}, "empty element"},
		{Injection{Actor: "**/a", Fault: Crash}, "only as the last"},
		{Injection{Actor: "a**", Fault: Crash}, "only as the last"},
		{Injection{Actor: "[", Fault: Crash}, "syntax error"},
		{Injection{Actor: "a"}, "none of crash"},
		{Injection{Actor: "a", Fault: "explode"}, "none of crash"},
		{Injection{Actor: "a", Fault: Hang, For: -1}, "negative"},
		{Injection{Actor: "a", Fault: Delay}, "needs a time"},
		{Injection{Actor: "a", Fault: Drop, Messages: -1}, "not between"},
		{Injection{Actor: "a", Fault: Drop, Messages: MaxInjected + 1}, "not between"},
	} {
		if paths, err := r.Inject(tc.i); paths != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %q, %v", tc.i, paths, err)
		}
	}
	if paths, err := r.Inject(Injection{Actor: "a", Fault: Crash}); err != nil || len(paths) != 0 || paths == nil {
		t.Errorf("nobody there: %v, %v", paths, err)
	}
}

// injectedRig has p with the children a and b, which write into their diaries.
func injectedRig(t *testing.T, change ...func(*Spec)) (r *rig, a, b PID, da, db *diary) {
	da, db = &diary{}, &diary{}
	r = newRig(t, Config{}, spec("p"), stuckRow("c", change...))
	p := r.spawn("p", "p", probes(&diary{}))
	a, b = r.child(p, "c", "a", probes(da)), r.child(p, "c", "b", probes(db))
	da.expect(t, "Started")
	db.expect(t, "Started")
	return r, a, b, da, db
}

func (r *rig) inject(i Injection, want ...string) {
	r.t.Helper()
	paths, err := r.Inject(i)
	if err != nil || !slices.Equal(paths, want) {
		r.t.Errorf("injected into %q, %v, want %q", paths, err, want)
	}
	synctest.Wait()
}

func TestInjectedCrash(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, a, b, da, db := injectedRig(t)
		r.Send(a, do(func(Context) { time.Sleep(time.Millisecond) }))
		r.Send(a, "before")
		r.inject(Injection{Actor: "p/a", Fault: Crash, For: time.Second, Messages: 2}, "p/a")
		r.Send(a, "behind")
		time.Sleep(50 * time.Millisecond)
		r.tell(b, "other")
		da.expect(t, "before")
		db.expect(t, "other")
		time.Sleep(time.Second)
		synctest.Wait()
		da.expect(t, "Restarting", "Started", "Restarting", "Started", "behind")
		s := r.Stats().Actors[1]
		if s.Injected != 2 || s.Restarts != 2 || s.Failures != 2 || s.LastFailure != "injected crash" {
			t.Errorf("stats %+v", s)
		}
		for _, e := range r.events {
			if e.Type != EventInjected && e.Type != EventFailed && e.Type != EventRestarted ||
				e.Path != "p/a" || e.Type != EventRestarted && !errors.Is(e.Fault, ErrInjected) {
				t.Errorf("event %+v", e)
			}
		}
		r.stop()
		da.expect(t, "Stopping", "Stopped")
	})
}

func TestInjectedCrashesUntilTheActorIsGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, _, _, da, _ := injectedRig(t)
		r.inject(Injection{Actor: "p/a", Fault: Crash, Messages: MaxInjected}, "p/a")
		time.Sleep(time.Minute)
		synctest.Wait()
		da.expect(t, "Restarting", "Started", "Restarting", "Started", "Restarting", "Started", "Stopping", "Stopped")
		if s := r.Stats(); s.DeadLetters != 0 || s.Kinds[0].Injected != 4 || r.count(EventGaveUp) != 1 {
			t.Errorf("stats %+v", s)
		}
		r.stop()
	})
}

func TestInjectedHang(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, a, b, da, db := injectedRig(t)
		r.inject(Injection{Actor: "p/*", Fault: Hang, For: 500 * time.Millisecond}, "p/a", "p/b")
		r.tell(a, "waits")
		da.expect(t)
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		da.expect(t, "waits")
		if r.count(EventStuck) != 0 || r.count(EventInjected) != 2 {
			t.Errorf("events %+v", r.events)
		}
		r.inject(Injection{Actor: "p/b", Fault: Hang}, "p/b")
		r.tell(b, "waits")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		db.expect(t, "Started", "waits")
		if r.count(EventStuck) != 1 || r.count(EventReturned) != 1 {
			t.Errorf("events %+v", r.events)
		}
		r.stop()
	})
}

func TestAnInjectedHangEndsWithTheSystem(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, _, _, _, _ := injectedRig(t, func(s *Spec) { s.Stuck = time.Hour })
		r.inject(Injection{Actor: "**", Fault: Hang}, "p", "p/a", "p/b")
		if err := r.Shutdown(t.Context()); !errors.Is(err, ErrLeftBehind) {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
	})
}

func TestInjectedDelay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, a, _, da, _ := injectedRig(t)
		r.inject(Injection{Actor: "p/a", Fault: Delay, For: 300 * time.Millisecond, Messages: 2}, "p/a")
		for _, m := range []string{"one", "two", "three"} {
			r.tell(a, m)
		}
		da.expect(t)
		for _, want := range [][]string{{"one"}, {"two", "three"}} {
			time.Sleep(300 * time.Millisecond)
			synctest.Wait()
			da.expect(t, want...)
		}
		s := r.Stats().Actors[1]
		if s.Injected != 2 || s.MaxBusy != 0 || s.MaxWait != 600*time.Millisecond || s.Restarts != 0 {
			t.Errorf("stats %+v", s)
		}
		r.stop()
	})
}

func TestInjectedDrop(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, a, _, da, _ := injectedRig(t)
		timers, gate := &Timers{}, NewGate(1)
		r.tell(a, do(func(ctx Context) {
			timers.Every(ctx, "tick", 100*time.Millisecond, "tick")
		}))
		r.inject(Injection{Actor: "p/a", Fault: Drop, Messages: 3}, "p/a")
		time.Sleep(250 * time.Millisecond)
		da.expect(t, "tick", "tick")
		r.tell(a, "lost")
		if !gate.TrySend(r.System, a, "lost") {
			t.Error("refused")
		}
		synctest.Wait()
		if gate.Pending() != 0 {
			t.Error("the place of a dropped message is still taken")
		}
		if _, err := Ask[string](t.Context(), r.System, a, "lost", time.Hour); !errors.Is(err, ErrInjected) {
			t.Errorf("answer %v", err)
		}
		r.tell(a, "found")
		da.expect(t, "found")
		if s := r.Stats().Actors[1]; s.Injected != 3 || s.Failures != 0 || r.cellAt("p/a").faults.Load() != nil {
			t.Errorf("stats %+v", s)
		}
		r.inject(Injection{Actor: "p/a", Fault: Drop}, "p/a")
		r.tell(a, "lost", "found")
		da.expect(t, "found")
		for _, e := range r.events {
			if e.Type != EventInjected || e.Message != "string" || e.Kind != "c" || e.Fault.Error() != "injected drop" {
				t.Errorf("event %+v", e)
			}
		}
		r.stop()
	})
}

func TestHandlersAreCountedByDuration(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, spec("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		for _, d := range append([]time.Duration{0, time.Microsecond, 2 * time.Second}, DurationBounds[:]...) {
			r.Send(pid, do(func(Context) { time.Sleep(d) }))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		r.spawn("a", "b", probes(&diary{}))
		k := r.Stats().Kinds[0]
		if k.Handled != 9 || k.Durations != [...]uint64{3, 1, 1, 1, 1, 1, 1} || k.MaxBusy != 2*time.Second || k.MaxPending < 7 || k.MaxPending > 9 {
			t.Errorf("stats %+v", k)
		}
		r.stop()
		if after := r.Stats().Kinds[0]; after.Durations != k.Durations || after.Peaks != k.Peaks || after.Live != 0 {
			t.Errorf("stats %+v, before %+v", after, k)
		}
	})
}
