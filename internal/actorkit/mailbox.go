package actorkit

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// item is a queued user message and when it was queued.
type item struct {
	msg any
	at  time.Duration // since the system started
}

// abandon asks a parent to go on without a child that overran its budget.
type abandon struct{ child *cell }

// keptQueue is the number of slots an emptied queue keeps; a larger one is
// given back, so that one backlog does not hold its memory for ever.
const keptQueue = 1024

// mailbox replaces the library's. It differs in that messages which arrive
// before the actor is wired up wait, system messages always precede user
// messages, a failed or ending actor gets no user message, what is queued at
// the end becomes dead letters, an emptied backlog gives its memory back, and
// the turn can be taken away from a handler that does not return.
type mailbox struct {
	cell *cell
	root *mailbox // that of the process senders know, if it is another one

	mu         sync.Mutex
	invoker    actor.MessageInvoker
	dispatcher actor.Dispatcher
	system     []any
	in         []item
	peak       int64 // number of messages queued
	running    bool  // a turn is scheduled or runs
	blocked    bool  // user messages do not start a turn
	closed     bool  // user messages go to heir, or are dead letters
	loss       loss
	heir       *mailbox // gets what arrives, once set

	urgent atomic.Int32 // len(system)
	work   atomic.Uint64

	// Owned by the turn, and by whoever takes the turn away.
	out     []item
	head    int
	current any // the message that is or was handled
}

var _ actor.Mailbox = (*mailbox)(nil)

// mailbox.work is three things in one word, because a second atomic addition
// would cost each message a twentieth of its hop: the number of user messages
// queued (32 bits), whether the turn was taken away from its handler (1 bit), and
// the beginnings and ends of handlers so far (31 bits, which may overflow): while
// one runs it is odd.
const (
	queued = 1
	taken  = 1 << 32
	step   = 1 << 33

	queuedMask = taken - 1
	stepMask   = ^uint64(step - 1)
)

// handling reports whether w is that of a turn in which a handler runs.
func handling(w uint64) bool { return w&(step|taken) == step }

// loss is what becomes of a mailbox whose turn was taken away.
//
//	none → waiting → inherited
//	          ↓
//	      dismissed
type loss uint8

const (
	lossNone      loss = iota
	lossWaiting        // for the supervisor
	lossInherited      // another mailbox takes, or has taken, what is queued
	lossDismissed      // told to stop: nobody takes it
)

func (m *mailbox) Start() {}

func (m *mailbox) UserMessageCount() int { return int(m.work.Load() & queuedMask) }

func (m *mailbox) RegisterHandlers(invoker actor.MessageInvoker, dispatcher actor.Dispatcher) {
	m.mu.Lock()
	m.invoker, m.dispatcher = invoker, dispatcher
	m.mu.Unlock()
}

func (m *mailbox) PostUserMessage(msg any) {
	at := m.cell.sys.now()
	m.mu.Lock()
	if m.closed {
		heir := m.heir
		m.mu.Unlock()
		switch {
		case heir == nil:
			m.cell.discard(msg)
		case !ofIncarnation(msg):
			heir.PostUserMessage(msg)
		}
		return
	}
	m.grow(1)
	m.in = append(m.in, item{msg, at})
	m.scheduleAndUnlock(!m.blocked)
}

// grow accounts for n more messages. The caller holds mu.
func (m *mailbox) grow(n int) {
	if now := int64(m.work.Add(uint64(n)*queued) & queuedMask); now > m.peak {
		m.peak = now
		m.cell.stats.maxPending.Store(now)
	}
}

// shrink accounts for n messages less.
func (m *mailbox) shrink(n int) { m.work.Add(-uint64(n) * queued) }

func (m *mailbox) PostSystemMessage(msg any) {
	m.mu.Lock()
	if heir := m.heir; heir != nil {
		m.mu.Unlock()
		heir.PostSystemMessage(msg)
		return
	}
	if _, ok := msg.(*actor.Stop); ok {
		m.cell.startBudget()
		if m.loss == lossWaiting {
			m.loss = lossDismissed
			m.mu.Unlock()
			m.cell.dismiss()
			return
		}
	}
	m.system = append(m.system, msg)
	m.urgent.Add(1)
	m.scheduleAndUnlock(true)
}

func (m *mailbox) scheduleAndUnlock(wanted bool) {
	start := wanted && !m.running && m.invoker != nil
	if start {
		m.running = true
	}
	m.mu.Unlock()
	if start {
		m.dispatcher.Schedule(m.turn)
	}
}

// prepend queues items before all others. It belongs to a handler, and does
// nothing for one that was left behind.
func (m *mailbox) prepend(items []item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loss != lossNone {
		return
	}
	m.grow(len(items))
	m.out = append(items, m.out[m.head:]...)
	m.head = 0
}

// close turns what is queued, and what will be, into dead letters. It belongs
// to the turn.
func (m *mailbox) close() {
	m.mu.Lock()
	rest := append(m.out[m.head:], m.in...)
	m.out, m.in, m.head = nil, nil, 0
	m.closed = true
	m.shrink(len(rest))
	m.mu.Unlock()
	for _, it := range rest {
		m.cell.discard(it.msg)
	}
}

// turn handles messages until none is left. A handler's panic suspends the
// mailbox and goes on with the system messages.
func (m *mailbox) turn() {
	for m.run() {
	}
}

// run reports whether it ended by a panic.
func (m *mailbox) run() (failed bool) {
	var msg any
	idle := false
	m.cell.lastEnd = 0
	defer func() {
		if idle {
			return
		}
		if m.leftBehind() {
			_ = recover()
			m.cell.sys.emit(Event{Type: EventReturned, Kind: m.cell.kind.spec.Kind, Path: m.cell.path, Message: typeName(bare(msg))})
			return
		}
		r := recover()
		if r == nil {
			// This goroutine is ending and cannot be kept: another one
			// takes the turn over.
			defer m.dispatcher.Schedule(m.turn)
			r = &Fault{Reason: ErrGoexit}
		}
		failed = true
		fault := asFault(r)
		m.cell.fail(fault)
		m.invoker.EscalateFailure(fault, msg)
	}()
	for i := 1; ; i++ {
		it, system, ok := m.next()
		if !ok {
			idle = true
			return false
		}
		msg = it.msg
		if system {
			m.invokeSystem(msg)
			m.cell.lastEnd = 0
		} else {
			m.cell.queuedAt = it.at
			m.current = msg
			m.work.Add(step - queued) // begin, and one less in the queue
			m.invoker.InvokeUserMessage(msg)
			if m.end() {
				return false
			}
		}
		if i%m.dispatcher.Throughput() == 0 {
			runtime.Gosched()
		}
	}
}

func (m *mailbox) invokeSystem(msg any) {
	c := m.cell
	switch s := msg.(type) {
	case *actor.SuspendMailbox, *actor.ResumeMailbox:
		// The phase says whether user messages are handled.
	case *actor.Restart:
		// The library would bring an actor back that is being stopped.
		if c.phase() == phaseFailed {
			m.invoker.InvokeSystemMessage(msg)
		}
	case *actor.Terminated:
		if !c.knowsAsGone(s.Who) {
			m.invoker.InvokeSystemMessage(msg)
		}
	case *abandon:
		if c.children[s.child.path] == s.child {
			m.invoker.InvokeSystemMessage(&actor.Terminated{Who: s.child.pid})
		}
	case *stuckChild:
		c.sys.strategy.failed(s.child, s.fault, s.message)
	case *succession:
		if c.phase() == phaseRunning && c.children[s.child.path] == s.child {
			s.child.replace()
		}
	case *actor.Watch:
		c.watched(s.Watcher, true)
		m.invoker.InvokeSystemMessage(msg)
	case *actor.Unwatch:
		c.watched(s.Watcher, false)
		m.invoker.InvokeSystemMessage(msg)
	default:
		m.invoker.InvokeSystemMessage(msg)
	}
}

// next takes the next message, or ends the turn.
func (m *mailbox) next() (it item, system, ok bool) {
	open := m.cell.phase() == phaseRunning
	if open && m.head < len(m.out) && m.urgent.Load() == 0 {
		return m.pop(), false, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.system) > 0 {
		msg := m.system[0]
		m.system[0] = nil
		m.system = m.system[1:]
		if len(m.system) == 0 {
			m.system = nil
		}
		m.urgent.Add(-1)
		return item{msg: msg}, true, true
	}
	if open {
		if m.head == len(m.out) {
			m.refill()
		}
		if m.head < len(m.out) {
			return m.pop(), false, true
		}
	}
	m.cell.tally.publish(m.cell.stats)
	m.current = nil
	m.blocked = !open
	m.running = false
	return item{}, false, false
}

// begin precedes a handler, which can be found stuck until end.
func (m *mailbox) begin(msg any) {
	m.current = msg
	m.work.Add(step)
}

// end follows a handler, and reports whether it was left behind: then nothing
// of the cell may be touched any more.
func (m *mailbox) end() bool { return m.work.Add(step)&taken != 0 }

// leftBehind is end for a handler that did not return, and reports it again
// after an end.
func (m *mailbox) leftBehind() bool {
	if m.work.Load()&step != 0 {
		return m.end()
	}
	return m.work.Load()&taken != 0
}

// refill exchanges the emptied queue with the one that senders fill. The
// caller holds mu.
func (m *mailbox) refill() {
	empty := m.out[:0]
	if cap(empty) > keptQueue {
		empty = nil
	}
	m.out, m.in, m.head = m.in, empty, 0
}

// pop takes the next message, which counts as queued until its handler begins.
func (m *mailbox) pop() item {
	it := m.out[m.head]
	m.out[m.head] = item{}
	m.head++
	return it
}
