package actorkit

import (
	"context"
	"log/slog"
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
//	any → stopping → stopped
type phase int32

const (
	phaseStarting phase = iota
	phaseRunning
	phaseFailed     // suspended, its supervisor decides
	phaseRestarting // waits for its children to end
	phaseStopping   // waits for its children to end
	phaseStopped
)

// String returns the name of the phase.
func (p phase) String() string {
	return [...]string{"starting", "running", "failed", "restarting", "stopping", "stopped"}[p]
}

// kind is what the actors of one row share.
type kind struct {
	spec     Spec
	messages sync.Map // reflect.Type -> *messageKind
}

// cell is what the kit keeps about one actor across its incarnations. Fields
// without a comment are fixed at spawn or owned by the actor's turn.
type cell struct {
	sys      *System
	parent   *cell // nil for a top actor
	name     string
	path     string
	kind     *kind
	producer func() Actor
	mailbox  *mailbox
	done     chan struct{} // closed when stopped or left behind
	pid      PID
	lib      actor.Context
	logger   *slog.Logger
	onSpans  trace.SpanStartEventOption // the actor's own attributes

	state atomic.Int32 // phase; written by the turn
	stats cellStats

	mu      sync.Mutex
	history history     // guarded by mu
	backoff *time.Timer // guarded by mu
	budget  *time.Timer // guarded by mu
	left    sync.Once   // closes done

	children  map[string]*cell
	abandoned map[PID]struct{} // children left behind, Terminated outstanding
	held      []*Terminated    // for the next incarnation

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
	msg      any
	span     spanState
}

func newCell(sys *System, parent *cell, k *kind, name, path string, producer func() Actor) *cell {
	c := &cell{
		sys: sys, parent: parent, kind: k, name: name, path: path, producer: producer,
		done:     make(chan struct{}),
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
		actor.WithOnInit(func(lib actor.Context) { c.lib, c.pid = lib, lib.Self() }),
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
}

// lifetime is a context that ends with the incarnation.
func (c *cell) lifetime() context.Context {
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancel(context.Background())
		if c.current == nil {
			c.cancel()
		}
	}
	return c.ctx
}

// scheduleRestart restarts the actor after delay, unless it is stopped before:
// Restart then finds a mailbox whose actor has not failed, or none.
func (c *cell) scheduleRestart(delay time.Duration) {
	if delay == 0 {
		c.mailbox.PostSystemMessage(&actor.Restart{})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase() >= phaseStopping {
		return
	}
	c.backoff = time.AfterFunc(delay, func() { c.mailbox.PostSystemMessage(&actor.Restart{}) })
}

// startBudget begins the time within which the actor must have stopped.
func (c *cell) startBudget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.budget == nil && c.phase() != phaseStopped {
		c.budget = time.AfterFunc(c.kind.spec.ShutdownBudget, c.overrun)
	}
}

// overrun leaves the actor behind.
func (c *cell) overrun() {
	if c.phase() == phaseStopped {
		return
	}
	c.sys.emit(Event{Type: EventOverrun, Kind: c.kind.spec.Kind, Path: c.path})
	c.sys.leaveBehind(c)
	if c.parent != nil {
		c.parent.mailbox.PostSystemMessage(&abandon{c})
	}
	c.left.Do(func() { close(c.done) })
}

// letGo makes the end of a child that overran its budget, for the parent's
// turn. The real one is dropped when it comes, because the name may belong to
// another child by then; the two differ in the identity of the PID.
func (c *cell) letGo(child *cell) *Terminated {
	if c.children[child.path] != child {
		return nil
	}
	if c.abandoned == nil {
		c.abandoned = make(map[PID]struct{})
	}
	c.abandoned[child.pid] = struct{}{}
	return &Terminated{Who: c.sys.lib.NewLocalPID(child.path)}
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
	if env, ok := msg.(*actor.MessageEnvelope); ok {
		if _, stale := env.Message.(*result); stale {
			return
		}
	}
	switch msg.(type) {
	case *tick, *result, quit, *actor.PoisonPill:
		return
	}
	c.sys.lib.DeadLetter.SendUserMessage(c.pid, msg)
}
