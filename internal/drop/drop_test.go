package drop

import "testing"

func TestEveryReasonHasAName(t *testing.T) {
	seen := map[string]Reason{}
	for r := None; r < Count; r++ {
		name := r.String()
		if name == "" {
			t.Errorf("reason %d has no name", r)
		}
		if other, dup := seen[name]; dup {
			t.Errorf("reasons %d and %d share the name %q", other, r, name)
		}
		seen[name] = r
	}
	if got := Count.String(); got != "invalid" {
		t.Errorf("Count.String() = %q, want invalid", got)
	}
}

func TestCountersCountOnlyKnownReasons(t *testing.T) {
	var c Counters
	c.Add(NoResource, 2)
	c.Add(NoResource, 1)
	c.Add(None, 5)
	c.Add(Count, 5)
	if got := c.Load(NoResource); got != 3 {
		t.Errorf("Load(NoResource) = %d, want 3", got)
	}
	calls := 0
	c.Each(func(r Reason, n uint64) {
		calls++
		if r != NoResource || n != 3 {
			t.Errorf("Each yielded %v=%d", r, n)
		}
	})
	if calls != 1 {
		t.Errorf("Each called %d times, want 1", calls)
	}
}
