package portal

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBackoffBeforeTheFirstSuccess(t *testing.T) {
	b := NewBackoff(DefaultBudget)
	for i := range 15 {
		if d, ok := b.Next(Failure{}, 0.9); d != time.Second || !ok {
			t.Fatalf("rule 18: retry %d: %v, %v", i+1, d, ok)
		}
	}
	if _, ok := b.Next(Failure{}, 0); ok {
		t.Error("rule 18: a 16th retry")
	}
}

func TestBackoffAfterSuccess(t *testing.T) {
	b := NewBackoff(DefaultBudget)
	b.Success()
	ceiling := time.Second
	for i := range 20 {
		d, ok := b.Next(Failure{}, float64(i%10)/10)
		if !ok || d < ceiling/2-time.Microsecond || d >= ceiling {
			t.Fatalf("rule 19: retry %d: %v is not in [%v, %v)", i+1, d, ceiling/2, ceiling)
		}
		ceiling = min(time.Duration(float64(ceiling)*1.5), time.Minute)
	}
	b.Success()
	if d, ok := b.Next(Failure{}, 0); d != 500*time.Millisecond || !ok {
		t.Errorf("after a second success: %v, %v", d, ok)
	}
}

func TestBackoffBudget(t *testing.T) {
	b := NewBackoff(2 * time.Second)
	b.Success()
	if d, ok := b.Next(Failure{}, 0); d != 500*time.Millisecond || !ok {
		t.Fatal(d, ok)
	}
	for range 100 {
		if d, ok := b.Next(Failure{HasRetryAfter: true, RetryAfter: 30 * time.Second}, 0); d != 30*time.Second || !ok {
			t.Fatal("rule 17: Retry-After is not the delay:", d, ok)
		}
	}
	for range 100 {
		if d, ok := b.Next(Failure{HasRetryAfter: true}, 0.5); d != 0 || !ok {
			t.Fatal("a Retry-After of zero is not passed on as it is:", d, ok)
		}
	}
	if d, ok := b.Next(Failure{}, 0); d != 750*time.Millisecond || !ok {
		t.Fatal("rule 17: Retry-After moved the back-off:", d, ok)
	}
	if d, ok := b.Next(Failure{}, 0); ok {
		t.Fatal("budget exceeded by", d)
	}
	if _, ok := b.Next(Failure{Fatal: true, HasRetryAfter: true}, 0); ok {
		t.Error("a fatal failure is retried")
	}
}

func TestBackoffNeverExceedsItsBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		budget := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "budget"))
		b := NewBackoff(budget)
		b.Success()
		var sum time.Duration
		for range 2000 {
			d, ok := b.Next(Failure{}, rapid.Float64Range(0, 0.999).Draw(t, "random"))
			if !ok {
				return
			}
			if d < 500*time.Millisecond || d > time.Minute {
				t.Fatalf("delay %v", d)
			}
			if sum += d; sum > budget {
				t.Fatalf("%v of %v", sum, budget)
			}
		}
		t.Fatal("an hour of delays lasted for 2000 attempts")
	})
}
