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
func (s *strategy) HandleFailure(_ *actor.ActorSystem, _ actor.Supervisor, child *actor.PID,
	_ *actor.RestartStatistics, reason, message any) {
	if c := s.sys.find(child); c != nil {
		name, ok := message.(messageName)
		if !ok {
			name = messageName(typeName(bare(message)))
		}
		s.failed(c, asFault(reason), string(name))
	}
}

// messageName is a message of which only the name of its type is left.
type messageName string

// failed decides about an actor that failed, in the turn of its parent. A top
// actor that is stuck has no turn to run it in, and needs none.
func (s *strategy) failed(c *cell, fault *Fault, message string) {
	if c.parent != nil && c.parent.phase() != phaseRunning {
		// The parent ends or restarts, and its children with it.
		c.mailbox.PostSystemMessage(&actor.Stop{})
		return
	}
	d, failures := c.judge()
	if d.restart {
		c.report(Event{
			Type: EventFailed, Kind: c.kind.spec.Kind, Path: c.path,
			Message: message, Fault: fault, Delay: d.delay, Failures: failures,
		})
		c.scheduleRestart(d.delay)
		return
	}
	c.report(Event{
		Type: EventGaveUp, Kind: c.kind.spec.Kind, Path: c.path,
		Message: message, Fault: fault, Failures: failures,
	})
	s.giveUp(c, fault, failures, message)
}

func (s *strategy) giveUp(c *cell, fault *Fault, failures int, message string) {
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
		c.parent.mailbox.invoker.EscalateFailure(why, messageName(message))
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
