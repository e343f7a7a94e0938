package ice

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport/stun"
)

// Sender puts one STUN message on the wire. local tells the leg: one of our
// host addresses, or a relayed address, which stands for a channel to remote on
// the relay that gave it. b is valid only during the call.
type Sender interface {
	// An error that wraps ErrNotReady has a check sent again soon.
	SendSTUN(b []byte, local, remote netip.AddrPort) error
}

// ErrNotReady says that a leg does not exist yet, and that it is being made.
var ErrNotReady = errors.New("not ready yet")

// sendQueue is how many answers of all agents may be on their way to the Sender.
const sendQueue = 1024

// Mux carries STUN between the shared legs and the agents (transport §7.4), and
// time to the agents. Requests are routed by USERNAME, responses by their
// transaction ids. The whole USERNAME decides, not only our half: gateway ufrags
// have four characters, so two of a few thousand clients may well share one.
//
// All agents share one goroutine, which sends and keeps time for them; an idle
// agent costs its memory and a row in a timetable. All methods may be called
// concurrently.
type Mux struct {
	sender Sender
	drops  *drop.Counters
	start  time.Time // origin of the agents' times
	out    chan outgoing
	wake   chan struct{}
	table  timetable
	stop   context.CancelFunc
	done   <-chan struct{}
	ended  chan struct{}

	mu     sync.RWMutex
	agents map[string]*agent // by USERNAME of the requests they receive
	checks map[uint32]*agent // by the mark in their transaction ids
	last   uint32            // mark that was given
}

type outgoing struct {
	buf           *[]byte
	local, remote netip.AddrPort
}

// NewMux returns a Mux that sends through sender, from a goroutine of its own,
// so that receiving never waits for a socket. drops counts what outgoing
// messages fall victim to: STUNOverflow for the queue of answers (1024, the
// newest is dropped), SendFailed for the Sender.
func NewMux(sender Sender, drops *drop.Counters) *Mux {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mux{
		sender: sender, drops: drops, start: time.Now(),
		out: make(chan outgoing, sendQueue), wake: make(chan struct{}, 1),
		stop: cancel, done: ctx.Done(), ended: make(chan struct{}),
		agents: make(map[string]*agent), checks: make(map[uint32]*agent),
		table: timetable{alarm: never},
	}
	go m.run()
	return m
}

// Close ends the goroutine and waits for it, therefore it must not be called
// from a callback. Agents that still exist send into the void; close them first.
func (m *Mux) Close() {
	m.stop()
	<-m.ended
}

// Deliver takes one STUN datagram that arrived on local, which is a relayed
// address for one that came through a channel. It keeps nothing of b, never
// blocks, and returns why the message was dropped, for the caller to count:
// STUNMalformed, or STUNUnknown when no agent wants or can authenticate it.
func (m *Mux) Deliver(b []byte, local, remote netip.AddrPort) drop.Reason {
	h, err := stun.Check(b)
	if err != nil {
		return drop.STUNMalformed
	}
	if h.Method != stun.Binding {
		return drop.STUNUnknown
	}
	if h.Class == stun.Request {
		ours, theirs, ok := stun.Username(b)
		if !ok {
			return drop.STUNUnknown
		}
		name := ours[:len(ours)+1+len(theirs)]
		m.mu.RLock()
		a := m.agents[string(name)]
		m.mu.RUnlock()
		if a == nil {
			return drop.STUNUnknown
		}
		return a.request(b, h, unmap(local), unmap(remote))
	}
	number, id := splitTransaction(h.TransactionID)
	m.mu.RLock()
	a := m.checks[number]
	m.mu.RUnlock()
	if a == nil {
		return drop.STUNUnknown
	}
	return a.response(b, h, id)
}

// run is the Mux's goroutine.
func (m *Mux) run() {
	defer close(m.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var w work
	var due []check
	for {
		select {
		case <-m.done:
			return
		case o := <-m.out:
			m.send(o)
			continue
		case <-m.wake:
		case <-timer.C:
		}
		// One agent at a time, so that answers get their turn as well.
		a, next := m.table.take(m.now())
		if a == nil {
			timer.Reset(min(next-m.now(), time.Hour))
			continue
		}
		due = a.tick(&w, due)
		for i, o := range w.send {
			if !m.send(o) {
				a.unsent(due[i])
			}
		}
		a.report(&w)
		m.poke()
	}
}

// send reports false if the way does not exist yet.
func (m *Mux) send(o outgoing) bool {
	err := m.sender.SendSTUN(*o.buf, o.local, o.remote)
	buffers.Put(o.buf)
	if errors.Is(err, ErrNotReady) {
		return false
	}
	if err != nil {
		m.drops.Add(drop.SendFailed, 1)
	}
	return true
}

// enqueue takes the buffer over.
func (m *Mux) enqueue(o outgoing) {
	select {
	case m.out <- o:
	default:
		buffers.Put(o.buf)
		m.drops.Add(drop.STUNOverflow, 1)
	}
}

// schedule has a called at a time, in place of the time it was given before.
func (m *Mux) schedule(a *agent, at time.Duration) {
	if m.table.put(a, at) {
		m.poke()
	}
}

func (m *Mux) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// now is the time for the agents.
func (m *Mux) now() time.Duration { return time.Since(m.start) }

// register routes requests for a's USERNAME to a, in place of an older agent.
func (m *Mux) register(a *agent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.agents[a.name] = a
	m.last++
	for m.checks[m.last] != nil {
		m.last++ // it went round
	}
	a.number = m.last
	m.checks[a.number] = a
}

func (m *Mux) unregister(a *agent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.agents[a.name] == a {
		delete(m.agents, a.name)
	}
	delete(m.checks, a.number)
	m.table.remove(a)
}

// buffers recycles messages on their way out. A check with the longest names
// fits.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 128); return &b }}
