package actorkit

import "time"

// Bounds of the time between two looks at all actors.
const (
	minScan = 5 * time.Millisecond
	maxScan = time.Second
)

// watchdog finds handlers that do not return. It costs a handler nothing but
// its two steps in mailbox.work.
type watchdog struct {
	sys    *System
	period time.Duration
	stop   chan struct{}
	done   chan struct{}
	last   time.Time // of a look
	cells  []*cell   // of one look
}

// scan is what the watchdog remembers of an actor.
type scan struct {
	steps uint64 // of mailbox.work
	ran   time.Duration
}

// startWatchdog looks five times within the shortest Spec.Stuck.
func startWatchdog(s *System) *watchdog {
	w := &watchdog{sys: s, period: maxScan, stop: make(chan struct{}), done: make(chan struct{}), last: time.Now()}
	for _, k := range s.kinds {
		w.period = min(w.period, max(minScan, k.spec.Stuck/5))
	}
	go w.run()
	return w
}

func (w *watchdog) run() {
	defer close(w.done)
	ticker := time.NewTicker(w.period)
	defer ticker.Stop()
	for {
		select {
		case <-w.stop:
			return
		case now := <-ticker.C:
			w.look(now)
		}
	}
}

// look looks at all actors. A handler is not to blame for more than a period
// between two looks: longer than that, the process stood still as a whole.
func (w *watchdog) look(now time.Time) {
	step := min(now.Sub(w.last), w.period)
	w.last = now
	w.sys.mu.Lock()
	w.cells = w.cells[:0]
	for _, c := range w.sys.cells {
		w.cells = append(w.cells, c)
	}
	w.sys.mu.Unlock()
	for _, c := range w.cells {
		work := c.mailbox.work.Load()
		steps := work & stepMask
		if !handling(work) || steps != c.scanned.steps {
			c.scanned = scan{steps: steps}
			continue
		}
		c.scanned.ran += step
		if c.scanned.ran >= c.kind.spec.Stuck {
			c.stuck(steps, c.scanned.ran, w.period)
		}
	}
	clear(w.cells)
}

// stopWatchdog ends the watchdog, if there is one, and waits for it.
func (s *System) stopWatchdog() {
	s.mu.Lock()
	w := s.guard
	s.mu.Unlock()
	if w != nil {
		close(w.stop)
		<-w.done
	}
}
