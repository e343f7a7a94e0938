package scale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"firezone-gateway/internal/lab/portal"
)

// Options shape a run.
type Options struct {
	Gateway   string // path of the daemon's executable
	TUNDriver string // of the daemon; "" is its default
	LogDir    string // for the daemon's log; "" keeps none
	Clients   int    // that are connected at the same time
	Latency   int    // that are connected one after the other, before; 0 for none
	Relayed   bool   // the relay is the only way
	Idle      time.Duration
	Targets   Targets
	// Progress is told what happens, in words; nil for nobody.
	Progress func(format string, args ...any)

	settling time.Duration // before clients count as idle; 0 is how long they take
}

// Targets are what a run holds the gateway to. Zero demands nothing.
type Targets struct {
	Connect time.Duration // until all clients are connected
	Heap    int64         // bytes for each idle client
	Load    float64       // share of one processor for all idle clients
}

// Run builds the network, measures, and removes the network again. A target that
// is missed is no error, see Report.OK.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Clients < 1 || o.Latency < 0 || o.Clients+o.Latency > MaxClients || o.Idle <= 0 {
		return Report{}, fmt.Errorf("1 to %d clients and some time to idle are needed", MaxClients)
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return Report{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer cancelWith(w.daemon.Done(), func() { cancel(errEnded) })()
	s, err := newSwarm(w.clients, w.portal.URL(), token, resource.Addr(), o.Relayed)
	if err != nil {
		return Report{}, errors.Join(err, w.close())
	}
	r := &run{options: o, world: w, swarm: s, pushed: make(map[string]time.Time), names: make(map[string]string)}
	r.report = Report{Clients: o.Clients, Relayed: o.Relayed}
	err = r.measure(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		err = fmt.Errorf("%w\n%s", err, strings.Join(w.daemon.Tail(20), "\n"))
	}
	r.report.judge(o.Targets)
	return r.report, errors.Join(err, s.close(), w.close())
}

var errEnded = errors.New("the gateway ended")

// run is one run under way.
type run struct {
	options Options
	world   *world
	swarm   *swarm
	report  Report

	connected time.Time // the last client

	mu     sync.Mutex
	events uint64               // guarded by mu; of the portal, seen so far
	names  map[string]string    // guarded by mu; external ids by the portal's
	pushed map[string]time.Time // guarded by mu; when an authorization went to the gateway, by external id
}

const (
	// stragglers is how long the run waits for clients beyond the target.
	stragglers = time.Minute
	// settling is how long after its last inner packet a client is idle for
	// good: it checks rarely by then, has sent its keepalive, and the gateway has
	// ended punching.
	settling       = idleAfter + 10*time.Second
	latencyLimit   = 30 * time.Second // for one client
	wakePatience   = 10 * time.Second
	goodbyePause   = 2 * time.Second
	progressPeriod = 5 * time.Second
	eventsPeriod   = 200 * time.Millisecond
)

func (r *run) measure(ctx context.Context) error {
	defer every(eventsPeriod, r.collectEvents)() // before the portal forgets them
	if err := r.measureLatency(ctx); err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	members, err := r.logIn(ctx, r.options.Clients)
	if err != nil {
		return err
	}
	base, err := r.footprint(ctx)
	if err != nil {
		return err
	}
	r.options.Progress("gateway without clients: %s", base)
	if err := r.connect(ctx, members); err != nil {
		return err
	}
	if err := r.idle(ctx, members, base); err != nil {
		return err
	}
	total, sites, err := r.world.quit(context.WithoutCancel(ctx), len(members))
	if err != nil {
		return err
	}
	r.report.setGoroutines(total, sites)
	return nil
}

// logIn logs clients in, of which the gateway hears nothing.
func (r *run) logIn(ctx context.Context, n int) ([]*member, error) {
	begin := time.Now()
	members, err := r.swarm.logIn(ctx, n)
	if err != nil {
		return nil, err
	}
	r.options.Progress("%d clients are logged in to the portal (%.1f s)", n, time.Since(begin).Seconds())
	return members, nil
}

// measureLatency connects clients one after the other; each leaves with a goodbye
// before the next one comes.
func (r *run) measureLatency(ctx context.Context) error {
	if r.options.Latency == 0 {
		return nil
	}
	members, err := r.logIn(ctx, r.options.Latency)
	if err != nil {
		return err
	}
	for _, m := range members {
		one := []*member{m}
		if err := r.swarm.connect(ctx, one, r.world.granted.ID); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, latencyLimit)
		err := r.swarm.await(limited, func() bool { return m.phase == phaseConnected })
		cancel()
		if err != nil {
			return fmt.Errorf("%s is %s: %w%s", m.id(), r.phaseOf(m), err, r.refusals())
		}
		r.swarm.step(m, func(time.Time) { m.leave() })
	}
	r.report.Sequential = r.latency(members)
	r.options.Progress("one after the other: %s", r.report.Sequential)
	return pause(ctx, goodbyePause)
}

func (r *run) phaseOf(m *member) phase {
	r.swarm.mu.Lock()
	defer r.swarm.mu.Unlock()
	return m.phase
}

// connect lets all clients ask for access at once and waits until they are
// connected.
func (r *run) connect(ctx context.Context, members []*member) error {
	patience, cancel := context.WithTimeout(ctx, r.options.Targets.Connect+stragglers)
	defer cancel()
	before, err := used(r.world.daemon)
	if err != nil {
		return err
	}
	stop := every(progressPeriod, func() {
		r.swarm.mu.Lock()
		text := tally(members)
		r.swarm.mu.Unlock()
		r.options.Progress("%s", text)
	})
	begin := time.Now()
	asked := make(chan error, 1)
	go func() { asked <- r.swarm.connect(patience, members, r.world.granted.ID) }()
	waited := r.swarm.await(patience, func() bool {
		return count(members, phaseConnected)+count(members, phaseFailed) == len(members)
	})
	r.connected = time.Now()
	r.report.ConnectSeconds = r.connected.Sub(begin).Seconds()
	stop()
	if err := <-asked; err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	after, err := used(r.world.daemon)
	if err != nil {
		return err
	}
	r.report.setProcessors(before, after)
	r.report.Setup = r.latency(members)
	r.swarm.mu.Lock()
	r.report.Connected = count(members, phaseConnected)
	failed := count(members, phaseFailed)
	r.swarm.mu.Unlock()
	r.options.Progress("%d of %d clients are connected after %.2f s, which took %.2f s of processor time in the gateway, %.2f s in the lab; others used %.2f s",
		r.report.Connected, len(members), r.report.ConnectSeconds, r.report.ConnectCPU.Gateway, r.report.ConnectCPU.Lab, r.report.ConnectCPU.Others)
	if waited != nil || failed > 0 {
		r.options.Progress("%d failed%s", failed, r.refusals())
	}
	return nil
}

// every calls f again and again until the returned function is called.
func every(period time.Duration, f func()) (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				f()
			}
		}
	}()
	return func() {
		close(over)
		<-done
	}
}

// tally says how many clients are in which phase.
func tally(members []*member) string {
	var words []string
	for p, name := range phaseNames {
		if n := count(members, phase(p)); n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, name))
		}
	}
	return strings.Join(words, ", ")
}

// idle measures what clients cost that do nothing.
func (r *run) idle(ctx context.Context, members []*member, base footprint) error {
	wait := cmp.Or(r.options.settling, settling)
	r.options.Progress("waiting %v until the clients are idle", wait)
	if err := pause(ctx, wait); err != nil {
		return err
	}
	checks := r.swarm.snapshot()
	r.options.Progress("measuring %v of idleness", r.options.Idle)
	var err error
	if r.report.IdleLoad, err = load(ctx, r.world.daemon, r.options.Idle); err != nil {
		return err
	}
	r.report.IdleChecks = difference(checks, r.swarm.snapshot())
	full, err := r.footprint(ctx)
	if err != nil {
		return err
	}
	r.report.setFootprint(base, full)
	r.options.Progress("gateway with idle clients: %s (%.1f s after they were connected)", full, time.Since(r.connected).Seconds())

	patience, cancel := context.WithTimeout(ctx, wakePatience)
	defer cancel()
	r.report.Awake = r.swarm.pingAll(patience, members)
	r.options.Progress("%d of %d clients were answered when they woke up", r.report.Awake, len(members))
	r.report.Total = r.swarm.snapshot()
	return ctx.Err()
}

// footprint is how much memory the daemon has.
type footprint struct {
	memory
	resident int64
}

func (f footprint) String() string {
	return fmt.Sprintf("%d MiB of heap, %d MiB of stacks, %.1f MiB resident", f.Heap>>20, f.Stacks>>20, float64(f.resident)/(1<<20))
}

// footprint reads the resident memory as it is and then what is live.
func (r *run) footprint(ctx context.Context) (f footprint, err error) {
	if f.resident, err = resident(r.world.daemon); err != nil {
		return f, err
	}
	f.memory, err = r.world.settledMemory(ctx)
	return f, err
}

// collectEvents notes when the portal authorized which client.
func (r *run) collectEvents() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.world.portal.Events(r.events) {
		r.events = e.Seq
		switch {
		case e.Kind == portal.PeerJoined && e.Role == portal.Client:
			r.names[e.ClientID] = e.ExternalID
		case e.Kind == portal.AuthorizationPushed:
			if name := r.names[e.ClientID]; r.pushed[name].IsZero() {
				r.pushed[name] = e.At
			}
		}
	}
}

// latency returns the time from the authorization to the first inner answer of
// the clients that have one.
func (r *run) latency(members []*member) Latency {
	r.collectEvents()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.swarm.mu.Lock()
	defer r.swarm.mu.Unlock()
	var times []time.Duration
	for _, m := range members {
		if begin := r.pushed[m.id()]; !begin.IsZero() && !m.client.answered.IsZero() {
			times = append(times, m.client.answered.Sub(begin))
		}
	}
	return newLatency(times)
}

func (r *run) refusals() string {
	r.swarm.mu.Lock()
	defer r.swarm.mu.Unlock()
	reasons := slices.Compact(slices.Sorted(slices.Values(r.swarm.refused)))
	if len(reasons) == 0 {
		return ""
	}
	return fmt.Sprintf(" (refused %d times: %s)", len(r.swarm.refused), strings.Join(reasons, ", "))
}
