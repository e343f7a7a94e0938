package portal

import (
	"math"
	"time"
)

// Delays between attempts (§2.2, generation 1.6).
const (
	// DefaultBudget is the default for NewBackoff.
	DefaultBudget = 24 * time.Hour

	startDelay  = time.Second
	startBudget = 15 * time.Second

	firstDelay  = 500 * time.Millisecond
	growth      = 1.5
	longestWait = time.Minute
)

// Backoff paces the attempts to reach the portal. Before the first success it
// waits a constant second and gives up after 15; a gateway that can not start
// should say so quickly. Afterwards delays grow, and the sum of all delays since
// the last success is held below a budget.
type Backoff struct {
	budget  time.Duration
	spent   time.Duration
	failed  int
	started bool // succeeded at least once
}

// NewBackoff returns a Backoff whose delays after the first success add up to
// at most budget.
func NewBackoff(budget time.Duration) *Backoff { return &Backoff{budget: budget} }

// Success records a successful join, the only thing that resets b as a whole.
func (b *Backoff) Success() {
	b.started, b.spent, b.failed = true, 0, 0
}

// Hurry makes the next delays short again, as after a change of the network. The
// budget goes on.
func (b *Backoff) Hurry() { b.failed = 0 }

// Next returns the delay before the attempt that follows f. ok is false if there
// is to be none, because f is fatal or the budget is used up. A Retry-After in f
// is the delay and costs no budget; it may be zero. random is in [0, 1).
//
// The n-th delay after a success lies between 0.5 s × 1.5ⁿ and twice that, and
// is never above a minute; near that ceiling the jitter goes downwards, so that
// gateways do not return in step.
func (b *Backoff) Next(f Failure, random float64) (delay time.Duration, ok bool) {
	if f.Fatal {
		return 0, false
	}
	if f.HasRetryAfter {
		return f.RetryAfter, true
	}
	delay, budget := startDelay, startBudget
	if b.started {
		budget = b.budget
		ceiling := min(2*float64(firstDelay)*math.Pow(growth, float64(b.failed)), float64(longestWait))
		delay = time.Duration(ceiling / 2 * (1 + random))
	}
	if b.spent+delay > budget {
		return 0, false
	}
	b.spent += delay
	b.failed++
	return delay, true
}
