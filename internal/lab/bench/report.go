package bench

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"

	"firezone-gateway/internal/lab/resource"
)

// Sample is one direction of one round.
type Sample struct {
	Gigabits   float64 `json:"gbit_per_second"` // that arrived
	Bytes      uint64  `json:"bytes"`           // the same
	Seconds    float64 `json:"seconds"`         // that the stream lasted
	CPUSeconds float64 `json:"cpu_seconds"`     // of the process in the middle
	PeakRSS    uint64  `json:"peak_rss_bytes"`  // while it lasted
	peakBefore uint64  // since the sample before
	// Forwarded is the payload that the relay moved in the stream's direction:
	// the stream and what WireGuard and TCP add to it.
	Forwarded uint64 `json:"relay_bytes"`
}

// Series is one direction of one way.
type Series struct {
	Rounds     []Sample `json:"rounds"`
	Median     float64  `json:"median_gbit_per_second"`
	CPUSeconds float64  `json:"cpu_seconds"`         // in all rounds
	PerCPU     float64  `json:"gbit_per_cpu_second"` // over all rounds
	PeakRSS    uint64   `json:"peak_rss_bytes"`      // in all rounds
	Forwarded  uint64   `json:"relay_bytes"`         // in all rounds
}

// Way is what was measured of one process in the middle.
type Way struct {
	Name    string `json:"name"`
	To      Series `json:"to_resource"`
	From    Series `json:"from_resource"`
	PeakRSS uint64 `json:"peak_rss_bytes"` // from the start of its process on
}

// Report is what came of a run. The first way is the gateway, or what costs more
// where it is compared with itself: through the relay, by a DNS resource, or with
// telemetry.
type Report struct {
	Processors int     `json:"processors"`
	Seconds    float64 `json:"seconds"` // asked for, of each direction of each round
	Ways       []Way   `json:"ways"`
	To         Ratio   `json:"ratio_to_resource"`
	From       Ratio   `json:"ratio_from_resource"`
	oneProcess bool    // in the middle, for both ways
}

// Ratio is the first way's figure over the second's, in one direction.
type Ratio struct {
	Medians float64 `json:"medians"` // of the median rates
	// Rounds is the median of the ratios of each round, which suffers less
	// from a machine whose load changes between the rounds.
	Rounds float64 `json:"rounds"`
	PerCPU float64 `json:"per_cpu_second"` // of the gigabits per CPU second
}

func newReport(o Options, ways []way) Report {
	r := Report{Processors: runtime.NumCPU(), Seconds: o.Seconds, oneProcess: o.Relayed || o.DNS}
	for _, w := range ways {
		r.Ways = append(r.Ways, Way{Name: w.name})
	}
	return r
}

func (r *Report) add(way int, d resource.Direction, s Sample) {
	series := r.Ways[way].series(d)
	series.Rounds = append(series.Rounds, s)
	r.Ways[way].PeakRSS = max(r.Ways[way].PeakRSS, s.peakBefore, s.PeakRSS)
}

func (w *Way) series(d resource.Direction) *Series {
	if d == resource.ToResource {
		return &w.To
	}
	return &w.From
}

// finish fills in what follows from the rounds.
func (r *Report) finish() {
	for i := range r.Ways {
		for _, d := range directions {
			r.Ways[i].series(d).finish()
		}
	}
	if len(r.Ways) < 2 {
		return
	}
	r.To = ratio(r.Ways[0].To, r.Ways[1].To)
	r.From = ratio(r.Ways[0].From, r.Ways[1].From)
}

// ratio compares series of equally many rounds.
func ratio(a, b Series) Ratio {
	var rounds []float64
	for i := range min(len(a.Rounds), len(b.Rounds)) {
		rounds = append(rounds, quotient(a.Rounds[i].Gigabits, b.Rounds[i].Gigabits))
	}
	return Ratio{Medians: quotient(a.Median, b.Median), Rounds: median(rounds), PerCPU: quotient(a.PerCPU, b.PerCPU)}
}

func (s *Series) finish() {
	var bytes uint64
	s.CPUSeconds, s.PeakRSS, s.Forwarded = 0, 0, 0
	for _, sample := range s.Rounds {
		bytes += sample.Bytes
		s.CPUSeconds += sample.CPUSeconds
		s.PeakRSS = max(s.PeakRSS, sample.PeakRSS)
		s.Forwarded += sample.Forwarded
	}
	s.Median = median(s.rates())
	s.PerCPU = quotient(float64(bytes)*8/1e9, s.CPUSeconds)
}

func (s *Series) rates() []float64 {
	var rates []float64
	for _, sample := range s.Rounds {
		rates = append(rates, sample.Gigabits)
	}
	return rates
}

// columns is how many rounds the text shows one by one. Of more it shows the
// lowest and the highest rate.
const columns = 8

func (s *Series) shown() []float64 {
	rates := s.rates()
	if len(rates) <= columns {
		return rates
	}
	return []float64{slices.Min(rates), slices.Max(rates)}
}

// Write prints the report as text.
func (r Report) Write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "one TCP stream, Gbit/s\t")
	relayed := func(column string) string {
		if r.forwards() {
			return column
		}
		return ""
	}
	rounds := 0
	if len(r.Ways) > 0 {
		rounds = len(r.Ways[0].To.Rounds)
	}
	if rounds > columns {
		fmt.Fprint(table, "lowest\thighest\t")
	} else {
		for i := range rounds {
			fmt.Fprintf(table, "round %d\t", i+1)
		}
	}
	fmt.Fprintln(table, "median\tCPU s\tGbit/CPU-s\tpeak MiB\t"+relayed("relay MB\t"))
	for _, d := range directions {
		for i := range r.Ways {
			series := r.Ways[i].series(d)
			fmt.Fprintf(table, "%s, %v\t", r.Ways[i].Name, d)
			for _, gigabits := range series.shown() {
				fmt.Fprintf(table, "%.2f\t", gigabits)
			}
			fmt.Fprintf(table, "%.2f\t%.2f\t%.2f\t%.1f\t", series.Median, series.CPUSeconds, series.PerCPU, mebibytes(series.PeakRSS))
			fmt.Fprintln(table, relayed(fmt.Sprintf("%.1f\t", float64(series.Forwarded)/1e6)))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(r.Ways) == 2 {
		fmt.Fprintf(w, "\nratio %s / %s\n", r.Ways[0].Name, r.Ways[1].Name)
		for _, d := range directions {
			ratio := r.To
			if d == resource.FromResource {
				ratio = r.From
			}
			fmt.Fprintf(w, "  %-18v  %.2f of the medians, %.2f median of the rounds, %.2f in Gbit per CPU second\n", d, ratio.Medians, ratio.Rounds, ratio.PerCPU)
		}
	}
	r.writeMemory(w)
	_, err := fmt.Fprintf(w, "%d processors, %g s each direction and round; client, resource and middle share them\n", r.Processors, r.Seconds)
	return err
}

// writeMemory prints the peaks since the start.
func (r Report) writeMemory(w io.Writer) {
	if r.oneProcess {
		peak := slices.MaxFunc(r.Ways, func(a, b Way) int { return cmp.Compare(a.PeakRSS, b.PeakRSS) }).PeakRSS
		fmt.Fprintf(w, "peak resident memory of the gateway: %.1f MiB\n", mebibytes(peak))
		return
	}
	for _, way := range r.Ways {
		fmt.Fprintf(w, "peak resident memory of %s: %.1f MiB\n", way.Name, mebibytes(way.PeakRSS))
	}
}

// forwards reports whether a relay had anything to do with the streams.
func (r Report) forwards() bool {
	return slices.ContainsFunc(r.Ways, func(w Way) bool { return w.To.Forwarded+w.From.Forwarded > 0 })
}

func mebibytes(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// median returns the middle value, or the mean of the two middle ones; 0 of
// none.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// quotient is a/b, 0 where that has no value, which JSON could not hold.
func quotient(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
