package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

// Soaked is what came of a long time of faults.
type Soaked struct {
	Damage
	Samples []Sample `json:"samples"`
	// The trends are those of the samples after the warm-up.
	RSS        Trend `json:"rss"`
	Heap       Trend `json:"heap"`       // not there without metrics
	Goroutines Trend `json:"goroutines"` // the same
}

// Sample is how much the daemon held at one time.
type Sample struct {
	At         float64 `json:"at_seconds"`
	RSS        float64 `json:"rss_bytes"`
	Heap       float64 `json:"heap_live_bytes"` // that the last collection found reachable; 0 without metrics
	Goroutines float64 `json:"goroutines"`      // 0 without metrics
}

// Trend is a straight line through samples.
type Trend struct {
	First  float64 `json:"first"`
	Last   float64 `json:"last"`
	Max    float64 `json:"max"`
	Mean   float64 `json:"mean"`
	Slope  float64 `json:"slope_per_hour"`
	Growth float64 `json:"growth"` // of the line over the time that was looked at
	// Noise is the standard error of Growth: what it would be by chance.
	Noise float64 `json:"noise"`
}

const (
	sampleEvery = 10 * time.Second
	// warmUp is the share of the time after which caches, pools and histories
	// should have their size, and the longest that this takes.
	warmUp     = 0.2
	longWarmUp = 5 * time.Minute
	// flatWithin is how much of the mean a trend may grow, beyond what chance
	// explains.
	flatWithin = 0.10
)

// Soak lets random actors fail for as long as the options say, and watches what
// the daemon holds.
func Soak(ctx context.Context, o Options) Result {
	o, err := o.withDefaults()
	if err != nil {
		return Result{Name: "soak", Broken: []string{err.Error()}}
	}
	name := fmt.Sprintf("soak %v", o.Duration)
	return part(ctx, name, shape{clients: 1, nat: labnet.PortRestricted}, o, func(ctx context.Context, w *world, r *Result) error {
		var s Soaked
		sampling, stop := context.WithCancel(ctx)
		var sampler sync.WaitGroup
		sampler.Go(func() { s.Samples = w.sample(sampling, sampleSpacing(o.Duration)) })
		d, err := w.suffer(ctx, Random)
		stop()
		sampler.Wait()
		s.Damage = d
		s.fit()
		r.Figures, r.Measured = s, s.String()
		if err != nil {
			return err
		}
		s.Damage.judge(r, o)
		s.judge(r)
		return nil
	})
}

// sampleSpacing gives short runs some samples as well.
func sampleSpacing(d time.Duration) time.Duration {
	return min(sampleEvery, max(d/20, 100*time.Millisecond))
}

// sample looks at the daemon until ctx ends.
func (w *world) sample(ctx context.Context, every time.Duration) (samples []Sample) {
	begin := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return samples
		}
		s := Sample{At: time.Since(begin).Seconds()}
		rss, err := residentMemory(w.daemon().PID())
		if err != nil {
			continue // it has ended, which others notice
		}
		s.RSS = float64(rss)
		if metrics, err := w.scrape(ctx); err == nil {
			for _, m := range metrics {
				switch m.name {
				case heapMetric:
					s.Heap += m.value
				case goroutinesMetric:
					s.Goroutines += m.value
				}
			}
		} else if !errors.Is(err, errNoMetrics) {
			continue // one that stands still is no sample
		}
		samples = append(samples, s)
		w.options.Progress("  %4.0f s: %.1f MiB resident, %.1f MiB live heap, %.0f goroutines", s.At, s.RSS/(1<<20), s.Heap/(1<<20), s.Goroutines)
	}
}

// residentMemory returns what a process has in memory, in bytes.
func residentMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0, errors.New("process has no memory")
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// fit draws the trends.
func (s *Soaked) fit() {
	if len(s.Samples) == 0 {
		return
	}
	end := s.Samples[len(s.Samples)-1].At
	from := min(end*warmUp, longWarmUp.Seconds())
	var at, rss, heap, goroutines []float64
	for _, x := range s.Samples {
		if x.At >= from {
			at, rss, heap, goroutines = append(at, x.At), append(rss, x.RSS), append(heap, x.Heap), append(goroutines, x.Goroutines)
		}
	}
	s.RSS, s.Heap, s.Goroutines = fitTrend(at, rss), fitTrend(at, heap), fitTrend(at, goroutines)
}

// fitTrend returns the line of least squares; at is in seconds and ascending.
func fitTrend(at, values []float64) (t Trend) {
	n := float64(len(at))
	if n == 0 {
		return t
	}
	t.First, t.Last = values[0], values[len(values)-1]
	meanAt := 0.0
	for i := range at {
		t.Mean += values[i] / n
		meanAt += at[i] / n
		t.Max = max(t.Max, values[i])
	}
	var square, product float64
	for i := range at {
		square += (at[i] - meanAt) * (at[i] - meanAt)
		product += (at[i] - meanAt) * (values[i] - t.Mean)
	}
	if n < 3 || square == 0 {
		return t
	}
	slope := product / square
	rest := 0.0
	for i := range at {
		d := values[i] - t.Mean - slope*(at[i]-meanAt)
		rest += d * d
	}
	span := at[len(at)-1] - at[0]
	t.Slope, t.Growth = slope*3600, slope*span
	t.Noise = math.Sqrt(rest/(n-2)/square) * span
	return t
}

// flat reports whether a trend does not grow by more than a tenth, and three times
// what chance explains.
func (t Trend) flat() bool { return t.Growth <= flatWithin*t.Mean+3*t.Noise }

func (s Soaked) judge(r *Result) {
	r.check(len(s.Samples) > 0, "there are no samples")
	for name, t := range map[string]Trend{"resident memory": s.RSS, "live heap": s.Heap, "goroutines": s.Goroutines} {
		r.check(t.flat(), "%s is not flat: grows by %.3g from a mean of %.3g, ± %.2g", name, t.Growth, t.Mean, t.Noise)
	}
}

// String returns the figures in one line.
func (s Soaked) String() string {
	mib := func(name string, t Trend) string {
		return fmt.Sprintf("%s %.1f → %.1f MiB (max %.1f), %+.2f ± %.2f MiB/h", name, t.First/(1<<20), t.Last/(1<<20), t.Max/(1<<20), t.Slope/(1<<20), t.perHour(t.Noise)/(1<<20))
	}
	text := mib("resident", s.RSS)
	if s.Goroutines.Mean > 0 {
		text += "; " + mib("live heap", s.Heap) + fmt.Sprintf("; goroutines %.0f → %.0f (max %.0f), %+.1f ± %.1f per hour",
			s.Goroutines.First, s.Goroutines.Last, s.Goroutines.Max, s.Goroutines.Slope, s.Goroutines.perHour(s.Goroutines.Noise))
	}
	return text + "; " + s.Damage.String()
}

// perHour scales what belongs to Growth as Slope is.
func (t Trend) perHour(v float64) float64 {
	if t.Growth == 0 {
		return 0
	}
	return math.Abs(v * t.Slope / t.Growth)
}
