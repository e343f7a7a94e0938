package host

import (
	"testing"
	"time"
)

func TestSuspensionIsToldFromEverythingElse(t *testing.T) {
	// at is a reading after awake time, with slept of suspension since boot.
	at := func(awake, slept time.Duration) clocks { return clocks{awake, awake + slept, awake} }
	const s = time.Second
	type step struct {
		clocks  clocks
		resumed bool
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"a host that is awake", []step{{at(100*s, 0), false}, {at(103*s, 0), false}, {at(106*s, 0), false}}},
		{"suspensions before the first look do not count", []step{{at(100*s, 900*s), false}, {at(103*s, 900*s), false}}},
		{"a night", []step{{at(100*s, 0), false}, {at(102*s, 28800*s), true}, {at(105*s, 28800*s), false}}},
		{"each of two nights", []step{{at(100*s, 0), false}, {at(102*s, 28800*s), true}, {at(105*s, 57600*s), true}, {at(108*s, 57600*s), false}}},
		{"the threshold itself is too short", []step{{at(100*s, 0), false}, {at(103*s, 5*s), false}, {at(106*s, 10*s), false}}},
		{"just above the threshold", []step{{at(100*s, 7*s), false}, {at(103*s, 12*s+1), true}}},
		{"many short suspensions do not add up", []step{{at(100*s, 0), false}, {at(103*s, 4*s), false}, {at(106*s, 8*s), false}, {at(109*s, 12*s), false}}},
		{"a process that did not run for an hour", []step{{at(100*s, 0), false}, {at(3700*s, 0), false}}},
		{"a thread that stands still before the boot clock", []step{
			{at(100*s, 0), false}, {clocks{103 * s, 203 * s, 203 * s}, false}, {at(206*s, 0), false},
		}},
		{"a thread that stands still after the boot clock", []step{
			{at(100*s, 0), false}, {clocks{103 * s, 103 * s, 203 * s}, false}, {at(206*s, 0), false},
		}},
		{"a suspension in a reading before the boot clock", []step{
			{at(100*s, 0), false}, {clocks{103 * s, 163 * s, 103 * s}, true}, {at(106*s, 60*s), false},
		}},
		{"a suspension in a reading after the boot clock", []step{
			{at(100*s, 0), false}, {clocks{103 * s, 103 * s, 103 * s}, false}, {at(106*s, 60*s), true}, {at(109*s, 60*s), false},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d suspension
			for i, step := range tc.steps {
				if slept, resumed := d.look(step.clocks); resumed != step.resumed {
					t.Errorf("look %d at %v: resumed %v after %v", i, step.clocks, resumed, slept)
				}
			}
		})
	}
}

func TestSuspensionTellsForHowLong(t *testing.T) {
	var d suspension
	d.look(clocks{100, 150, 100})
	if slept, resumed := d.look(clocks{200, 250 + time.Hour, 200}); !resumed || slept != time.Hour {
		t.Errorf("slept %v, resumed %v, want an hour", slept, resumed)
	}
}

func TestTheKernelsClocksShowNoSuspensionWhereThereIsNone(t *testing.T) {
	var d suspension
	for range 1000 {
		c, err := readClocks()
		if err != nil {
			t.Fatal(err)
		}
		if c.before <= 0 || c.after < c.before || c.boot <= 0 {
			t.Fatalf("reading %v", c)
		}
		if slept, resumed := d.look(c); resumed {
			t.Fatalf("resumed after %v", slept)
		}
	}
}
