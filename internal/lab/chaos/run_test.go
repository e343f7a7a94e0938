package chaos

import (
	"testing"
	"time"

	"firezone-gateway/internal/lab/labtest"
)

// options are those of a short run.
func options(t *testing.T) Options {
	t.Helper()
	labtest.NeedNamespaces(t)
	return Options{Gateway: labtest.Daemon(), Seed: 1, Duration: 4 * time.Second, Progress: t.Logf}
}

// held fails the test where a promise was broken.
func held(t *testing.T, r Result) {
	t.Helper()
	t.Log(r.Line())
	if r.OK {
		return
	}
	t.Errorf("%s: promises were broken", r.Name)
	for _, line := range r.Log {
		t.Log(line)
	}
}

// TestNobodyNoticesCrashes has an actor of every kind crash twice, and holds that
// status, metrics and traces tell of it.
func TestNobodyNoticesCrashes(t *testing.T) {
	o := options(t)
	o.Traces = true
	o.Interval = 500 * time.Millisecond
	o.Duration = 2 * time.Duration(len(Kinds)) * o.Interval
	r := Suffer(t.Context(), Each, o)
	held(t, r)
	d, ok := r.Figures.(Damage)
	if !ok {
		t.Fatalf("figures are a %T", r.Figures)
	}
	for _, kind := range Kinds {
		if d.Injected[kind] == 0 {
			t.Errorf("no %s crashed", kind)
		}
	}
	if d.Metric == nil || d.Traced == nil {
		t.Errorf("metrics tell %v, traces %v", d.Metric, d.Traced)
	}
}

func TestNobodyNoticesDelays(t *testing.T) {
	o := options(t)
	o.Fault = Delay
	held(t, Suffer(t.Context(), Random, o))
}

func TestPolicyHoldsWhileMessagesAreLost(t *testing.T) {
	o := options(t)
	o.Fault = Drop
	held(t, Suffer(t.Context(), Random, o))
}

func TestOthersDoNotNoticeACrashLoop(t *testing.T) {
	held(t, Loop(t.Context(), 10, options(t)))
}

func TestTrafficSoonAfterAKill(t *testing.T) {
	held(t, Kill(t.Context(), options(t)))
}

func TestSoakMeasures(t *testing.T) {
	r := Soak(t.Context(), options(t))
	s, ok := r.Figures.(Soaked)
	if !ok {
		t.Fatalf("%s: figures are a %T", r.Line(), r.Figures)
	}
	// Seconds say nothing about a trend.
	if len(s.Samples) < 5 || s.RSS.Mean < 1<<20 {
		t.Errorf("%s: %d samples", r.Line(), len(s.Samples))
	}
	if s.Metric != nil && (s.Heap.Mean <= 0 || s.Goroutines.Mean <= 0) {
		t.Errorf("metrics lack heap or goroutines: %+v %+v", s.Heap, s.Goroutines)
	}
}

// hangOnce is longer than the heartbeat takes to notice.
const hangOnce = 7 * time.Second

func TestAnActorThatHangsIsReplaced(t *testing.T) {
	for _, kind := range []string{"portal", "peer", "dns"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Fault, o.Echoes = Hang, 100
			o.Interval, o.Duration = hangOnce, hangOnce
			held(t, Suffer(t.Context(), kind, o))
		})
	}
}

// slow are the kinds that take long to be given up.
var slow = map[string]bool{"tun": true, "relay": true, "peer": true}

func TestGivingUpIsAsTheTableSays(t *testing.T) {
	for kind := range Endings {
		t.Run(kind, func(t *testing.T) {
			if testing.Short() && slow[kind] {
				t.Skip("waits for the back-off, half a minute")
			}
			t.Parallel()
			held(t, GiveUp(t.Context(), kind, options(t)))
		})
	}
}
