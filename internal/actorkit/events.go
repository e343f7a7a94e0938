package actorkit

import (
	"context"
	"log/slog"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// EventType says what an Event is about.
type EventType uint8

// The events.
const (
	// EventFailed: an actor failed and will restart after Delay.
	EventFailed EventType = iota + 1
	// EventRestarted: a new incarnation is about to receive Started.
	EventRestarted
	// EventGaveUp: an actor failed and its Spec's GiveUp applies.
	EventGaveUp
	// EventSwallowed: an actor panicked in Stopping, Stopped or Restarting.
	EventSwallowed
	// EventOverrun: an actor did not stop within its budget.
	EventOverrun
	// EventDeadLetter: a message had no receiver.
	EventDeadLetter
	// EventStuck: a handler has run for For, which is too long, and was left
	// behind.
	EventStuck
	// EventReturned: a handler that had been left behind has ended.
	EventReturned
	// EventInjected: Inject crashed or hung the actor, or delayed or dropped a
	// message. The Fault says what.
	EventInjected
)

// String returns the name of the event.
func (t EventType) String() string {
	switch t {
	case EventFailed:
		return "actor failed"
	case EventRestarted:
		return "actor restarted"
	case EventGaveUp:
		return "actor gave up"
	case EventSwallowed:
		return "actor panicked while ending"
	case EventOverrun:
		return "actor overran its shutdown budget"
	case EventDeadLetter:
		return "dead letter"
	case EventStuck:
		return "actor is stuck"
	case EventReturned:
		return "handler that was left behind returned"
	case EventInjected:
		return "fault injected"
	}
	return "unknown"
}

// Event is something the kit noticed about an actor. It names types of
// messages and never carries their contents.
type Event struct {
	Type     EventType
	Kind     string // empty for dead letters
	Path     string
	Message  string // type of the message that was handled
	Fault    *Fault
	Delay    time.Duration
	For      time.Duration
	Failures int // in a row
}

func (t EventType) level() slog.Level {
	switch t {
	case EventGaveUp, EventStuck:
		return slog.LevelError
	case EventFailed, EventSwallowed, EventOverrun, EventInjected:
		return slog.LevelWarn
	case EventRestarted, EventReturned:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// emit logs an event and hands it on. It runs in the turn of whoever noticed.
func (s *System) emit(e Event) {
	ctx := context.Background()
	if s.logger.Enabled(ctx, e.Type.level()) {
		attrs := []slog.Attr{slog.String("actor", e.Path)}
		if e.Message != "" {
			attrs = append(attrs, slog.String("message", e.Message))
		}
		if e.Fault != nil {
			attrs = append(attrs, slog.String("reason", e.Fault.Error()))
			if len(e.Fault.Stack) > 0 && s.logger.Enabled(ctx, slog.LevelDebug) {
				attrs = append(attrs, slog.String("stack", string(e.Fault.Stack)))
			}
		}
		if e.Failures > 0 {
			attrs = append(attrs, slog.Int("failures", e.Failures))
		}
		if e.For > 0 {
			attrs = append(attrs, slog.Duration("for", e.For))
		}
		if e.Type == EventFailed {
			attrs = append(attrs, slog.Duration("restart_in", e.Delay))
		}
		s.logger.LogAttrs(ctx, e.Type.level(), e.Type.String(), attrs...)
	}
	if s.onEvent != nil {
		s.onEvent(e)
	}
}

// deadLetter sees what the library could not deliver.
func (s *System) deadLetter(event any) {
	letter, ok := event.(*actor.DeadLetterEvent)
	if !ok {
		return
	}
	msg := letter.Message
	switch m := msg.(type) {
	case actor.SystemMessage, *actor.PoisonPill, *actor.DeadLetterResponse,
		*actor.SuspendMailbox, *actor.ResumeMailbox, *Fault:
		return
	case *gated:
		m.release()
		msg = m.msg
	}
	s.deadLetters.Add(1)
	s.emit(Event{Type: EventDeadLetter, Path: Path(letter.PID), Message: typeName(msg)})
}

// libraryLog passes on the library's errors without their attributes, which
// hold messages and so secrets; everything else the kit reports itself.
type libraryLog struct{ to slog.Handler }

func (l libraryLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError && l.to.Enabled(ctx, level)
}

func (l libraryLog) Handle(ctx context.Context, r slog.Record) error {
	return l.to.Handle(ctx, slog.NewRecord(r.Time, r.Level, "actor library: "+r.Message, r.PC))
}

func (l libraryLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l libraryLog) WithGroup(string) slog.Handler      { return l }
