package scale

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Report is what a run measured. Figures of clients are of the gateway, what they
// cost themselves is in none of them.
type Report struct {
	OK      bool `json:"ok"` // every target was reached
	Relayed bool `json:"relayed"`
	Clients int  `json:"clients"`

	Connected      int     `json:"connected"`
	ConnectSeconds float64 `json:"connect_seconds"` // from the first request to the last inner answer
	ConnectCPU     Seconds `json:"connect_cpu_seconds"`
	Setup          Latency `json:"setup"`      // of all at once
	Sequential     Latency `json:"sequential"` // of one after the other

	// For each client, of the gateway: live heap after a collection, stacks of
	// goroutines, and growth of the resident memory with all garbage.
	HeapPerClient     int64 `json:"heap_per_client_bytes"`
	StacksPerClient   int64 `json:"stacks_per_client_bytes"`
	ResidentPerClient int64 `json:"resident_per_client_bytes"`

	Goroutines          int     `json:"goroutines"` // of the whole process
	GoroutinesPerClient float64 `json:"goroutines_per_client"`
	Sites               []Site  `json:"goroutine_sites"`

	IdleLoad   float64  `json:"idle_load"` // share of one processor, of all clients together
	IdleChecks counters `json:"idle_checks"`
	Awake      int      `json:"awake"` // clients that were answered after they had been idle
	Total      counters `json:"total"`

	Targets []Target `json:"targets"`
}

// Seconds is processor time. Others is what neither the gateway nor the lab used,
// network code of the kernel on their behalf included: where it is much, the
// machine was busy with other things and the times of a run say little.
type Seconds struct {
	Gateway float64 `json:"gateway"`
	Lab     float64 `json:"lab"` // clients, portal and relay
	Others  float64 `json:"others"`
}

// Latency sums up times from the portal's authorization, as it was queued for the
// gateway, to the first inner answer.
type Latency struct {
	Count  int     `json:"count"`
	Median float64 `json:"median_ms"`
	P99    float64 `json:"p99_ms"`
	Max    float64 `json:"max_ms"`
}

// String returns the figures as they are printed.
func (l Latency) String() string {
	return fmt.Sprintf("%d clients, median %.1f ms, p99 %.1f ms, slowest %.1f ms", l.Count, l.Median, l.P99, l.Max)
}

// Target is one demand and what became of it.
type Target struct {
	Name     string  `json:"name"`
	Limit    float64 `json:"limit"`
	Measured float64 `json:"measured"`
	OK       bool    `json:"ok"`
}

func newLatency(times []time.Duration) Latency {
	if len(times) == 0 {
		return Latency{}
	}
	slices.Sort(times)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return Latency{
		Count: len(times), Median: ms(rank(times, 50)), P99: ms(rank(times, 99)), Max: ms(times[len(times)-1]),
	}
}

// rank returns the smallest value that percent of the sorted values do not exceed.
func rank(sorted []time.Duration, percent int) time.Duration {
	return sorted[(len(sorted)*percent+99)/100-1]
}

func (r *Report) setFootprint(base, full footprint) {
	n := int64(r.Clients)
	r.HeapPerClient = (full.Heap - base.Heap) / n
	r.StacksPerClient = (full.Stacks - base.Stacks) / n
	r.ResidentPerClient = (full.resident - base.resident) / n
}

func (r *Report) setProcessors(before, after processors) {
	gateway, lab := after.gateway-before.gateway, after.lab-before.lab
	r.ConnectCPU = Seconds{gateway.Seconds(), lab.Seconds(), (after.all - before.all - gateway - lab).Seconds()}
}

func (r *Report) setGoroutines(total int, sites []Site) {
	r.Goroutines, r.Sites = total, sites
	for _, s := range sites {
		r.GoroutinesPerClient += s.PerClient
	}
}

// judge compares with the targets.
func (r *Report) judge(t Targets) {
	r.Targets = []Target{
		{Name: "clients connected", Limit: float64(r.Clients), Measured: float64(r.Connected), OK: r.Connected == r.Clients},
		{Name: "clients connected after idling", Limit: float64(r.Clients), Measured: float64(r.Awake), OK: r.Awake == r.Clients},
	}
	atMost := func(name string, measured, limit float64) {
		if limit > 0 {
			r.Targets = append(r.Targets, Target{name, limit, measured, measured <= limit})
		}
	}
	atMost("seconds until all are connected", r.ConnectSeconds, t.Connect.Seconds())
	atMost("KiB of heap per idle client", float64(r.HeapPerClient)/1024, float64(t.Heap)/1024)
	atMost("percent of a processor for idle clients", 100*r.IdleLoad, 100*t.Load)
	r.OK = !slices.ContainsFunc(r.Targets, func(t Target) bool { return !t.OK })
}

// Write prints the report as text.
func (r Report) Write(w io.Writer) error {
	way := "directly"
	if r.Relayed {
		way = "through a relay"
	}
	fmt.Fprintf(w, "%d simulated clients, connected %s\n\n", r.Clients, way)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("set-up, all at once", "%v", r.Setup)
	if r.Sequential.Count > 0 {
		row("set-up, one after the other", "%v", r.Sequential)
	}
	row("processor time of the set-up", "%.2f ms per client; lab %.2f s, others %.2f s",
		1000*r.ConnectCPU.Gateway/float64(r.Clients), r.ConnectCPU.Lab, r.ConnectCPU.Others)
	row("memory per idle client", "%.1f KiB of heap, %.1f KiB of stacks, %.1f KiB resident",
		float64(r.HeapPerClient)/1024, float64(r.StacksPerClient)/1024, float64(r.ResidentPerClient)/1024)
	row("goroutines", "%.1f per client, %d in all", r.GoroutinesPerClient, r.Goroutines)
	for _, s := range r.Sites {
		row("", "%.1f × %s", s.PerClient, s.Function)
	}
	row("while idle", "%d checks from clients, %d from the gateway", r.IdleChecks.ChecksSent, r.IdleChecks.ChecksReceived)
	row("in all", "%d initiations, %d cookie replies", r.Total.Initiations, r.Total.Cookies)
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(table, "TARGET\tLIMIT\tMEASURED\tOK")
	for _, t := range r.Targets {
		verdict := "ok"
		if !t.OK {
			verdict = "MISSED"
		}
		fmt.Fprintf(table, "%s\t%.4g\t%.4g\t%s\n", t.Name, t.Limit, t.Measured, verdict)
	}
	return table.Flush()
}

// difference returns what was counted between two snapshots.
func difference(before, after counters) counters {
	return counters{
		ChecksSent: after.ChecksSent - before.ChecksSent, ChecksAnswered: after.ChecksAnswered - before.ChecksAnswered,
		ChecksReceived: after.ChecksReceived - before.ChecksReceived, Initiations: after.Initiations - before.Initiations,
		Cookies: after.Cookies - before.Cookies, Echoes: after.Echoes - before.Echoes, Unknown: after.Unknown - before.Unknown,
	}
}
