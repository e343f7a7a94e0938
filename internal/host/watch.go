// Package host notices the two events of a host after which a gateway has to
// start its network life anew, with a new key pair, new sockets and a new
// connection to the portal: the host was suspended and resumed, or it reaches
// the Internet another way than before.
//
// What counts as a suspension is in suspend.go, what counts as another default
// route in settling.go; both are free of clocks and sockets. [Watch] feeds them.
package host

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Cause names an event, in words for a log line or a trace.
type Cause string

// Causes that Watch reports.
const (
	CauseResumed      Cause = "host resumed"
	CauseDefaultRoute Cause = "default route changed"
)

// Config is what Watch needs.
type Config struct {
	// OnChange is called for each event, one at a time, on the goroutine that
	// called Watch. Events during a call are noticed after it.
	OnChange func(Cause)
	Logger   *slog.Logger // nil discards

	system *system // the kernel's if nil
	pace   pace    // defaultPace if zero
}

// Watch calls cfg.OnChange for each event until ctx ends, and returns when its
// goroutines have ended and its socket is closed. The default routes at the
// call are what the first change is measured against. Trouble with the kernel
// is logged and does not end the watch: it is tried again, and the routes are
// compared with those from before the trouble.
//
// Everything happens in the network namespace of the process.
func Watch(ctx context.Context, cfg Config) {
	cfg = cfg.complete()
	ctx, cancel := context.WithCancel(ctx)
	touched := make(chan struct{}, 1)
	var listening sync.WaitGroup
	listening.Go(func() { cfg.listen(ctx, touched) })
	defer listening.Wait()
	defer cancel()

	w := &watch{Config: cfg, settling: settling{pace: cfg.pace}}
	w.lookAtClocks()
	w.lookAtRoutes()

	clocks := time.NewTicker(cfg.pace.clocks)
	defer clocks.Stop()
	for {
		var settled <-chan time.Time
		if due, pending := w.settling.due(); pending {
			settled = time.After(time.Until(due))
		}
		var cause Cause
		select {
		case <-ctx.Done():
			return
		case <-touched:
			w.settling.touch(time.Now())
		case <-clocks.C:
			cause = w.lookAtClocks()
		case <-settled:
			cause = w.lookAtRoutes()
		}
		if cause != "" && ctx.Err() == nil {
			cfg.OnChange(cause)
		}
	}
}

// pace says when the watch acts. A test can shorten it.
type pace struct {
	clocks   time.Duration // between two looks at the clocks
	quiet    time.Duration // without a message after which routes are settled
	patience time.Duration // after which routes count as settled even so
	retry    time.Duration // after trouble with the kernel
}

var defaultPace = pace{
	clocks:   3 * time.Second,
	quiet:    time.Second,
	patience: 10 * time.Second,
	retry:    5 * time.Second,
}

// watch is the state of one Watch. Its goroutine owns it.
type watch struct {
	Config
	suspension suspension
	settling   settling
	clocks     outage
	routes     outage
}

// lookAtClocks returns CauseResumed if the host was suspended since the last
// look.
func (w *watch) lookAtClocks() Cause {
	reading, err := w.system.readClocks()
	w.clocks.note(w.Logger, "clocks cannot be read, a suspension of the host goes unnoticed", err)
	if err != nil {
		return ""
	}
	slept, resumed := w.suspension.look(reading)
	if !resumed {
		return ""
	}
	w.Logger.Debug("host was suspended", "for", slept)
	return CauseResumed
}

// lookAtRoutes returns CauseDefaultRoute if the settled default routes differ
// from those that count.
func (w *watch) lookAtRoutes() Cause {
	set, err := w.system.listDefaults()
	if !errors.Is(err, netlink.ErrDumpInterrupted) { // by a change, which is no trouble
		w.routes.note(w.Logger, "default routes cannot be listed, trying again", err)
	}
	if err != nil {
		w.settling.postpone(time.Now())
		return ""
	}
	before := w.settling.set
	if !w.settling.settle(set) {
		return ""
	}
	w.Logger.Debug("default routes changed", "before", before.String(), "after", set.String())
	return CauseDefaultRoute
}

// listen touches whenever something happened that may have changed the default
// routes: also after each subscription, for what happened before it.
func (c Config) listen(ctx context.Context, touched chan<- struct{}) {
	touch := func() {
		select {
		case touched <- struct{}{}:
		default: // one is waiting
		}
	}
	var opening outage
	for {
		s, err := c.system.subscribe()
		opening.note(c.Logger, "cannot subscribe to changes of routes, trying again", err)
		if err == nil {
			touch()
			err = receive(ctx, s, touch)
			if ctx.Err() != nil {
				return
			}
			c.Logger.Warn("subscription to changes of routes broke, subscribing again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.pace.retry):
		}
	}
}

// receive touches for each message that matters until s fails, which it does
// when ctx ends. It closes s.
func receive(ctx context.Context, s subscription, touch func()) error {
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	for {
		messages, _, err := s.Receive()
		if err != nil {
			return err
		}
		for _, m := range messages {
			if matters(m) {
				touch()
			}
		}
	}
}

func (c Config) complete() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.system == nil {
		c.system = &kernel
	}
	if c.pace == (pace{}) {
		c.pace = defaultPace
	}
	return c
}

// outage logs the first of several errors in a row.
type outage struct{ lasts bool }

func (o *outage) note(log *slog.Logger, message string, err error) {
	if err != nil && !o.lasts {
		log.Warn(message, "error", err)
	}
	o.lasts = err != nil
}
