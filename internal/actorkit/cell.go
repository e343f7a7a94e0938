package actorkit

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/telemetry"
)

// phase is where an actor is in its life.
//
//	starting → running ⇄ failed → restarting → running
//	any → stuck → a new cell, starting
//	any → stopping → stopped
type phase int32

const (
	phaseStarting phase = iota
	phaseRunning
	phaseFailed     // suspended, its supervisor decides
	phaseStuck      // its handler was left behind, its supervisor decides
	phaseRestarting // waits for its children to end
	phaseStopping   // waits for its children to end
	phaseStopped
)

// String returns the name of the phase.
func (p phase) String() string {
	return [...]string{"starting", "running", "failed", "stuck", "restarting", "stopping", "stopped"}[p]
}

// kind is what the actors of one row share.
type kind struct {
	spec     Spec
	messages sync.Map // reflect.Type -> *messageKind
}

// cell is what the kit keeps about one actor across its incarnations, until one
// of them gets stuck: then another cell takes its place. Fields without a
// comment are fixed at spawn or owned by the actor's turn.
type cell struct {
	sys      *System
	parent   *cell // nil for a top actor
	name     string
	path     string
	kind     *kind
	producer func() Actor
	mailbox  *mailbox
	life     *life
	pid      PID
	lib      actor.Context
	logger   *slog.Logger
	onSpans  trace.SpanStartEventOption // the actor's own attributes

	state atomic.Int32 // phase; written by the turn
	stats *cellStats
	// faults are those that Inject arranged for messages to come; mostly nil.
	faults atomic.Pointer[faults]
	// revocation cancels ctx from outside of the turn; nil until there is one.
	revocation atomic.Pointer[context.CancelFunc]
	scanned    scan // owned by the watchdog

	mu       sync.Mutex
	history  history     // guarded by mu
	backoff  *time.Timer // guarded by mu
	budget   *time.Timer // guarded by mu
	watchers []PID       // guarded by mu

	children map[string]*cell
	held     []*Terminated // for the next incarnation

	// The incarnation.
	number   uint64
	current  *shell
	ctx      context.Context // ends with the incarnation; nil until needed
	cancel   context.CancelFunc
	timers   []*Timers
	quitting bool // asked to stop itself, class Always

	// The message being handled.
	queuedAt time.Duration
	lastEnd  time.Duration // of the message handled just before, zero if none
	tally    tally
	msg      any
	span     spanState
}

// life is shared by the cells that follow each other in one place.
type life struct {
	over chan struct{} // closed when the actor stopped or was left behind
	once sync.Once
}

func (l *life) end() { l.once.Do(func() { close(l.over) }) }

func newCell(sys *System, parent *cell, k *kind, name, path string, producer func() Actor) *cell {
	c := &cell{
		sys: sys, parent: parent, kind: k, name: name, path: path, producer: producer,
		life:     &life{over: make(chan struct{})},
		stats:    &cellStats{},
		children: make(map[string]*cell),
		onSpans:  trace.WithAttributes(telemetry.AttrActorPath.String(path)),
	}
	c.mailbox = &mailbox{cell: c}
	return c
}

func (c *cell) phase() phase     { return phase(c.state.Load()) }
func (c *cell) setPhase(p phase) { c.state.Store(int32(p)) }

// props wires the cell into the library.
func (c *cell) props() *actor.Props {
	options := []actor.PropsOption{
		actor.WithMailbox(func() actor.Mailbox { return c.mailbox }),
		actor.WithSupervisor(c.sys.strategy),
		actor.WithOnInit(func(lib actor.Context) {
			c.lib, c.pid = lib, lib.Self()
			c.pid.Id = c.path // a replacement is spawned under another name
		}),
	}
	if c.parent == nil {
		options = append(options, actor.WithGuardian(c.sys.strategy))
	}
	return actor.PropsFromProducer(c.incarnate, options...)
}

// incarnate makes the next value of the actor. A producer that panics makes
// an actor that fails at once, so that its own supervisor decides about it.
func (c *cell) incarnate() (a actor.Actor) {
	c.number++
	if c.lib != nil { // else it is the turn of whoever spawns
		c.mailbox.begin(producing{})
		defer func() {
			if c.mailbox.end() {
				runtime.Goexit()
			}
		}()
	}
	defer func() {
		if r := recover(); r != nil {
			a = &shell{cell: c, actor: stillborn{asFault(r)}}
		}
	}()
	made := c.producer()
	if made == nil {
		panic("producer made no actor")
	}
	return &shell{cell: c, actor: made}
}

// producing stands for a message while the producer runs.
type producing struct{}

// stillborn fails as soon as it is started.
type stillborn struct{ fault *Fault }

func (s stillborn) Receive(ctx Context) {
	if _, ok := ctx.Message().(*Started); ok {
		panic(s.fault)
	}
}

// fail marks the incarnation as failed and ends what it started.
func (c *cell) fail(f *Fault) {
	c.setPhase(phaseFailed)
	c.endSpan(f)
	c.stats.fail(f, time.Now())
	c.endIncarnation()
}

// endIncarnation ends timers and goroutines. What they have already put into
// the mailbox is stale from here on.
func (c *cell) endIncarnation() {
	c.current = nil
	c.quitting = false
	for _, t := range c.timers {
		t.CancelAll()
	}
	c.timers = nil
	if c.cancel != nil {
		c.cancel()
	}
	c.ctx, c.cancel = nil, nil
	c.revocation.Store(nil)
}

// lifetime is a context that ends with the incarnation.
func (c *cell) lifetime() context.Context {
	if c.ctx == nil {
		ctx, cancel := context.WithCancel(context.Background())
		c.ctx, c.cancel = ctx, cancel
		c.revocation.Store(&cancel)
		if c.current == nil || c.stale() {
			cancel()
		}
	}
	return c.ctx
}

// scheduleRestart restarts or replaces the actor after delay, unless it is
// stopped before: Restart then finds a mailbox whose actor has not failed, or
// none, and succeed one that was dismissed.
func (c *cell) scheduleRestart(delay time.Duration) {
	restart := func() { c.mailbox.PostSystemMessage(&actor.Restart{}) }
	if c.phase() == phaseStuck {
		restart = c.succeed
	} else if delay == 0 {
		restart()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase() >= phaseStopping {
		return
	}
	c.backoff = time.AfterFunc(delay, restart)
}

// startBudget begins the time within which the actor must have stopped.
func (c *cell) startBudget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.budget == nil && c.phase() != phaseStopped {
		c.budget = time.AfterFunc(c.kind.spec.ShutdownBudget, c.overrun)
	}
}

// overrun leaves the actor behind. If it is in a handler, that is left behind,
// and the name is free as soon as the children have ended.
func (c *cell) overrun() {
	if c.phase() == phaseStopped {
		return
	}
	c.report(Event{Type: EventOverrun, Kind: c.kind.spec.Kind, Path: c.path})
	c.sys.leaveBehind(c)
	msg, left := c.mailbox.takeTurn(c.mailbox.work.Load()&stepMask, lossDismissed)
	if left != lossNone {
		c.setPhase(phaseStopping)
		c.forsake(msg, &Fault{Reason: ErrLeftBehind})
		if len(c.sys.childrenOf(c)) == 0 {
			c.bury()
			return
		}
		go c.depart()
	}
	if c.parent != nil {
		c.parent.mailbox.PostSystemMessage(&abandon{c})
	}
	c.life.end()
}

// knowsAsGone reports whether the end of a child is no news: of one that was
// left behind, or that another one of this name follows. They differ in the
// identity of the PID.
func (c *cell) knowsAsGone(pid PID) bool {
	if child, ok := c.children[pid.Id]; ok {
		return child.pid != pid
	}
	return isChild(c.path, pid)
}

// isChild reports whether pid is, or was, a child of the actor at path.
func isChild(path string, pid PID) bool {
	i := strings.LastIndexByte(pid.Id, '/')
	return i >= 0 && pid.Id[:i] == path
}

// watched records who wants to hear of the actor's end.
func (c *cell) watched(watcher PID, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers = slices.DeleteFunc(c.watchers, func(w PID) bool { return Same(w, watcher) })
	if yes {
		c.watchers = append(c.watchers, watcher)
	}
}

// stopTimers ends what could still act on a stopping actor.
func (c *cell) stopTimers(budgetToo bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.backoff != nil {
		c.backoff.Stop()
	}
	if budgetToo && c.budget != nil {
		c.budget.Stop()
	}
}

// discard accounts for a message that will not be handled.
func (c *cell) discard(msg any) {
	switch msg.(type) {
	case *actor.PoisonPill, *injection:
		return
	}
	if !ofIncarnation(msg) {
		c.sys.lib.DeadLetter.SendUserMessage(c.pid, msg)
	}
}

// ofIncarnation reports whether msg means nothing to another incarnation than
// the one that caused it.
func ofIncarnation(msg any) bool {
	switch actor.UnwrapEnvelopeMessage(msg).(type) {
	case *tick, *result, quit:
		return true
	}
	return false
}
