package actorkit

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// Totals are what is counted about actors. All grow only. A running turn adds
// what it handled when it ends, and at least every few messages.
type Totals struct {
	Handled    uint64        // messages, timer ticks included
	Failures   uint64        // panics, swallowed ones included, and stuck handlers
	Restarts   uint64        //
	Stuck      uint64        // handlers that ran for longer than Spec.Stuck
	Injected   uint64        // effects of Inject: crashes, hangs, messages delayed or dropped
	Refused    uint64        // messages that found no place in a Gate
	Suppressed uint64        // sends and spawns of handlers that were left behind
	Busy       time.Duration // spent in handlers
	Waited     time.Duration // spent by handled messages in the mailbox
	// Durations counts handled messages by how long their handler ran; the
	// bounds of the buckets are DurationBounds. Their sum is Handled.
	Durations [len(DurationBounds) + 1]uint64
}

// DurationBounds are the upper bounds of the buckets of Totals.Durations, all
// inclusive; what is longer than the last is in one more bucket.
var DurationBounds = [...]time.Duration{
	10 * time.Microsecond, 100 * time.Microsecond, time.Millisecond,
	10 * time.Millisecond, 100 * time.Millisecond, time.Second,
}

// Peaks are the largest values so far.
type Peaks struct {
	MaxBusy    time.Duration // longest single handling
	MaxWait    time.Duration // longest single wait
	MaxPending int           // messages in one mailbox
}

// ActorStats describes one actor.
type ActorStats struct {
	Kind, Path, Phase string
	Totals
	Peaks
	Pending     int    // messages in the mailbox
	LastFailure string // empty if there was none
	FailedAt    time.Time
}

// KindStats sums over the actors of one kind, ended ones included.
type KindStats struct {
	Kind string
	Live int
	Totals
	Peaks
	Pending int // of the live ones
}

// Stats is a snapshot of a System.
type Stats struct {
	Actors      []ActorStats // by path
	Kinds       []KindStats  // by kind, one for each row of the Table that was ever used
	DeadLetters uint64
	Goroutines  int // started by Go and still running
}

// Stats takes a snapshot. It is cheap enough for a scrape, and consistent per
// counter only.
func (s *System) Stats() Stats {
	kinds := make(map[string]*KindStats)
	s.mu.Lock()
	live := make([]*cell, 0, len(s.cells))
	for _, c := range s.cells {
		live = append(live, c)
	}
	for name, k := range s.retired {
		kinds[name] = &k
	}
	out := Stats{Actors: make([]ActorStats, 0, len(live)), DeadLetters: s.deadLetters.Load(), Goroutines: s.work.count()}
	for _, c := range live {
		a := c.snapshot()
		k := kinds[a.Kind]
		if k == nil {
			k = &KindStats{Kind: a.Kind}
			kinds[a.Kind] = k
		}
		k.Live++
		k.Pending += a.Pending
		k.Totals.add(&a.Totals)
		k.Peaks.add(a.Peaks)
		out.Actors = append(out.Actors, a)
	}
	s.mu.Unlock()
	for _, k := range kinds {
		out.Kinds = append(out.Kinds, *k)
	}
	slices.SortFunc(out.Actors, func(a, b ActorStats) int { return cmp.Compare(a.Path, b.Path) })
	slices.SortFunc(out.Kinds, func(a, b KindStats) int { return cmp.Compare(a.Kind, b.Kind) })
	return out
}

func (t *Totals) add(o *Totals) {
	t.Handled += o.Handled
	t.Failures += o.Failures
	t.Restarts += o.Restarts
	t.Stuck += o.Stuck
	t.Injected += o.Injected
	t.Refused += o.Refused
	t.Suppressed += o.Suppressed
	t.Busy += o.Busy
	t.Waited += o.Waited
	for i, n := range o.Durations {
		t.Durations[i] += n
	}
}

func (p *Peaks) add(o Peaks) {
	p.MaxBusy = max(p.MaxBusy, o.MaxBusy)
	p.MaxWait = max(p.MaxWait, o.MaxWait)
	p.MaxPending = max(p.MaxPending, o.MaxPending)
}

// cellStats is shared by the cells that follow each other under one path. What
// handling adds has one writer, the turn of the newest.
type cellStats struct {
	failures, restarts, stuck      atomic.Uint64
	injected, refused, suppressed  atomic.Uint64
	busy, waited, maxBusy, maxWait atomic.Int64
	maxPending                     atomic.Int64
	durations                      [len(DurationBounds) + 1]atomic.Uint64
	last                           atomic.Pointer[failure]
}

type failure struct {
	at     time.Time
	reason string
}

func (s *cellStats) fail(f *Fault, at time.Time) {
	s.failures.Add(1)
	s.last.Store(&failure{at, f.Error()})
}

func (s *cellStats) totals() Totals {
	t := Totals{
		Failures: s.failures.Load(), Restarts: s.restarts.Load(), Stuck: s.stuck.Load(),
		Injected: s.injected.Load(), Refused: s.refused.Load(), Suppressed: s.suppressed.Load(),
		Busy: time.Duration(s.busy.Load()), Waited: time.Duration(s.waited.Load()),
	}
	for i := range s.durations {
		t.Durations[i] = s.durations[i].Load()
		t.Handled += t.Durations[i]
	}
	return t
}

func (s *cellStats) peaks() Peaks {
	return Peaks{
		MaxBusy: time.Duration(s.maxBusy.Load()), MaxWait: time.Duration(s.maxWait.Load()),
		MaxPending: int(s.maxPending.Load()),
	}
}

// tallyLimit is the number of messages after which a turn publishes what it
// has counted, if it does not end before.
const tallyLimit = 16

// tally is what a turn has counted and not yet published. An addition that
// others can see costs as much as a tenth of a hop.
type tally struct {
	n                              int
	busy, waited, maxBusy, maxWait time.Duration
	durations                      [len(DurationBounds) + 1]uint32
}

func (t *tally) add(waited, busy time.Duration) {
	t.n++
	t.waited += waited
	t.busy += busy
	t.maxWait = max(t.maxWait, waited)
	t.maxBusy = max(t.maxBusy, busy)
	bucket := 0
	for bucket < len(DurationBounds) && busy > DurationBounds[bucket] {
		bucket++
	}
	t.durations[bucket]++
}

func (t *tally) publish(s *cellStats) {
	if t.n == 0 {
		return
	}
	s.waited.Add(int64(t.waited))
	s.busy.Add(int64(t.busy))
	if int64(t.maxWait) > s.maxWait.Load() {
		s.maxWait.Store(int64(t.maxWait))
	}
	if int64(t.maxBusy) > s.maxBusy.Load() {
		s.maxBusy.Store(int64(t.maxBusy))
	}
	for i, n := range t.durations {
		if n > 0 {
			s.durations[i].Add(uint64(n))
		}
	}
	*t = tally{}
}

func (c *cell) snapshot() ActorStats {
	a := ActorStats{
		Kind: c.kind.spec.Kind, Path: c.path, Phase: c.phase().String(),
		Totals: c.stats.totals(), Peaks: c.stats.peaks(), Pending: c.mailbox.UserMessageCount(),
	}
	if f := c.stats.last.Load(); f != nil {
		a.LastFailure, a.FailedAt = f.reason, f.at
	}
	return a
}
