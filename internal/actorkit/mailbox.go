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
// the end becomes dead letters, and an emptied backlog gives its memory back.
type mailbox struct {
	cell *cell

	mu         sync.Mutex
	invoker    actor.MessageInvoker
	dispatcher actor.Dispatcher
	system     []any
	in         []item
	running    bool // a turn is scheduled or runs
	blocked    bool // user messages do not start a turn
	closed     bool // user messages are dead letters

	urgent  atomic.Int32 // len(system)
	pending atomic.Int64 // user messages queued

	// Owned by the turn.
	out  []item
	head int
}

var _ actor.Mailbox = (*mailbox)(nil)

func (m *mailbox) Start() {}

func (m *mailbox) UserMessageCount() int { return int(m.pending.Load()) }

func (m *mailbox) RegisterHandlers(invoker actor.MessageInvoker, dispatcher actor.Dispatcher) {
	m.mu.Lock()
	m.invoker, m.dispatcher = invoker, dispatcher
	m.mu.Unlock()
}

func (m *mailbox) PostUserMessage(msg any) {
	at := m.cell.sys.now()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		m.cell.discard(msg)
		return
	}
	m.pending.Add(1)
	m.in = append(m.in, item{msg, at})
	m.scheduleAndUnlock(!m.blocked)
}

func (m *mailbox) PostSystemMessage(msg any) {
	if _, ok := msg.(*actor.Stop); ok {
		m.cell.startBudget()
	}
	m.mu.Lock()
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

// prepend queues items before all others. It belongs to the turn.
func (m *mailbox) prepend(items []item) {
	m.pending.Add(int64(len(items)))
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
	m.pending.Add(-int64(len(rest)))
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
			m.invoker.InvokeUserMessage(msg)
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
		if _, late := c.abandoned[s.Who]; late {
			delete(c.abandoned, s.Who)
			return
		}
		m.invoker.InvokeSystemMessage(msg)
	case *abandon:
		if t := c.letGo(s.child); t != nil {
			m.invoker.InvokeSystemMessage(t)
		}
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
	m.blocked = !open
	m.running = false
	return item{}, false, false
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

func (m *mailbox) pop() item {
	it := m.out[m.head]
	m.out[m.head] = item{}
	m.head++
	m.pending.Add(-1)
	return it
}
