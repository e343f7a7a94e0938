package actorkit

import (
	"math"
	"time"
)

// decision is what a supervisor does about one failure.
type decision struct {
	restart bool // false: give up
	delay   time.Duration
}

// history is what a supervisor remembers about one child.
type history struct {
	recent  []time.Time   // failures of the row within Intensity.Within, at most Max+1
	streak  int           // failures without a healthy incarnation in between
	last    time.Time     // the last failure
	waiting time.Duration // from there to the restart
	stuck   time.Duration // at the end of the incarnation, spent in a handler that is stuck
}

// decide judges a failure at now and records it in h. random is in [0, 1).
func decide(s Spec, h *history, now time.Time, random float64) decision {
	h.record(s, now)
	if s.Restart == Never || (s.Intensity.Max > 0 && len(h.recent) > s.Intensity.Max) {
		return decision{}
	}
	h.waiting = s.Backoff.delay(h.streak, random)
	return decision{restart: true, delay: h.waiting}
}

func (h *history) record(s Spec, now time.Time) {
	healthy := now.Sub(h.last) - h.waiting - h.stuck
	if reset := s.Backoff.ResetAfter; reset > 0 && healthy >= reset {
		h.streak, h.recent = 0, h.recent[:0]
	}
	h.streak++
	h.last, h.stuck = now, 0

	if s.Intensity.Max == 0 {
		return
	}
	keep := h.recent[:0]
	for _, t := range h.recent {
		if now.Sub(t) < s.Intensity.Within {
			keep = append(keep, t)
		}
	}
	h.recent = append(keep, now)
}

func (b Backoff) delay(streak int, random float64) time.Duration {
	d := float64(b.Start) * math.Pow(b.Factor, float64(streak-1))
	// Not min: the power overflows to +Inf in a long row, and 0·Inf is NaN.
	if !(d <= float64(b.Cap)) {
		d = float64(b.Cap)
	}
	if b.Start == 0 {
		d = 0
	}
	return time.Duration(d * (1 - b.Jitter*random))
}
