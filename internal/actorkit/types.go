package actorkit

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/asynkron/protoactor-go/actor"
)

// PID names an actor. It stays valid across restarts, and may be kept and
// passed on in messages.
type PID = *actor.PID

// Lifecycle messages, received as pointers.
type (
	// Started is the first message of every incarnation.
	Started = actor.Started
	// Stopping precedes the stop of the children.
	Stopping = actor.Stopping
	// Stopped is the last message of an actor; its children are gone.
	Stopped = actor.Stopped
	// Restarting is received by the incarnation that failed.
	Restarting = actor.Restarting
	// Terminated says that a child or a watched actor has ended.
	Terminated = actor.Terminated
)

// ChildGaveUp tells a parent that a child was stopped because its restarts
// were used up and its Spec says Degrade. It is received as a pointer.
type ChildGaveUp struct {
	PID      PID
	Kind     string
	Name     string // as given to SpawnChild
	Fault    *Fault
	Failures int // failures in a row, this one included
}

// Untraced is implemented by messages that must not open a span.
type Untraced interface{ Untraced() }

// Actor handles one message at a time.
type Actor interface {
	Receive(ctx Context)
}

// ActorFunc makes an Actor of a function.
type ActorFunc func(ctx Context)

// Receive calls f.
func (f ActorFunc) Receive(ctx Context) { f(ctx) }

// Context is an actor's view of the message it handles and of itself. It is
// valid in the actor's turn only.
type Context interface {
	// Message is the message being handled.
	Message() any
	// Sender is who waits for an answer, or nil.
	Sender() PID
	// Self is the actor, Parent who spawned it (nil for a top actor).
	Self() PID
	Parent() PID
	// Name is the name given to SpawnChild, Kind the row of the Table.
	Name() string
	Kind() string
	// Children lists the children that have not ended.
	Children() []PID
	// System is the system the actor lives in.
	System() *System
	// Logger carries the actor's path.
	Logger() *slog.Logger

	// Send delivers msg to pid.
	Send(pid PID, msg any)
	// Request delivers msg to pid, with the actor as its Sender.
	Request(pid PID, msg any)
	// Respond answers the Sender; without one msg is a dead letter. Each
	// request is answered at most once.
	Respond(msg any)
	// Forward passes the message on with its Sender.
	Forward(pid PID)

	// Watch asks for Terminated when pid ends. Children need no Watch.
	Watch(pid PID)
	Unwatch(pid PID)
	// Stop ends pid after the message it handles. An actor of class Always
	// that stops itself is restarted.
	Stop(pid PID)
	// Poison ends pid after the messages queued before.
	Poison(pid PID)

	kit() *cell
}

// Send delivers msg to pid; it is ctx.Send.
func Send(ctx Context, pid PID, msg any) { ctx.Send(pid, msg) }

// Same reports whether a and b name the same actor.
func Same(a, b PID) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Id == b.Id && a.Address == b.Address
}

// Path returns the path of pid in the tree, such as "gateway/portal".
func Path(pid PID) string {
	if pid == nil {
		return ""
	}
	return pid.Id
}

var (
	// ErrNameTaken is returned by spawning under a name that is in use. A
	// name is free again once Terminated has arrived.
	ErrNameTaken = errors.New("actor name is taken")
	// ErrUnknownKind is returned by spawning a kind without a Spec.
	ErrUnknownKind = errors.New("actor kind has no supervision row")
	// ErrEnding is returned by spawning from an actor or a system that ends.
	ErrEnding = errors.New("actor is ending")
	// ErrStoppedItself is the reason of the Fault of an actor of class Always
	// that stops itself.
	ErrStoppedItself = errors.New("actor stopped itself")
	// ErrStuck is wrapped by the reason of the Fault of an actor whose handler ran
	// for longer than Spec.Stuck.
	ErrStuck = errors.New("handler does not return")
	// ErrInjected is wrapped by the reason of a Fault that Inject brought about.
	ErrInjected = errors.New("injected")
	// ErrGoexit is the reason of the Fault of a handler that ends its
	// goroutine.
	ErrGoexit = errors.New("handler called runtime.Goexit")
)

// Fault is why an actor failed: the value of the panic and its stack.
type Fault struct {
	Reason any
	Stack  []byte
}

// Error returns the reason without the stack.
func (f *Fault) Error() string { return fmt.Sprint(f.Reason) }

// Unwrap returns the reason if it is an error.
func (f *Fault) Unwrap() error {
	err, _ := f.Reason.(error)
	return err
}

// Escalated is the reason of the Fault of a parent whose child gave up with
// Escalate.
type Escalated struct {
	Path  string
	Fault *Fault
}

// Error names the child and its fault.
func (e *Escalated) Error() string { return e.Path + " gave up: " + e.Fault.Error() }

// Unwrap returns the child's fault.
func (e *Escalated) Unwrap() error { return e.Fault }

// asFault must run in the deferred function that recovered r, so that the
// stack is the one of the panic.
func asFault(r any) *Fault {
	if f, ok := r.(*Fault); ok {
		return f
	}
	return &Fault{Reason: r, Stack: debug.Stack()}
}
