package actorkit

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.opentelemetry.io/otel/trace"
)

// Config is what a System is made of.
type Config struct {
	// Logger receives the kit's events. Nil discards them.
	Logger *slog.Logger
	// Tracer makes the spans of messages. Nil and no-op tracers cost nothing.
	Tracer trace.Tracer
	// Table has a row for every kind that will be spawned.
	Table Table
	// OnEvent is called in whatever goroutine noticed the event, often in an
	// actor's turn. It must not block and must not send to actors.
	OnEvent func(Event)
}

// System hosts a tree of actors.
type System struct {
	lib      *actor.ActorSystem
	logger   *slog.Logger
	tracer   trace.Tracer
	onEvent  func(Event)
	strategy *strategy
	kinds    map[string]*kind // fixed at start
	random   func() float64   // in [0, 1)
	epoch    time.Time

	deadLetters atomic.Uint64
	work        work
	exits       chan ExitRequest
	finished    chan struct{} // closed when Shutdown has done its work
	outcome     error         // of Shutdown, valid once finished is closed

	mu      sync.Mutex
	cells   map[string]*cell     // by path; guarded by mu
	retired map[string]KindStats // of ended actors; guarded by mu
	tops    []*cell              // in order of spawning; guarded by mu
	left    []string             // paths of actors left behind; guarded by mu
	ending  bool                 // guarded by mu
	guard   *watchdog            // from the first actor on; guarded by mu
}

// ExitRequest asks the process to end.
type ExitRequest struct {
	Code   int
	Path   string // of the actor on whose behalf
	Reason error
}

// NewSystem starts a System without actors. It panics if the table does not
// validate: a table is part of the program.
func NewSystem(config Config) *System {
	if err := config.Table.Validate(); err != nil {
		panic(fmt.Errorf("supervision table: %w", err))
	}
	logger := config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &System{
		logger: logger, tracer: enabled(config.Tracer), onEvent: config.OnEvent,
		kinds:  make(map[string]*kind, len(config.Table)),
		random: rand.Float64, epoch: time.Now(),
		exits: make(chan ExitRequest, 1), finished: make(chan struct{}),
		cells: make(map[string]*cell), retired: make(map[string]KindStats),
	}
	for name, spec := range config.Table {
		s.kinds[name] = &kind{spec: spec.withDefaults()}
	}
	s.strategy = &strategy{s}
	s.lib = actor.NewActorSystem(
		actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger {
			return slog.New(libraryLog{logger.Handler()})
		}),
		// The library's throttle keeps a goroutine for this long.
		actor.WithDeadLetterThrottleInterval(10*time.Millisecond),
	)
	s.lib.EventStream.Subscribe(s.deadLetter)
	return s
}

// Spawn starts a top actor of the given kind. Its give-up ends the process.
func (s *System) Spawn(kind, name string, producer func() Actor) (PID, error) {
	c, err := s.newCell(nil, kind, name, producer)
	if err != nil {
		return nil, err
	}
	pid, err := s.lib.Root.SpawnNamed(c.props(), c.path)
	if err != nil {
		s.forget(c)
		return nil, fmt.Errorf("spawn %s: %w", c.path, err)
	}
	return pid, nil
}

// SpawnChild starts a child of the actor that ctx belongs to. The name is
// unique among the children; the path is the parent's, a slash, and the name.
// The producer is called for each incarnation; it runs in the turn of the
// parent first and of the child afterwards. A producer that panics fails the
// child, not the parent.
func SpawnChild(ctx Context, kind, name string, producer func() Actor) (PID, error) {
	parent := ctx.kit()
	if parent.suppressed() || parent.phase() != phaseRunning {
		return nil, fmt.Errorf("spawn %s/%s: %w", parent.path, name, ErrEnding)
	}
	if _, taken := parent.children[parent.path+"/"+name]; taken {
		return nil, fmt.Errorf("spawn %s/%s: %w", parent.path, name, ErrNameTaken)
	}
	c, err := parent.sys.newCell(parent, kind, name, producer)
	if err != nil {
		return nil, err
	}
	parent.children[c.path] = c
	pid, err := parent.lib.SpawnNamed(c.props(), name)
	if err != nil {
		delete(parent.children, c.path)
		parent.sys.forget(c)
		return nil, fmt.Errorf("spawn %s: %w", c.path, err)
	}
	return pid, nil
}

func (s *System) newCell(parent *cell, kindName, name string, producer func() Actor) (*cell, error) {
	path := name
	if parent != nil {
		path = parent.path + "/" + name
	}
	k := s.kinds[kindName]
	if k == nil {
		return nil, fmt.Errorf("spawn %s: kind %q: %w", path, kindName, ErrUnknownKind)
	}
	c := newCell(s, parent, k, name, path, producer)
	c.span.origin = origin(parent)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Looked at under mu, so that whoever takes the parent's turn away finds
	// either all children or none to come.
	if s.ending && parent == nil || parent != nil && parent.stale() {
		return nil, fmt.Errorf("spawn %s: %w", path, ErrEnding)
	}
	if _, taken := s.cells[path]; taken || name == "" {
		return nil, fmt.Errorf("spawn %s: %w", path, ErrNameTaken)
	}
	s.cells[path] = c
	if s.guard == nil {
		s.guard = startWatchdog(s)
	}
	if parent == nil {
		s.tops = append(s.tops, c)
	}
	return c, nil
}

// Send delivers msg to pid. It is for goroutines outside of actors.
func (s *System) Send(pid PID, msg any) { s.post(pid, msg) }

// SendContext is Send with the trace context of ctx.
func (s *System) SendContext(ctx context.Context, pid PID, msg any) {
	s.post(pid, traced(ctx, msg, nil))
}

// RequestExit asks for the end of the process. The first request wins.
func (s *System) RequestExit(code int, path string, reason error) {
	select {
	case s.exits <- ExitRequest{code, path, reason}:
	default:
	}
}

// ExitRequests delivers the first request to end the process. The receiver
// calls Shutdown and exits with the code.
func (s *System) ExitRequests() <-chan ExitRequest { return s.exits }

func (s *System) now() time.Duration { return time.Since(s.epoch) }

func (s *System) post(pid PID, msg any) {
	if pid == nil {
		s.lib.DeadLetter.SendUserMessage(nil, msg)
		return
	}
	s.lib.Root.Send(pid, msg)
}

// find returns the cell of exactly this PID, not of a later actor of that name.
func (s *System) find(pid PID) *cell {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cells[pid.Id]; c != nil && c.pid == pid {
		return c
	}
	return nil
}

// statsOf returns what is counted about the actor of that path, or nil.
func (s *System) statsOf(pid PID) *cellStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cells[Path(pid)]; c != nil {
		return c.stats
	}
	return nil
}

// childrenOf returns the children that have not ended.
func (s *System) childrenOf(parent *cell) []*cell {
	s.mu.Lock()
	defer s.mu.Unlock()
	var children []*cell
	for _, c := range s.cells {
		if c.parent == parent {
			children = append(children, c)
		}
	}
	return children
}

// adopt puts a cell in the place of another.
func (s *System) adopt(old, successor *cell) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cells[old.path] == old {
		s.cells[old.path] = successor
	}
	if i := slices.Index(s.tops, old); i >= 0 {
		s.tops[i] = successor
	}
}

// notify delivers a system message.
func (s *System) notify(pid PID, msg any) {
	process, _ := s.lib.ProcessRegistry.Get(pid)
	process.SendSystemMessage(pid, msg)
}

func (s *System) forget(c *cell) {
	c.closeFailed()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cells[c.path] != c {
		return
	}
	delete(s.cells, c.path)
	k := s.retired[c.kind.spec.Kind]
	k.Kind = c.kind.spec.Kind
	totals := c.stats.totals()
	k.Totals.add(&totals)
	k.Peaks.add(c.stats.peaks())
	s.retired[k.Kind] = k
	s.tops = slices.DeleteFunc(s.tops, func(top *cell) bool { return top == c })
}

func (s *System) leaveBehind(c *cell) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		s.left = append(s.left, c.path)
	}
}

// traced wraps msg for a sender outside of actors.
func traced(ctx context.Context, msg any, sender PID) any {
	var header map[string]string
	if _, silent := msg.(Untraced); !silent {
		header = headerOf(ctx)
	}
	if header == nil && sender == nil {
		return msg
	}
	return &actor.MessageEnvelope{Header: header, Message: msg, Sender: sender}
}
