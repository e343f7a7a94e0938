package actorkit

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// Totals are what is counted about actors. All grow only.
type Totals struct {
	Handled  uint64        // messages, timer ticks included
	Failures uint64        // panics, swallowed ones included
	Restarts uint64        //
	Busy     time.Duration // spent in handlers
	Waited   time.Duration // spent by handled messages in the mailbox
}

// ActorStats describes one actor.
type ActorStats struct {
	Kind, Path, Phase string
	Totals
	MaxBusy     time.Duration // longest single handling
	MaxWait     time.Duration // longest single wait
	Pending     int           // messages in the mailbox
	LastFailure string        // empty if there was none
	FailedAt    time.Time
}

// KindStats sums over the actors of one kind, ended ones included.
type KindStats struct {
	Kind string
	Live int
	Totals
	Pending int // of the live ones
}

// Stats is a snapshot of a System.
type Stats struct {
	Actors      []ActorStats // by path
	Kinds       []KindStats  // by kind
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
	for name, t := range s.retired {
		kinds[name] = &KindStats{Kind: name, Totals: t}
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
		k.add(a.Totals)
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

func (t *Totals) add(o Totals) {
	t.Handled += o.Handled
	t.Failures += o.Failures
	t.Restarts += o.Restarts
	t.Busy += o.Busy
	t.Waited += o.Waited
}

// cellStats has one writer, the actor's turn.
type cellStats struct {
	handled, failures, restarts    atomic.Uint64
	busy, waited, maxBusy, maxWait atomic.Int64
	last                           atomic.Pointer[failure]
}

type failure struct {
	at     time.Time
	reason string
}

func (s *cellStats) handle(waited, busy time.Duration) {
	s.handled.Add(1)
	s.waited.Add(int64(waited))
	s.busy.Add(int64(busy))
	if int64(waited) > s.maxWait.Load() {
		s.maxWait.Store(int64(waited))
	}
	if int64(busy) > s.maxBusy.Load() {
		s.maxBusy.Store(int64(busy))
	}
}

func (s *cellStats) fail(f *Fault, at time.Time) {
	s.failures.Add(1)
	s.last.Store(&failure{at, f.Error()})
}

func (s *cellStats) totals() Totals {
	return Totals{
		Handled: s.handled.Load(), Failures: s.failures.Load(), Restarts: s.restarts.Load(),
		Busy: time.Duration(s.busy.Load()), Waited: time.Duration(s.waited.Load()),
	}
}

func (c *cell) snapshot() ActorStats {
	a := ActorStats{
		Kind: c.kind.spec.Kind, Path: c.path, Phase: c.phase().String(), Totals: c.stats.totals(),
		MaxBusy: time.Duration(c.stats.maxBusy.Load()), MaxWait: time.Duration(c.stats.maxWait.Load()),
		Pending: c.mailbox.UserMessageCount(),
	}
	if f := c.stats.last.Load(); f != nil {
		a.LastFailure, a.FailedAt = f.reason, f.at
	}
	return a
}
