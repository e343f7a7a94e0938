package dns

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	nsA = netip.MustParseAddr("192.0.2.1")
	nsB = netip.MustParseAddr("192.0.2.2")
	nsC = netip.MustParseAddr("192.0.2.3")
)

func TestHealthOrdersNameServers(t *testing.T) {
	const ms = time.Millisecond
	answered := func(a netip.Addr, rtt time.Duration) func(*health, time.Time) {
		return func(h *health, now time.Time) { h.answered(a, rtt, now) }
	}
	failed := func(a netip.Addr) func(*health, time.Time) {
		return func(h *health, now time.Time) { h.failed(a, now) }
	}
	overtaken := func(a netip.Addr, waited time.Duration) func(*health, time.Time) {
		return func(h *health, now time.Time) { h.overtaken(a, waited, now) }
	}
	all := func(steps ...func(*health, time.Time)) func(*health, time.Time) {
		return func(h *health, now time.Time) {
			for _, s := range steps {
				s(h, now)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		before func(*health, time.Time)
		after  time.Duration
		want   []netip.Addr
	}{
		{"at first in the order of the file", all(), 0, []netip.Addr{nsA, nsB, nsC}},
		{"by time of answers", all(answered(nsA, 30*ms), answered(nsB, 10*ms), answered(nsC, 20*ms)), 0, []netip.Addr{nsB, nsC, nsA}},
		{"who is unknown gets a try", all(answered(nsA, 10*ms)), 0, []netip.Addr{nsB, nsC, nsA}},
		{"who failed is last", all(failed(nsA)), 0, []netip.Addr{nsB, nsC, nsA}},
		{"who failed is behind the slow", all(failed(nsA), answered(nsB, time.Second), answered(nsC, 2*time.Second)), 0, []netip.Addr{nsB, nsC, nsA}},
		{"of those who failed the first to be forgiven", all(failed(nsB), failed(nsA), failed(nsC)), 0, []netip.Addr{nsA, nsB, nsC}},
		{"after the penalty there is another try", all(answered(nsB, 10*ms), answered(nsC, 10*ms), failed(nsA)), penaltyUnit, []netip.Addr{nsA, nsB, nsC}},
		{"an old best time is forgotten", all(answered(nsC, ms), answered(nsB, 10*ms), answered(nsA, 20*ms)), measureFor, []netip.Addr{nsA, nsB, nsC}},
		{"a time counts for almost a minute", all(answered(nsC, ms), answered(nsB, 10*ms), answered(nsA, 20*ms)), measureFor - 1, []netip.Addr{nsC, nsB, nsA}},
		{"who was overtaken is as slow as that", all(answered(nsA, ms), answered(nsB, 100*ms), answered(nsC, 400*ms), overtaken(nsA, 300*ms)), 0, []netip.Addr{nsB, nsA, nsC}},
		{"being overtaken early says nothing", all(answered(nsA, 50*ms), answered(nsB, 60*ms), answered(nsC, 70*ms), overtaken(nsA, 10*ms)), 0, []netip.Addr{nsA, nsB, nsC}},
		{"an answer ends the penalty", all(failed(nsA), answered(nsA, ms), answered(nsB, 2*ms), answered(nsC, 3*ms)), 0, []netip.Addr{nsA, nsB, nsC}},
		{"strangers do not count", all(answered(netip.MustParseAddr("192.0.2.9"), ms), failed(netip.MustParseAddr("192.0.2.9")), overtaken(netip.MustParseAddr("192.0.2.9"), ms)), 0, []netip.Addr{nsA, nsB, nsC}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h health
			h.configure([]netip.Addr{nsA, nsB, nsC})
			now := time.Unix(1000, 0)
			tc.before(&h, now)
			if got := h.order(now.Add(tc.after)); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestMeasurementsCountForAMinute(t *testing.T) {
	if measureFor != time.Minute || penaltyMax >= measureFor {
		t.Errorf("defect 9: a measurement counts for %v, a failure for up to %v", measureFor, penaltyMax)
	}
}

func TestHealthTriesAnUnknownServerWithOneQuery(t *testing.T) {
	var h health
	h.configure([]netip.Addr{nsA, nsB})
	now := time.Unix(1000, 0)
	h.answered(nsB, time.Millisecond, now)
	for i, tc := range []struct {
		at   time.Duration
		want netip.Addr
	}{{0, nsA}, {0, nsB}, {probeFor - 1, nsB}, {probeFor, nsA}, {probeFor, nsB}} {
		if got := h.order(now.Add(tc.at))[0]; got != tc.want {
			t.Errorf("query %d goes to %v, want %v", i, got, tc.want)
		}
	}
}

func TestHealthPunishesLongerUpToALimit(t *testing.T) {
	var h health
	h.configure([]netip.Addr{nsA, nsB})
	now := time.Unix(1000, 0)
	for i, seconds := range []int{1, 2, 4, 8, 16, 32, 32, 32} {
		h.failed(nsA, now)
		h.failed(nsA, now) // a query that ran at the same time
		end := now.Add(time.Duration(seconds) * time.Second)
		if r := h.find(nsA); !r.until.Equal(end) {
			t.Fatalf("failure %d is punished for %v, want %d s", i, r.until.Sub(now), seconds)
		}
		now = end
	}
	h.answered(nsA, time.Millisecond, now)
	h.failed(nsA, now)
	if r := h.find(nsA); r.until.Sub(now) != penaltyUnit {
		t.Errorf("after an answer a failure is punished for %v", r.until.Sub(now))
	}
}

func TestHealthSmoothsRoundTripTimes(t *testing.T) {
	var h health
	h.configure([]netip.Addr{nsA})
	now := time.Unix(1000, 0)
	h.answered(nsA, 80*time.Millisecond, now)
	h.answered(nsA, 160*time.Millisecond, now)
	if r := h.find(nsA); r.rtt != 90*time.Millisecond {
		t.Errorf("got %v, want 90ms", r.rtt)
	}
	h.answered(nsA, 10*time.Millisecond, now.Add(measureFor))
	if r := h.find(nsA); r.rtt != 10*time.Millisecond {
		t.Errorf("an old measurement counts: %v", r.rtt)
	}
}

func TestHealthKeepsWhatItKnowsOfServersThatStay(t *testing.T) {
	var h health
	h.configure([]netip.Addr{nsA, nsB})
	now := time.Unix(1000, 0)
	h.answered(nsA, time.Millisecond, now)
	h.answered(nsB, 2*time.Millisecond, now)
	h.configure([]netip.Addr{nsC, nsB})
	h.answered(nsC, 3*time.Millisecond, now)
	if got := h.order(now); !slices.Equal(got, []netip.Addr{nsB, nsC}) {
		t.Errorf("got %v", got)
	}
}

func TestHealthSaysHowLongToWait(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name      string
		rtt, want time.Duration
	}{
		{"without measurement", 0, hedgeUnknown},
		{"for a near server", ms, hedgeMin},
		{"for a server at some distance", 100 * ms, 300 * ms},
		{"for a slow server", 3 * time.Second, hedgeMax},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h health
			h.configure([]netip.Addr{nsA})
			now := time.Unix(1000, 0)
			if tc.rtt > 0 {
				h.answered(nsA, tc.rtt, now)
			}
			if got := h.hedge(nsA, now); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestHealthNeverLosesAServer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h health
		servers := []netip.Addr{nsA, nsB, nsC}
		h.configure(servers)
		now := time.Unix(1000, 0)
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*measureFor)).Draw(t, "pause")))
			a := rapid.SampledFrom(servers).Draw(t, "server")
			d := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "rtt"))
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				h.answered(a, d, now)
			case 1:
				h.failed(a, now)
			case 2:
				h.overtaken(a, d, now)
			case 3:
				got := h.order(now)
				if slices.SortFunc(got, netip.Addr.Compare); !slices.Equal(got, servers) {
					t.Fatalf("order %v", got)
				}
			}
			if w := h.hedge(a, now); w < hedgeMin || w > hedgeMax {
				t.Fatalf("hedge %v", w)
			}
			if r := h.find(a); r.until.Sub(now) > penaltyMax {
				t.Fatalf("a penalty of %v", r.until.Sub(now))
			}
		}
	})
}
