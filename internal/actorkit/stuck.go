package actorkit

import (
	"fmt"
	"slices"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// A handler cannot be ended from outside. What can be taken from it is its
// turn: the cell, the library's context and the mailbox stay with the goroutine
// that is stuck in it, another cell with a context and a mailbox of its own
// takes their place, and the process that all PIDs of the path lead to hands on
// to that. When the handler returns, mailbox.end tells the goroutine that there
// is nothing left for it to do.

// stuckChild tells a parent that a child was found stuck.
type stuckChild struct {
	child   *cell
	fault   *Fault
	message string
}

// succession asks a parent to replace a child that is stuck and whose children
// have ended.
type succession struct{ child *cell }

// stuck leaves behind the handler that runs since steps and has been for ran, and
// perhaps for slack longer. The watchdog calls it.
func (c *cell) stuck(steps uint64, ran, slack time.Duration) {
	msg, left := c.mailbox.takeTurn(steps, lossWaiting)
	if left == lossNone {
		return // it has returned after all
	}
	if c.phase() >= phaseStopping {
		left = c.mailbox.dismissed()
	}
	message := typeName(bare(msg))
	fault := &Fault{Reason: fmt.Errorf("%w: %s for %v", ErrStuck, message, ran)}
	c.mu.Lock()
	c.history.stuck = ran + slack
	c.mu.Unlock()
	c.setPhase(phaseStuck)
	c.stats.stuck.Add(1)
	c.stats.fail(fault, time.Now())
	c.report(Event{Type: EventStuck, Kind: c.kind.spec.Kind, Path: c.path, Message: message, For: ran})
	c.forsake(msg, fault)
	switch {
	case left == lossDismissed:
		c.dismiss()
	case c.parent == nil:
		c.sys.strategy.failed(c, fault, message)
	default:
		c.parent.mailbox.PostSystemMessage(&stuckChild{c, fault, message})
	}
}

// forsake ends what waits for a handler that was left behind with msg.
func (c *cell) forsake(msg any, f *Fault) {
	if cancel := c.revocation.Load(); cancel != nil {
		(*cancel)()
	}
	c.sys.refuse(actor.UnwrapEnvelopeSender(msg), f)
	if place, ok := actor.UnwrapEnvelopeMessage(msg).(*gated); ok {
		place.release()
	}
}

// dismiss ends an actor whose turn was taken away and that shall not be
// replaced.
func (c *cell) dismiss() {
	c.setPhase(phaseStopping)
	c.stopTimers(false)
	go c.depart()
}

// depart waits for the children before it ends the actor.
func (c *cell) depart() {
	c.stopChildren()
	c.bury()
}

// stopChildren waits for children to end, or to overrun their budgets.
func (c *cell) stopChildren() {
	children := c.sys.childrenOf(c)
	for _, child := range children {
		child.mailbox.PostSystemMessage(&actor.Stop{})
	}
	for _, child := range children {
		<-child.life.over
	}
}

// bury does what the library does at the end of an actor, for one whose turn
// was taken away.
func (c *cell) bury() {
	c.setPhase(phaseStopped)
	c.stopTimers(true)
	c.sys.lib.ProcessRegistry.Remove(c.pid)
	c.sys.forget(c)
	c.mailbox.close()
	over := &actor.Terminated{Who: c.pid}
	c.mu.Lock()
	watchers := c.watchers
	c.mu.Unlock()
	for _, w := range watchers {
		c.sys.notify(w, over)
	}
	for _, msg := range c.mailbox.takeSystem() {
		if w, ok := msg.(*actor.Watch); ok {
			c.sys.notify(w.Watcher, over)
		}
	}
	if c.parent != nil {
		c.parent.mailbox.PostSystemMessage(over)
	}
	c.life.end()
}

// succeed prepares the replacement, after the delay of the supervisor and in a
// goroutine of its own.
func (c *cell) succeed() {
	c.stopChildren()
	if c.parent == nil {
		c.replace()
	} else {
		c.parent.mailbox.PostSystemMessage(&succession{c})
	}
}

// replace puts another cell in the place of one that is stuck, in the turn of
// the parent. The library knows the new one under its own name only until it is
// wired: then it gets the old name, under which the process of the first cell
// stays registered, so that there is no moment at which a message finds nobody.
func (c *cell) replace() {
	if !c.mailbox.inherit() {
		return // dismissed meanwhile
	}
	n := newCell(c.sys, c.parent, c.kind, c.name, c.path, c.producer)
	n.life, n.stats, n.number, n.held = c.life, c.stats, c.number, c.held
	n.span.origin, n.span.cause = c.span.origin, c.span.cause
	n.mailbox.root = c.mailbox
	if c.mailbox.root != nil {
		n.mailbox.root = c.mailbox.root
	}
	c.mu.Lock()
	n.history = c.history
	watchers := c.watchers
	c.mu.Unlock()
	c.sys.adopt(c, n)

	spawn := c.sys.lib.Root.SpawnNamed
	if c.parent != nil {
		c.parent.children[c.path] = n
		spawn = c.parent.lib.SpawnNamed
	}
	own := c.sys.lib.ProcessRegistry.NextID()
	if _, err := spawn(n.props(), c.name+own); err != nil {
		panic(err) // the name is new: only a bug gets here
	}
	c.sys.lib.ProcessRegistry.Remove(c.sys.lib.NewLocalPID(c.path + own))
	for _, w := range watchers {
		n.mailbox.PostSystemMessage(&actor.Watch{Watcher: w})
	}
	c.mailbox.handOver(n.mailbox)
}

// takeTurn takes the turn away from the handler that runs since steps. It returns
// the message that it handles and what is to become of the mailbox: wish, or
// lossDismissed if the actor was told to stop; or lossNone if the handler is not
// running any more.
func (m *mailbox) takeTurn(steps uint64, wish loss) (msg any, left loss) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		w := m.work.Load()
		if w&stepMask != steps || !handling(w) {
			return nil, lossNone
		}
		if m.work.CompareAndSwap(w, w|taken) {
			break
		}
	}
	m.loss = wish
	if slices.ContainsFunc(m.system, func(s any) bool { _, stop := s.(*actor.Stop); return stop }) {
		m.loss = lossDismissed
	}
	return m.current, m.loss
}

// dismissed keeps a mailbox without turn from being inherited.
func (m *mailbox) dismissed() loss {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loss = lossDismissed
	return m.loss
}

// inherit reports whether the mailbox may be handed over, which then nothing
// prevents any more.
func (m *mailbox) inherit() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loss != lossWaiting {
		return false
	}
	m.loss = lossInherited
	return true
}

// handOver moves what waits in a mailbox without turn to n, in its order, and
// has what is yet to come follow.
func (m *mailbox) handOver(n *mailbox) {
	m.mu.Lock()
	system := m.system
	waiting := append(m.out[m.head:], m.in...)
	m.system, m.out, m.in, m.head = nil, nil, nil, 0
	m.closed, m.heir = true, n
	m.shrink(len(waiting))
	waiting = slices.DeleteFunc(waiting, func(it item) bool { return ofIncarnation(it.msg) })
	n.push(waiting)
	for _, msg := range system {
		switch s := msg.(type) {
		case *actor.Stop, *actor.Watch, *actor.Unwatch:
		case *actor.Terminated:
			if isChild(m.cell.path, s.Who) {
				continue
			}
		default: // about children, which have ended
			continue
		}
		n.PostSystemMessage(msg)
	}
	m.mu.Unlock()
	if n.root != m {
		n.root.lead(n)
	}
}

// push queues items before all others, from outside of the turn.
func (m *mailbox) push(items []item) {
	m.mu.Lock()
	m.grow(len(items))
	m.in = append(items, m.in...)
	m.scheduleAndUnlock(!m.blocked)
}

// lead shortens the way of what arrives at an inherited mailbox.
func (m *mailbox) lead(heir *mailbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heir = heir
}

func (m *mailbox) takeSystem() []any {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.system
	m.system = nil
	return s
}

// bare takes a message out of what the kit packs it into.
func bare(msg any) any {
	switch m := actor.UnwrapEnvelopeMessage(msg).(type) {
	case *gated:
		return m.msg
	case *tick:
		return m.timer.msg
	case *result:
		return m.value
	default:
		return m
	}
}
