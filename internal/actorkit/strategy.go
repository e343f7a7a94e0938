package actorkit

import (
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// strategy applies decide to the library's failures. HandleFailure runs in the
// turn of the parent, and in the failed actor's own for a top actor.
type strategy struct{ sys *System }

var _ actor.SupervisorStrategy = (*strategy)(nil)

// HandleFailure implements actor.SupervisorStrategy. The library's own
// statistics are not used: they grow without bound.
func (s *strategy) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, child *actor.PID,
	_ *actor.RestartStatistics, reason, message any) {
	c := s.sys.find(child)
	if c == nil {
		return
	}
	if c.parent != nil && c.parent.phase() != phaseRunning {
		// The parent ends or restarts, and its children with it.
		c.mailbox.PostSystemMessage(&actor.Stop{})
		return
	}
	fault := asFault(reason)
	d, failures := c.judge()
	if d.restart {
		s.sys.emit(Event{
			Type: EventFailed, Kind: c.kind.spec.Kind, Path: c.path,
			Message: typeName(message), Fault: fault, Delay: d.delay, Failures: failures,
		})
		c.scheduleRestart(d.delay)
		return
	}
	s.sys.emit(Event{
		Type: EventGaveUp, Kind: c.kind.spec.Kind, Path: c.path,
		Message: typeName(message), Fault: fault, Failures: failures,
	})
	s.giveUp(c, supervisor, fault, failures, message)
}

func (s *strategy) giveUp(c *cell, supervisor actor.Supervisor, fault *Fault, failures int, message any) {
	how := c.kind.spec.GiveUp
	if c.parent == nil {
		code := 1
		if how.verb == giveUpExit {
			code = how.code
		}
		s.sys.RequestExit(code, c.path, fault)
		c.mailbox.PostSystemMessage(&actor.Stop{})
		return
	}
	switch how.verb {
	case giveUpDegrade:
		// Delivered here, in the parent's turn, so that it precedes Terminated.
		// Last, because a parent that panics on it ends this call.
		c.mailbox.PostSystemMessage(&actor.Stop{})
		c.parent.current.lifecycle(&ChildGaveUp{
			PID: c.pid, Kind: c.kind.spec.Kind, Name: c.name, Fault: fault, Failures: failures,
		})
		return
	case giveUpEscalate:
		// The child stays suspended until the parent's restart stops it.
		why := &Fault{Reason: &Escalated{Path: c.path, Fault: fault}, Stack: fault.Stack}
		c.parent.fail(why)
		supervisor.EscalateFailure(why, message)
		return
	case giveUpExit:
		s.sys.RequestExit(how.code, c.path, fault)
	}
	c.mailbox.PostSystemMessage(&actor.Stop{})
}

func (c *cell) judge() (decision, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := decide(c.kind.spec, &c.history, time.Now(), c.sys.random())
	return d, c.history.streak
}
