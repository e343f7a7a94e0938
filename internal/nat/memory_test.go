//go:build !race

package nat

import (
	"runtime"
	"testing"
)

// A million sessions take at most 200 MB: the budget of a gateway with 1,000
// clients of 1,000 flows each, with as much again left for the rest of it in a
// machine of 512 MB. The race detector would add its own.
func TestAMillionSessionsFitIntoTheirBudget(t *testing.T) {
	const sessions, budget = 1_000_000, 200 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := crowd(t, sessions, false)
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := after.HeapAlloc - before.HeapAlloc
	t.Logf("%d bytes each", used/sessions)
	if used > budget {
		t.Errorf("%d sessions take %d MB", sessions, used>>20)
	}
	if got := table.Stats().Sessions; got != sessions {
		t.Errorf("%d sessions", got)
	}
}
