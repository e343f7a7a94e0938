package actorkit

import (
	"runtime"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// shell stands between the library and one incarnation of an actor.
type shell struct {
	cell  *cell
	actor Actor
}

// quit is what an actor of class Always sends itself by poisoning itself.
type quit struct{}

func (quit) Untraced() {}

// Receive implements the library's actor.
func (s *shell) Receive(lib actor.Context) {
	c := s.cell
	switch m := lib.Message().(type) {
	case *actor.Started:
		s.start(m)
	case *actor.Restarting:
		c.setPhase(phaseRestarting)
		s.guarded(m)
		c.endIncarnation()
	case *actor.Stopping:
		c.setPhase(phaseStopping)
		c.stopTimers(false)
		s.guarded(m)
		c.endIncarnation()
	case *actor.Stopped:
		c.setPhase(phaseStopped)
		c.stopTimers(true)
		s.guarded(m)
		c.endIncarnation()
		c.tally.publish(c.stats)
		c.sys.forget(c)
		c.mailbox.close()
		c.life.end()
	case *actor.Terminated:
		s.terminated(m)
	default:
		s.user(lib, m)
	}
}

func (s *shell) start(m *Started) {
	c := s.cell
	c.current = s
	c.setPhase(phaseRunning)
	c.startLife()
	if c.number > 1 {
		c.stats.restarts.Add(1)
		c.report(Event{Type: EventRestarted, Kind: c.kind.spec.Kind, Path: c.path})
	}
	s.lifecycle(m)
	c.endSpan(nil)
	held := c.held
	c.held = nil
	for i, t := range held {
		// A panic must not lose the rest.
		c.held = held[i+1:]
		s.lifecycle(t)
	}
}

// terminated hands on the end of a child or a watched actor. A failed or
// ending actor does not care about its children, which end with it; the end
// of an actor that it watches waits for the next incarnation.
func (s *shell) terminated(m *Terminated) {
	c := s.cell
	_, child := c.children[m.Who.Id]
	delete(c.children, m.Who.Id)
	switch c.phase() {
	case phaseRunning:
		s.lifecycle(m)
	case phaseFailed, phaseRestarting:
		if !child {
			c.held = append(c.held, m)
		}
	}
}

// lifecycle delivers a message whose panic fails the actor.
func (s *shell) lifecycle(m any) {
	c := s.cell
	c.msg = m
	defer func() { c.msg = nil }()
	c.mailbox.begin(m)
	s.actor.Receive(c)
	s.checkQuit()
	if c.mailbox.end() {
		runtime.Goexit() // the library would go on with what is another's by now
	}
}

// guarded delivers a message whose panic must not reach the library, which
// would restart an actor that ends, or never end it.
func (s *shell) guarded(m any) {
	c := s.cell
	c.msg = m
	c.mailbox.begin(m)
	f := s.attempt()
	c.msg = nil
	if c.mailbox.end() {
		runtime.Goexit() // as in lifecycle
	}
	if f != nil {
		c.stats.fail(f, time.Now())
		c.report(Event{Type: EventSwallowed, Kind: c.kind.spec.Kind, Path: c.path, Message: typeName(m), Fault: f})
	}
}

// attempt returns the panic of the handler, if there is one.
func (s *shell) attempt() (f *Fault) {
	defer func() {
		if r := recover(); r != nil {
			f = asFault(r)
		}
	}()
	s.actor.Receive(s.cell)
	return nil
}

// user delivers one message of the mailbox.
func (s *shell) user(lib actor.Context, raw any) {
	c := s.cell
	msg := raw
	untraced, own := false, false
	var place *gated
	var planted *injection
	switch m := raw.(type) {
	case *tick:
		if !m.timer.live {
			return
		}
		msg, untraced, own = m.timer.msg, true, true
		m.timer.fired()
		defer m.timer.rearm()
	case *result:
		if m.owner != s {
			return
		}
		if m.fault != nil {
			c.startSpan(lib, m)
			panic(m.fault)
		}
		msg, own = m.value, true
	case *gated:
		msg, place = m.msg, m
	case quit:
		panic(&Fault{Reason: ErrStoppedItself})
	case *injection:
		planted, untraced, own = m, true, true
	}
	if f := c.faults.Load(); f != nil && !own && f.meet(c, msg) {
		if place != nil {
			place.release()
		}
		c.sys.refuse(lib.Sender(), f.fault)
		c.traceLoss(lib, msg, f.fault)
		return
	}
	// A clock read costs as much as the rest of a hop: in a row of messages
	// the end of one is the start of the next.
	start := c.lastEnd
	if start == 0 {
		start = c.sys.now()
	}
	c.msg = msg
	if !untraced {
		c.startSpan(lib, msg)
	}
	defer s.finish(lib, place, start)
	if planted != nil {
		planted.act(c)
		return
	}
	s.actor.Receive(c)
	s.checkQuit()
}

// finish ends the handling of a message, however it ended.
func (s *shell) finish(lib actor.Context, place *gated, start time.Duration) {
	c := s.cell
	r := recover()
	var fault *Fault
	if r != nil {
		fault = asFault(r)
	}
	stale := c.stale()
	if stale {
		fault = &Fault{Reason: ErrStuck}
	}
	c.endSpan(fault)
	c.msg = nil
	if place != nil {
		place.release()
	}
	if stale {
		return
	}
	end := c.sys.now()
	c.lastEnd = end
	c.tally.add(start-c.queuedAt, end-start)
	if c.tally.n >= tallyLimit {
		c.tally.publish(c.stats)
	}
	if fault != nil {
		c.sys.refuse(lib.Sender(), fault)
		panic(fault)
	}
}

func (s *shell) checkQuit() {
	if s.cell.quitting {
		panic(&Fault{Reason: ErrStoppedItself})
	}
}
