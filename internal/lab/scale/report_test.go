package scale

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestLatencyRanks(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(200-i)*time.Millisecond)
	}
	if l := newLatency(times); l != (Latency{Count: 200, Median: 100, P99: 198, Max: 200}) {
		t.Errorf("latency %+v", l)
	}
	if l := newLatency([]time.Duration{time.Second}); l.Median != 1000 || l.P99 != 1000 {
		t.Errorf("latency of one %+v", l)
	}
	if l := newLatency(nil); l != (Latency{}) {
		t.Errorf("latency of none %+v", l)
	}
}

func TestTargetsAreJudged(t *testing.T) {
	targets := Targets{Connect: 20 * time.Second, Heap: 64 << 10, Load: 0.05}
	good := Report{Clients: 10, Connected: 10, Awake: 10, ConnectSeconds: 20, HeapPerClient: 64 << 10, IdleLoad: 0.05}
	for _, c := range []struct {
		name   string
		change func(*Report, *Targets)
		missed string
	}{
		{"everything at its limit", func(*Report, *Targets) {}, ""},
		{"a client is missing", func(r *Report, _ *Targets) { r.Connected = 9 }, "clients connected"},
		{"a client was lost while idle", func(r *Report, _ *Targets) { r.Awake = 9 }, "clients connected after idling"},
		{"too slow", func(r *Report, _ *Targets) { r.ConnectSeconds = 20.1 }, "seconds until all are connected"},
		{"too big", func(r *Report, _ *Targets) { r.HeapPerClient++ }, "KiB of heap per idle client"},
		{"too busy", func(r *Report, _ *Targets) { r.IdleLoad = 0.051 }, "percent of a processor for idle clients"},
		{"too busy without a target", func(r *Report, t *Targets) { r.IdleLoad, t.Load = 1, 0 }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, limits := good, targets
			c.change(&r, &limits)
			r.judge(limits)
			missed := ""
			for _, target := range r.Targets {
				if !target.OK {
					missed += target.Name
				}
			}
			if missed != c.missed || r.OK != (c.missed == "") {
				t.Errorf("missed %q, ok %v", missed, r.OK)
			}
			var text bytes.Buffer
			if err := r.Write(&text); err != nil || strings.Contains(text.String(), "MISSED") != (c.missed != "") {
				t.Errorf("report is %s, %v", text.String(), err)
			}
		})
	}
}

func TestFootprintIsSharedOut(t *testing.T) {
	r := Report{Clients: 10}
	r.setFootprint(footprint{memory{100, 10}, 1000}, footprint{memory{1100, 110}, 3000})
	if r.HeapPerClient != 100 || r.StacksPerClient != 10 || r.ResidentPerClient != 200 {
		t.Errorf("report %+v", r)
	}
	r.setProcessors(processors{time.Second, 2 * time.Second, 10 * time.Second}, processors{2 * time.Second, 5 * time.Second, 20 * time.Second})
	if r.ConnectCPU != (Seconds{1, 3, 6}) {
		t.Errorf("processors %+v", r.ConnectCPU)
	}
}
