package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

// Damage is what the actors went through.
type Damage struct {
	Fault    string         `json:"fault"`
	Wanted   int            `json:"wanted"`   // faults, one each interval
	Injected map[string]int `json:"injected"` // by kind
	Restarts map[string]int `json:"restarts"` // by kind, as the status tells
	Metric   map[string]int `json:"metric"`   // the same, as the metrics tell; null without them
	Traced   map[string]int `json:"traced"`   // the same, as spans tell; null without Options.Traces
	Missed   int            `json:"missed"`   // times that no actor of the kind was there
	Slowest  float64        `json:"slowest_restart_ms"`
	NotBack  []string       `json:"not_back,omitempty"` // within restartLimit
	// Recovered is how long after the last fault, and the end of the load, every
	// part of the gateway said that it is well, and had proved it.
	Recovered float64 `json:"recovered_ms"`
	// Drops are what the daemon discarded meanwhile, by reason. The probes of what
	// is forbidden are among them.
	Drops drops `json:"drops"`
	Load  Load  `json:"load"`
}

const (
	// restartLimit is how long a restart may take before the faults go on.
	restartLimit = 5 * time.Second
	// calm is the time before the first fault and after the last.
	calm = 500 * time.Millisecond
	// recovery bounds the time until everything is well after the last fault.
	recovery      = 45 * time.Second
	recoveryLimit = 15 * time.Second
	progressEvery = 10 * time.Second
	// delayFor and affected are what Delay and Drop do.
	delayFor = 100 * time.Millisecond
	affected = 3
)

// Suffer has actors of one kind, or any at Random, or Each in turn, fail under
// load, in a deployment of its own.
func Suffer(ctx context.Context, kind string, o Options) Result {
	o, err := o.withDefaults()
	if err != nil {
		return Result{Name: kind, Broken: []string{err.Error()}}
	}
	return part(ctx, o.Fault+" "+kind, shape{clients: 1, nat: labnet.PortRestricted}, o, func(ctx context.Context, w *world, r *Result) error {
		d, err := w.suffer(ctx, kind)
		r.Figures, r.Measured = d, d.String()
		if err != nil {
			return err
		}
		d.judge(r, o)
		return nil
	})
}

// suffer runs the load and injects faults into it.
func (w *world) suffer(ctx context.Context, kind string) (d Damage, err error) {
	o := w.options
	d = Damage{Fault: o.Fault, Injected: map[string]int{}}
	t, err := newTracker(ctx, w)
	if err != nil {
		return d, err
	}
	before, err := w.accounts(ctx)
	if err != nil {
		return d, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer w.onEnd(func() { cancel(errEnded) })()
	l, err := w.startLoad(ctx, o.Duration, o.Seed)
	if err != nil {
		return d, because(ctx, err)
	}
	watching, unwatch := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { t.watch(watching) })
	err = d.inject(ctx, w, t, kind)
	if err != nil {
		l.stop()
	}
	_ = pause(ctx, calm)
	d.Load = l.finish()
	if err == nil {
		began := time.Now()
		limited, cancel := context.WithTimeout(ctx, recovery)
		if err = w.awaitReady(limited); err == nil {
			err = w.worksAgain(limited)
		}
		cancel()
		d.Recovered = ms(time.Since(began))
	}
	unwatch()
	watcher.Wait()
	if err == nil {
		err = d.count(ctx, w, t, before)
	}
	if err != nil {
		return d, because(ctx, err)
	}
	return d, nil
}

// worksAgain holds that what actors say is true: it has a resource granted, used,
// revoked and refused once more.
func (w *world) worksAgain(ctx context.Context) error {
	if err := w.portal.Grant("", w.cycled.ID, longAccess); err != nil {
		return err
	}
	for {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := w.clients[0].Access(limited, w.cycled.ID, private)
		if err == nil {
			err = w.awaitPing(limited, 0, cycledAt)
		}
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no access after the faults: %w", err)
		}
		_ = pause(ctx, 100*time.Millisecond)
	}
	if err := w.portal.Revoke("", w.cycled.ID); err != nil {
		return err
	}
	if _, err := w.untilRefused(ctx, cycledAt); err != nil {
		return fmt.Errorf("after the faults: %w", err)
	}
	return nil
}

// accounts are the daemon's own counts that are compared.
type accounts struct {
	restarts map[string]int // nil without metrics
	drops    drops
}

func (w *world) accounts(ctx context.Context) (a accounts, err error) {
	s, err := w.status(ctx)
	if err != nil {
		return a, err
	}
	a.drops = s.dropped(nil)
	a.restarts, err = w.restartMetric(ctx)
	if errors.Is(err, errNoMetrics) {
		return a, nil
	}
	return a, err
}

// count notes what happened since before by all accounts there are.
func (d *Damage) count(ctx context.Context, w *world, t *tracker, before accounts) error {
	s, err := t.look(ctx)
	if err != nil {
		return err
	}
	d.Restarts, d.Drops = t.counted(), s.dropped(before.drops)
	after, err := w.accounts(ctx)
	if err != nil {
		return err
	}
	if before.restarts != nil {
		d.Metric = difference(after.restarts, before.restarts)
	}
	if w.spans != nil {
		d.Traced = w.awaitRestartSpans(ctx, d.Restarts)
	}
	return nil
}

// inject makes one fault each interval for as long as the options say.
func (d *Damage) inject(ctx context.Context, w *world, t *tracker, kind string) error {
	o := w.options
	chance := rand.New(rand.NewPCG(o.Seed, 2))
	if err := pause(ctx, calm); err != nil {
		return err
	}
	begin := time.Now()
	told := begin
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	d.Wanted = int(o.Duration / o.Interval)
	for n := 0; n < d.Wanted && time.Since(begin) < o.Duration-o.Interval/2; n++ {
		if err := d.once(ctx, w, t, w.turn(kind, n), chance); err != nil {
			return err
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			o.Progress("  %3.0f s: %d of %d faults, restarted %s", time.Since(begin).Seconds(), n+1, d.Wanted, words(t.counted()))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// once has one actor fail, and waits until it is back where that is to come.
func (d *Damage) once(ctx context.Context, w *world, t *tracker, kind string, chance *rand.Rand) error {
	s, err := t.look(ctx)
	if err != nil {
		return err
	}
	path := ""
	if kind == Random {
		// Kinds are equally likely, however many actors they have.
		for _, i := range chance.Perm(len(Kinds)) {
			if paths := s.of(Kinds[i]); len(paths) > 0 {
				path = paths[chance.IntN(len(paths))]
				break
			}
		}
	} else if paths := s.of(kind); len(paths) > 0 {
		path = paths[chance.IntN(len(paths))]
	}
	if path == "" {
		d.Missed++
		return nil
	}
	before, _ := s.find(path)
	f := fault{Actor: path, Fault: d.Fault}
	switch d.Fault {
	case Delay:
		f.For, f.Messages = delayFor.String(), affected
	case Drop:
		f.Messages = affected
	}
	began := time.Now()
	reached, err := w.inject(ctx, f)
	if err != nil {
		return err
	}
	if len(reached) == 0 { // it has ended meanwhile
		d.Missed++
		return nil
	}
	d.Injected[before.Kind]++
	if d.Fault != Crash && d.Fault != Hang {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, restartLimit+w.slack())
	defer cancel()
	if err := t.awaitRestart(limited, path, before); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.NotBack = append(d.NotBack, path)
		return nil
	}
	d.Slowest = max(d.Slowest, ms(time.Since(began)))
	return nil
}

// turn is kind, or for Each the kind whose turn it is.
func (w *world) turn(kind string, n int) string {
	if kind == Each {
		return Kinds[n%len(Kinds)]
	}
	return kind
}

// slack is how much longer than after a crash everything may take.
func (w *world) slack() time.Duration {
	if w.options.Fault == Hang {
		return hangInterval
	}
	return 0
}

func (d Damage) judge(r *Result, o Options) {
	total, restarts := 0, d.Fault == Crash || d.Fault == Hang
	for _, n := range d.Injected {
		total += n
	}
	r.check(total > 0, "nothing failed")
	// An actor that is slow to come back cannot fail again. So is one on a busy
	// machine, at times.
	r.check(total*10 >= d.Wanted*8, "only %d of %d faults fitted into %v", total, d.Wanted, o.Duration)
	r.check(d.Recovered <= ms(recoveryLimit), "all was well %.1f s after the last fault only", d.Recovered/1000)
	r.check(len(d.NotBack) == 0, "not back in time: %v", d.NotBack)
	accounts := []struct {
		name   string
		counts map[string]int // null where there is no such account
	}{{"status", d.Restarts}, {"metrics", d.Metric}, {"traces", d.Traced}}
	for _, kind := range Kinds {
		want := 0
		if restarts {
			want = d.Injected[kind]
		}
		for _, a := range accounts {
			r.check(a.counts == nil || a.counts[kind] == want, "%s: %d restarts by the %s, %d were asked for", kind, a.counts[kind], a.name, want)
		}
	}
	d.Load.judge(r, o.Tolerance, d.Fault == Drop)
}

// String returns the figures in one line.
func (d Damage) String() string {
	text := fmt.Sprintf("%s (%s)", d.Fault, words(d.Injected))
	if len(d.Restarts) > 0 {
		text += ", restarted " + words(d.Restarts)
	}
	if d.Slowest > 0 {
		text += fmt.Sprintf(" within %.0f ms", d.Slowest)
	}
	if d.Recovered > ms(calm) {
		text += fmt.Sprintf(", all well after %.1f s more", d.Recovered/1000)
	}
	return text + "; " + d.Load.String()
}

// errEnded is the cause of a part's end when the daemon ended.
var errEnded = errors.New("the gateway ended")

// because names the cause of a failure that came of ctx's end.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// onEnd calls f when the daemon ends, until the function returned is called.
func (w *world) onEnd(f func()) (stop func()) {
	done, over := w.daemon().Done(), make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-done:
			f()
		case <-over:
		}
	})
	return func() {
		close(over)
		waiting.Wait()
	}
}
