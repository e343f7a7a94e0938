package host

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	wired4    = nextHop{unix.AF_INET, 2, netip.MustParseAddr("192.0.2.1")}
	wired6    = nextHop{unix.AF_INET6, 2, netip.MustParseAddr("fe80::1")}
	wireless4 = nextHop{unix.AF_INET, 3, netip.MustParseAddr("198.51.100.1")}
	modem4    = nextHop{unix.AF_INET, 4, netip.Addr{}}
	modem6    = nextHop{unix.AF_INET6, 4, netip.Addr{}}
)

func setOf(hops ...nextHop) routeSet {
	s := routeSet{}
	for _, h := range hops {
		s[h] = struct{}{}
	}
	return s
}

func TestSettledRoutesAreAChangeIfTheyDiffer(t *testing.T) {
	other := func(h nextHop, link int, gateway string) nextHop {
		h.link, h.gateway = link, netip.MustParseAddr(gateway)
		return h
	}
	type step struct {
		set    routeSet
		change bool
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"nothing differs", []step{{setOf(wired4, wired6), false}, {setOf(wired6, wired4), false}}},
		{"another gateway", []step{{setOf(wired4), false}, {setOf(other(wired4, 2, "192.0.2.254")), true}}},
		{"the same gateway on another link", []step{{setOf(wired4), false}, {setOf(other(wired4, 3, "192.0.2.1")), true}}},
		{"another family of the same link", []step{{setOf(modem4), false}, {setOf(modem6), true}}},
		{"one more way and one less", []step{
			{setOf(wired4), false}, {setOf(wired4, wireless4), true}, {setOf(wired4, wireless4), false}, {setOf(wireless4), true},
		}},
		{"one family is lost and comes back", []step{{setOf(wired4, wired6), false}, {setOf(wired4), true}, {setOf(wired4, wired6), true}}},
		{"the same comes back after all are lost", []step{{setOf(wired4), false}, {setOf(), false}, {setOf(wired4), false}}},
		{"another comes back after all are lost", []step{
			{setOf(wired4), false}, {setOf(), false}, {setOf(), false}, {setOf(wireless4), true}, {setOf(wireless4), false},
		}},
		{"what came back counts from then on", []step{
			{setOf(wired4), false}, {setOf(), false}, {setOf(wireless4), true}, {setOf(), false}, {setOf(wireless4), false}, {setOf(wired4), true},
		}},
		{"the first routes of a host that had none", []step{{setOf(), false}, {setOf(), false}, {setOf(wired4), true}}},
		{"there and back is two changes", []step{{setOf(wired4), false}, {setOf(wireless4), true}, {setOf(wired4), true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s settling
			for i, step := range tc.steps {
				if got := s.settle(step.set); got != step.change {
					t.Errorf("set %d, %v: change %v", i, step.set, got)
				}
			}
		})
	}
}

func TestRoutesSettle(t *testing.T) {
	const s = time.Second
	start := time.Now()
	touch := func(w *settling, after time.Duration) { w.touch(start.Add(after)) }
	postpone := func(w *settling, after time.Duration) { w.postpone(start.Add(after)) }
	settle := func(w *settling, _ time.Duration) { w.settle(setOf(wired4)) }
	type step struct {
		do    func(*settling, time.Duration)
		after time.Duration
	}
	var churn []step
	for after := 40 * s; after < 55*s; after += s / 2 {
		churn = append(churn, step{touch, after})
	}
	for _, tc := range []struct {
		name  string
		steps []step
		want  time.Duration // 0: never
	}{
		{"never without a touch", nil, 0},
		{"a second after a touch", []step{{touch, 3 * s}}, 4 * s},
		{"a second after the last touch", []step{{touch, 3 * s}, {touch, 3*s + s/2}, {touch, 4 * s}}, 5 * s},
		{"not again after a look", []step{{touch, 3 * s}, {settle, 4 * s}}, 0},
		{"again after a touch after a look", []step{{touch, 3 * s}, {settle, 4 * s}, {touch, 20 * s}}, 21 * s},
		{"ten seconds after the first touch at the latest", churn, 50 * s},
		{"anew after the look at that time", slices.Concat(churn, []step{{settle, 50 * s}}, churn[20:22]), 51*s + s/2},
		{"five seconds after a look that failed", []step{{touch, 3 * s}, {postpone, 4 * s}}, 9 * s},
		{"earlier if touched after a look that failed", []step{{touch, 3 * s}, {postpone, 4 * s}, {touch, 5 * s}}, 6 * s},
		{"ten seconds after a look that failed in churn", slices.Concat([]step{{touch, 31 * s}, {postpone, 39 * s}}, churn), 49 * s},
		{"after a first look that failed", []step{{postpone, 1 * s}}, 6 * s},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := settling{pace: defaultPace}
			for _, step := range tc.steps {
				step.do(&w, step.after)
			}
			at, pending := w.due()
			if pending != (tc.want != 0) || pending && at.Sub(start) != tc.want {
				t.Errorf("due %v after the start (pending %v), want %v", at.Sub(start), pending, tc.want)
			}
		})
	}
}

func TestNextHopsAreReadable(t *testing.T) {
	const want = "IPv4 link 2 via 192.0.2.1, IPv6 link 2 via fe80::1, IPv6 link 4"
	if got := setOf(modem6, wired6, wired4).String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := setOf().String(); got != "" {
		t.Errorf("%q for no routes", got)
	}
}
