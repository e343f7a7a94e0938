package chaos

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	good := Options{Duration: time.Minute}
	for _, tc := range []struct {
		name  string
		o     func(*Options)
		parts []string
		want  string
	}{
		{"the defaults", func(*Options) {}, Parts, ""},
		{"a kind", func(o *Options) { o.Kinds = []string{"peer", Random, Each} }, nil, ""},
		{"another kind", func(o *Options) { o.Kinds = []string{"gateway"} }, nil, `kind "gateway"`},
		{"another fault", func(o *Options) { o.Fault = "burn" }, nil, `fault "burn"`},
		{"no time", func(o *Options) { o.Duration = 0 }, nil, "a second"},
		{"another part", func(*Options) {}, []string{"all"}, `part "all"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := good
			tc.o(&o)
			err := Check(o, tc.parts)
			if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestEndingsAreThoseOfTheTable holds what is expected here to what the project
// promises.
func TestEndingsAreThoseOfTheTable(t *testing.T) {
	text, err := os.ReadFile("../../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "<!-- actors.Table begins -->")
	table, _, ok := strings.Cut(rest, "<!-- actors.Table ends -->")
	if !ok {
		t.Fatal("the document has no supervision table")
	}
	column := -1
	promised := map[string]Ending{}
	for line := range strings.Lines(strings.TrimSpace(table)) {
		cells := strings.Split(line, "|")
		if column < 0 {
			column = slices.IndexFunc(cells, func(c string) bool { return strings.TrimSpace(c) == "gives up at" })
			continue
		}
		kind := strings.Trim(cells[1], " `")
		if column < 0 || strings.HasPrefix(kind, "-") {
			continue
		}
		switch how := cells[column]; {
		case strings.Contains(how, "exit 1"):
			promised[kind] = Exits
		case strings.Contains(how, "degrade"):
			promised[kind] = Gone
		case strings.Contains(how, "never"):
			promised[kind] = Stays
		default:
			t.Errorf("%s gives up at %q", kind, how)
		}
	}
	if !maps.Equal(promised, Endings) {
		t.Errorf("the table promises %v, expected are %v", promised, Endings)
	}
	kinds := slices.Sorted(maps.Keys(promised))
	if got := slices.Sorted(slices.Values(append([]string{"gateway"}, Kinds...))); !slices.Equal(got, kinds) {
		t.Errorf("kinds are %v, the table has %v", got, kinds)
	}
}

func flow(begin time.Time, pace time.Duration, trips ...time.Duration) *echoFlow {
	f := &echoFlow{begin: begin, pace: pace, trips: trips}
	for i := range trips {
		f.sent = append(f.sent, time.Duration(i)*pace)
	}
	return f
}

func TestEchoesAreAccountedFor(t *testing.T) {
	begin, quick := time.Now(), time.Millisecond
	for _, tc := range []struct {
		name    string
		trips   []time.Duration
		outside []time.Duration
		want    Echo
	}{
		{"all are back", []time.Duration{quick, quick, quick}, []time.Duration{quick, quick, quick}, Echo{Sent: 3}},
		{"one is lost", []time.Duration{quick, 0, quick}, []time.Duration{quick, quick, quick}, Echo{Sent: 3, Lost: 1}},
		{"one is late", []time.Duration{quick, late + quick, quick}, []time.Duration{quick, quick, quick}, Echo{Sent: 3, Lost: 1, Late: 1}},
		{"one is lost while the machine stands still", []time.Duration{quick, 0, quick}, []time.Duration{quick, 2 * disturbed, quick}, Echo{Sent: 3, Lost: 1, Excused: 1}},
		{"one is lost as others are outside", []time.Duration{quick, 0, quick}, []time.Duration{quick, 0, quick}, Echo{Sent: 3, Lost: 1, Excused: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spans := flow(begin, 10*time.Millisecond, tc.outside...).disturbances()
			e := flow(begin, 10*time.Millisecond, tc.trips...).account(spans)
			got := Echo{Sent: e.Sent, Lost: e.Lost, Late: e.Late, Excused: e.Excused}
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestALossLongAfterADisturbanceIsNoExcuse(t *testing.T) {
	begin, pace := time.Now(), 10*time.Millisecond
	outside := make([]time.Duration, 200)
	trips := make([]time.Duration, 200)
	for i := range trips {
		outside[i], trips[i] = time.Millisecond, time.Millisecond
	}
	outside[10] = 2 * disturbed
	trips[12], trips[150] = 0, 0
	e := flow(begin, pace, trips...).account(flow(begin, pace, outside...).disturbances())
	if e.Lost != 2 || e.Excused != 1 {
		t.Errorf("%d lost, %d of them excused", e.Lost, e.Excused)
	}
	if share := e.Share(); share != 1.0/200 {
		t.Errorf("share is %v", share)
	}
}

func TestLongestStall(t *testing.T) {
	at := func(ms ...int) (list []time.Duration) {
		for _, m := range ms {
			list = append(list, time.Duration(m)*time.Millisecond)
		}
		return list
	}
	for _, tc := range []struct {
		name           string
		sent, arrivals []time.Duration
		want           time.Duration
	}{
		{"nothing was sent", nil, nil, 0},
		{"nothing came", at(0, 10, 20), nil, 20 * time.Millisecond},
		{"an even flow", at(0, 10, 20), at(1, 11, 21), time.Millisecond},
		{"a hole", at(0, 10, 20, 30, 40), at(1, 41), 31 * time.Millisecond},
		{"a pause of the sender is none", at(0, 100), at(1, 101), time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := longestStall(tc.sent, tc.arrivals); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLeaksAreWhatPassesWhileItIsForbidden(t *testing.T) {
	begin := time.Now()
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	for _, tc := range []struct {
		name          string
		sent, arrived int
		leak          bool
	}{
		{"before", 1, 1, false},
		{"sent before, arrived meanwhile", 1, 3, false},
		{"meanwhile", 3, 3, true},
		{"sent meanwhile, arrived after it was admitted again", 3, 5, false},
		{"after", 5, 5, false},
		{"in the interval that has no end", 7, 8, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &probe{forbidden: []interval{{at(2), at(4)}, {from: at(6)}}}
			p.note(at(tc.sent), at(tc.arrived))
			if got := p.account(); (got.Leaks == 1) != tc.leak || got.Arrived != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestTrackerCountsThroughReplacement(t *testing.T) {
	tr := &tracker{last: map[string]actor{}, restarts: map[string]int{}, byPath: map[string]int{}}
	for _, restarts := range []uint64{0, 2, 3, 1, 1} { // replaced between 3 and 1
		tr.count(status{Actors: []actor{{Path: "gateway/peers/a", Kind: "peer", Restarts: restarts}, {Path: "gateway/tun", Kind: "tun"}}})
	}
	tr.count(status{Actors: []actor{{Path: "gateway/tun", Kind: "tun", Restarts: 1}}})
	if got := tr.counted(); !maps.Equal(got, map[string]int{"peer": 4, "tun": 1}) {
		t.Errorf("counted %v", got)
	}
	if got := tr.except("gateway/peers/a"); got != 1 {
		t.Errorf("%d restarts of others", got)
	}
}

func TestMetricsAreRead(t *testing.T) {
	samples, err := parseMetrics(strings.NewReader(`# HELP actor_restarts_total Restarts of actors.
# TYPE actor_restarts_total counter
actor_restarts_total{actor_kind="peer",otel_scope_name="connlib"} 12
go_goroutine_count 41

x{a="1",b="two"} 1.5e+06
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 3 || samples[0].name != restartsMetric || samples[0].label(kindLabel) != "peer" || samples[0].value != 12 {
		t.Errorf("got %+v", samples)
	}
	if samples[1].value != 41 || samples[2].label("b") != "two" || samples[2].label("c") != "" || samples[2].value != 1.5e6 {
		t.Errorf("got %+v", samples)
	}
	if _, err := parseMetrics(strings.NewReader("nonsense\n")); err == nil {
		t.Error("a line without a value was accepted")
	}
}

func TestTrends(t *testing.T) {
	line := func(n int, value func(i int) float64) (at, values []float64) {
		for i := range n {
			at, values = append(at, float64(10*i)), append(values, value(i))
		}
		return at, values
	}
	jitter := []float64{0, 3, -2, 1, -3, 2, -1}
	for _, tc := range []struct {
		name  string
		value func(i int) float64
		flat  bool
	}{
		{"level", func(int) float64 { return 100 }, true},
		{"noise", func(i int) float64 { return 100 + jitter[i%7] }, true},
		{"a saw", func(i int) float64 { return 100 + float64(i%10)*5 }, true},
		{"a leak", func(i int) float64 { return 100 + float64(i) }, false},
		{"a leak in noise", func(i int) float64 { return 100 + float64(i) + jitter[i%7] }, false},
		{"shrinking", func(i int) float64 { return 500 - float64(i) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			trend := fitTrend(line(120, tc.value))
			if trend.flat() != tc.flat {
				t.Errorf("flat is %v: %+v", trend.flat(), trend)
			}
		})
	}
	at, values := line(61, func(i int) float64 { return float64(i) })
	if trend := fitTrend(at, values); trend.Slope < 359 || trend.Slope > 361 || trend.Growth < 59.9 || trend.Growth > 60.1 {
		t.Errorf("one every ten seconds is %+v", trend)
	}
	if trend := fitTrend(nil, nil); trend != (Trend{}) {
		t.Errorf("nothing is %+v", trend)
	}
}

func TestBrokenLoadsAreFound(t *testing.T) {
	good := func() Load {
		asked := Asking{Asked: 10}
		echo := Echo{Sent: 10000}
		stream := Stream{Bytes: 1, Whole: true, Intact: true}
		return Load{
			Echo: echo, House: echo, Outside: echo, Down: stream, Up: stream,
			Secret: Access{Sent: 10}, Revoked: Access{Sent: 10, Arrived: 1}, Cycles: Cycles{Done: 1},
			Queries: asked, SetUps: asked, Flows: asked,
		}
	}
	reset := fmt.Errorf("download: %w", &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)})
	for _, tc := range []struct {
		name  string
		spoil func(*Load)
		lossy bool
		want  string
	}{
		{"nothing", func(*Load) {}, false, ""},
		{"a reset", func(l *Load) { l.Down = Stream{Error: reset.Error(), reset: wasReset(reset)} }, false, "was reset"},
		{"another failure", func(l *Load) { l.Up = Stream{Error: "deadline"} }, false, "upload: deadline"},
		{"a wrong byte", func(l *Load) { l.Up.Intact = false }, false, "intact: false"},
		{"a missing byte", func(l *Load) { l.Down.Whole = false }, false, "download: 1 bytes"},
		{"0.1 % lost", func(l *Load) { l.Echo.Lost, l.House.Lost = 15, 5 }, false, ""},
		{"more lost", func(l *Load) { l.Echo.Lost, l.House.Lost = 15, 6 }, false, "21 of 20000 datagrams lost"},
		{"more lost with an excuse", func(l *Load) { l.House.Lost, l.House.Excused = 21, 1 }, false, ""},
		{"no datagrams by name", func(l *Load) { l.House = Echo{} }, false, "0 datagrams were sent"},
		{"a leak", func(l *Load) { l.Secret.Leaks = 1 }, true, "without a grant"},
		{"a leak after revocation", func(l *Load) { l.Revoked.Leaks = 1 }, true, "a revoked resource"},
		{"a leak between grants", func(l *Load) { l.Cycled.Leaks = 1 }, false, "between revocation and grant"},
		{"a leak because the revocation was dropped", func(l *Load) { l.Cycled.Leaks = 1 }, true, ""},
		{"a probe that never worked", func(l *Load) { l.Revoked.Arrived = 0 }, false, "never reached"},
		{"no answer", func(l *Load) { l.Queries.Unanswered = 1 }, false, "DNS queries"},
		{"no flow", func(l *Load) { l.Flows.Unanswered = 1 }, false, "new flows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := good()
			tc.spoil(&l)
			var r Result
			l.judge(&r, defaultTolerance, tc.lossy)
			if text := strings.Join(r.Broken, "\n"); (text == "") != (tc.want == "") || !strings.Contains(text, tc.want) {
				t.Errorf("broken: %s", text)
			}
		})
	}
}

func TestWasResetKnowsResets(t *testing.T) {
	if wasReset(errors.New("timeout")) || !wasReset(fmt.Errorf("x: %w", syscall.EPIPE)) {
		t.Error("resets are not told from other errors")
	}
}
