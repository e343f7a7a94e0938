package actorkit

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDecide(t *testing.T) {
	ms := time.Millisecond
	base := Spec{
		Kind: "k", Restart: OnFailure, GiveUp: Degrade, ShutdownBudget: time.Second,
		Backoff:   Backoff{Start: 100 * ms, Factor: 2, Cap: 500 * ms, ResetAfter: 10 * time.Second},
		Intensity: Intensity{Max: 3, Within: time.Minute},
	}
	with := func(change func(*Spec)) Spec { s := base; change(&s); return s }
	restart := func(d time.Duration) decision { return decision{restart: true, delay: d} }
	for _, tc := range []struct {
		name   string
		spec   Spec
		at     []time.Duration // of failures
		random float64
		want   []decision
	}{
		{"delays double up to the cap",
			with(func(s *Spec) { s.Intensity = Intensity{} }),
			[]time.Duration{0, 1 * ms, 2 * ms, 3 * ms, 4 * ms}, 0,
			[]decision{restart(100 * ms), restart(200 * ms), restart(400 * ms), restart(500 * ms), restart(500 * ms)}},
		{"jitter only shortens",
			with(func(s *Spec) { s.Backoff.Jitter = 0.5 }),
			[]time.Duration{0, 1 * ms}, 0.5,
			[]decision{restart(75 * ms), restart(150 * ms)}},
		{"a healthy incarnation ends the row",
			base, []time.Duration{0, 1 * time.Second, 1*time.Second + 200*ms + 10*time.Second}, 0,
			[]decision{restart(100 * ms), restart(200 * ms), restart(100 * ms)}},
		{"the delay does not count as health",
			base, []time.Duration{0, 10*time.Second + 50*ms}, 0,
			[]decision{restart(100 * ms), restart(200 * ms)}},
		{"a healthy incarnation ends what counts for the intensity",
			base, []time.Duration{0, 1 * ms, 2 * ms, 11 * time.Second, 11*time.Second + 1*ms, 11*time.Second + 2*ms, 11*time.Second + 3*ms}, 0,
			[]decision{restart(100 * ms), restart(200 * ms), restart(400 * ms), restart(100 * ms), restart(200 * ms), restart(400 * ms), {}}},
		{"one failure more than the intensity gives up",
			base, []time.Duration{0, 1 * ms, 2 * ms, 3 * ms}, 0,
			[]decision{restart(100 * ms), restart(200 * ms), restart(400 * ms), {}}},
		{"failures outside the span are forgotten",
			base, []time.Duration{0, 1 * ms, 2 * ms, 2*ms + time.Minute}, 0,
			[]decision{restart(100 * ms), restart(200 * ms), restart(400 * ms), restart(100 * ms)}},
		{"Never gives up at once",
			with(func(s *Spec) { s.Restart = Never }), []time.Duration{0}, 0, []decision{{}}},
		{"no first delay means no delay",
			with(func(s *Spec) { s.Backoff.Start = 0 }), []time.Duration{0, 1}, 0,
			[]decision{restart(0), restart(0)}},
		{"without reset the row never ends",
			with(func(s *Spec) { s.Backoff.ResetAfter = 0 }), []time.Duration{0, time.Hour}, 0,
			[]decision{restart(100 * ms), restart(200 * ms)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h history
			epoch := time.Unix(1e9, 0)
			for i, at := range tc.at {
				if got := decide(tc.spec, &h, epoch.Add(at), tc.random); got != tc.want[i] {
					t.Errorf("failure %d: %+v, want %+v", i, got, tc.want[i])
				}
			}
		})
	}
}

func TestDelayStaysBetweenZeroAndTheCapInAnyRow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.Int64Range(0, int64(time.Hour)).Draw(t, "start")
		b := Backoff{
			Start:  time.Duration(start),
			Factor: rapid.Float64Range(1, 100).Draw(t, "factor"),
			Cap:    time.Duration(start + rapid.Int64Range(0, int64(time.Hour)).Draw(t, "above")),
			Jitter: rapid.Float64Range(0, 1).Draw(t, "jitter"),
		}
		d := b.delay(rapid.IntRange(1, 1e6).Draw(t, "streak"), rapid.Float64Range(0, 0.999).Draw(t, "random"))
		if d < 0 || d > b.Cap {
			t.Fatalf("delay %v outside 0 to %v", d, b.Cap)
		}
	})
}

func TestHistoryIsBoundedByTheIntensity(t *testing.T) {
	s := spec("a")
	var h history
	now := time.Unix(1e9, 0)
	for range 10000 {
		now = now.Add(25 * time.Second)
		decide(s, &h, now, 0)
		if len(h.recent) > s.Intensity.Max+1 {
			t.Fatalf("%d failures remembered", len(h.recent))
		}
	}
}

func TestTableValidation(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Spec)
		want   string // part of the error, empty for none
	}{
		{"a complete row is valid", func(*Spec) {}, ""},
		{"a row needs a kind", func(s *Spec) { s.Kind = "" }, "no kind"},
		{"a row needs a class", func(s *Spec) { s.Restart = 0 }, "class"},
		{"a row needs a give-up", func(s *Spec) { s.GiveUp = GiveUp{} }, "give-up"},
		{"a row needs a shutdown budget", func(s *Spec) { s.ShutdownBudget = 0 }, "budget"},
		{"a time until stuck below zero is refused", func(s *Spec) { s.Stuck = -1 }, "stuck"},
		{"an intensity needs a span", func(s *Spec) { s.Intensity.Within = 0 }, "span"},
		{"a factor below 1 is refused", func(s *Spec) { s.Backoff.Factor = 0.5 }, "factor"},
		{"a cap below the start is refused", func(s *Spec) { s.Backoff.Cap = 1 }, "cap"},
		{"a jitter above 1 is refused", func(s *Spec) { s.Backoff.Jitter = 1.1 }, "jitter"},
		{"Never needs no back-off", func(s *Spec) { s.Restart, s.Backoff = Never, Backoff{} }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := NewTable(spec("k", tc.change))
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("error %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if table, err := NewTable(spec("a")); err != nil || table["a"].Stuck != DefaultStuck {
		t.Errorf("row %+v, %v", table["a"], err)
	}
	if _, err := NewTable(spec("a"), spec("a")); err == nil {
		t.Error("two rows of one kind are accepted")
	}
	if err := (Table{"x": spec("a")}).Validate(); err == nil {
		t.Error("a row under another key is accepted")
	}
}
