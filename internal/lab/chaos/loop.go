package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

// Looping is what a client whose actor crashes as soon as it is back does to the
// others.
type Looping struct {
	Others   int     `json:"others"`
	Restarts int     `json:"restarts"` // of the actor that crashes
	Goodbyes int     `json:"goodbyes"` // that its client got, because the actor was given up
	Back     float64 `json:"back_ms"`  // from the last crash to traffic of that client
	// Neighbours sums the datagrams of the others up.
	Neighbours Echo `json:"neighbours"`
	Worst      Echo `json:"worst"` // the one of them that lost most
	Outside    Echo `json:"outside"`
	// Touched counts restarts of actors that were not to fail, and goodbyes that
	// the others got.
	Touched int `json:"touched"`
}

// Loop lets the actor of one client crash in a loop while others work.
func Loop(ctx context.Context, others int, o Options) Result {
	o, err := o.withDefaults()
	if err != nil {
		return Result{Name: "loop", Broken: []string{err.Error()}}
	}
	name := fmt.Sprintf("crash loop of one client beside %d", others)
	return part(ctx, name, shape{clients: others + 1, nat: labnet.NoNAT}, o, func(ctx context.Context, w *world, r *Result) error {
		l, err := w.loop(ctx)
		r.Figures, r.Measured = l, l.String()
		if err != nil {
			return err
		}
		l.judge(r, o)
		return nil
	})
}

func (w *world) loop(ctx context.Context) (l Looping, err error) {
	victim := len(w.clients) - 1
	l.Others = victim
	path, err := w.peerPath(victim)
	if err != nil {
		return l, err
	}
	t, err := newTracker(ctx, w)
	if err != nil {
		return l, err
	}
	goodbyes := make([]int64, len(w.clients))
	for i, c := range w.clients {
		goodbyes[i] = c.Goodbyes()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer w.onEnd(func() { cancel(errEnded) })()

	flows, outside, finish, err := w.neighbours(ctx, victim)
	if err != nil {
		return l, because(ctx, err)
	}
	err = w.crashInLoop(ctx, t, path)
	last := time.Now()
	if err == nil {
		limited, cancelWait := context.WithTimeout(ctx, recovery)
		err = w.awaitPing(limited, victim, filesAt)
		cancelWait()
		l.Back = ms(time.Since(last))
	}
	finish()
	if err != nil {
		return l, because(ctx, err)
	}
	if _, err := t.look(ctx); err != nil {
		return l, because(ctx, err)
	}
	l.Touched = t.except(path)
	for _, n := range t.counted() {
		l.Restarts += n
	}
	l.Restarts -= l.Touched
	spans := outside.disturbances()
	l.Outside = outside.account(nil)
	for i, f := range flows {
		e := f.account(spans)
		if l.Worst.Sent == 0 || e.Lost > l.Worst.Lost || (e.Lost == l.Worst.Lost && e.Stall > l.Worst.Stall) {
			l.Worst = e
		}
		l.Neighbours.add(e)
		l.Touched += int(w.clients[i].Goodbyes() - goodbyes[i])
	}
	l.Goodbyes = int(w.clients[victim].Goodbyes() - goodbyes[victim])
	return l, nil
}

// neighbours starts the datagrams of the first n clients, and those that do not
// go through the gateway. Together they are as many as the options say.
func (w *world) neighbours(ctx context.Context, n int) (flows []*echoFlow, outside *echoFlow, finish func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	finish = func() {
		cancel()
		running.Wait()
	}
	start := func(from resource.Network, to netip.AddrPort, rate int) *echoFlow {
		f, done, startErr := startEcho(ctx, from, to, rate)
		if startErr != nil {
			err = errors.Join(err, startErr)
			return nil
		}
		running.Go(done)
		return f
	}
	for i := range n {
		flows = append(flows, start(w.host(i), netip.AddrPortFrom(filesAt, resource.DefaultPorts.UDPEcho), max(w.options.Echoes/n, 1)))
	}
	outside = start(w.host(0), netip.AddrPortFrom(w.net.Portal.IPv4, outsidePort), outsidePace)
	if err != nil {
		finish()
	}
	return flows, outside, finish, err
}

// crashInLoop has an actor crash whenever it runs. One that was given up and made
// anew for its client crashes again.
func (w *world) crashInLoop(ctx context.Context, t *tracker, path string) error {
	begin := time.Now()
	for time.Since(begin) < w.options.Duration {
		s, err := t.look(ctx)
		if err != nil {
			return err
		}
		if a, there := s.find(path); there && a.State == running {
			if _, err := w.inject(ctx, fault{Actor: path, Fault: Crash}); err != nil {
				return err
			}
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (l Looping) judge(r *Result, o Options) {
	r.check(l.Restarts > 0, "nothing crashed")
	r.check(l.Goodbyes > 0 || o.Duration < giveUpTakes, "the client was not told to go, though its actor crashed in a loop for %v", o.Duration)
	r.check(l.Touched == 0, "%d restarts and goodbyes of others", l.Touched)
	r.check(l.Neighbours.Share() <= o.Tolerance, "others: %d of %d datagrams lost (%d excused)", l.Neighbours.Lost, l.Neighbours.Sent, l.Neighbours.Excused)
	r.check(l.Neighbours.Stall <= max(2*l.Outside.Stall, stallLimit), "others: a stall of %.0f ms", l.Neighbours.Stall)
}

const (
	// giveUpTakes is more than the sum of the back-off until a peer is given up.
	giveUpTakes = 30 * time.Second
	// stallLimit, in milliseconds, is more than a busy machine causes.
	stallLimit = 1000.0
)

// String returns the figures in one line.
func (l Looping) String() string {
	return fmt.Sprintf("%d restarts and %d goodbyes of one client, which is back after %.0f ms; %d others lost %d of %d datagrams (worst %d of %d), longest stall %.0f ms (outside %.0f), p99 %.1f ms (outside %.1f)",
		l.Restarts, l.Goodbyes, l.Back, l.Others, l.Neighbours.Lost-l.Neighbours.Excused, l.Neighbours.Sent,
		l.Worst.Lost-l.Worst.Excused, l.Worst.Sent, l.Neighbours.Stall, l.Outside.Stall, l.Neighbours.P99, l.Outside.P99)
}

// add sums another flow up; of times the worst stays.
func (e *Echo) add(o Echo) {
	e.Sent += o.Sent
	e.Lost += o.Lost
	e.Excused += o.Excused
	e.Late += o.Late
	e.Median, e.P99, e.Max, e.Stall = max(e.Median, o.Median), max(e.P99, o.P99), max(e.Max, o.Max), max(e.Stall, o.Stall)
}
