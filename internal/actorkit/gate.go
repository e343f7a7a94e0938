package actorkit

import "sync/atomic"

// Gate bounds what senders outside of actors have in an actor's mailbox. A
// place is taken by TrySend and given back when the message has been handled,
// when its handler panicked, and when it became a dead letter. A Gate may be
// shared by senders and used for several actors; then it bounds their sum.
type Gate struct {
	limit   int64
	pending atomic.Int64
	refused atomic.Uint64
	blamed  atomic.Pointer[blamed]
}

// blamed is the actor that the last refused message was for.
type blamed struct {
	pid   PID
	stats *cellStats
}

// NewGate makes a Gate with limit places.
func NewGate(limit int) *Gate { return &Gate{limit: int64(limit)} }

// TrySend delivers msg to pid, or reports false when all places are taken;
// the sender counts the drop. It never blocks.
func (g *Gate) TrySend(sys *System, pid PID, msg any) bool {
	for {
		n := g.pending.Load()
		if n >= g.limit {
			g.refused.Add(1)
			g.blame(sys, pid)
			return false
		}
		if g.pending.CompareAndSwap(n, n+1) {
			break
		}
	}
	sys.post(pid, &gated{gate: g, msg: msg})
	return true
}

// Pending is the number of places taken.
func (g *Gate) Pending() int { return int(g.pending.Load()) }

// Refused is the number of messages that found no place.
func (g *Gate) Refused() uint64 { return g.refused.Load() }

// blame counts a refusal at the actor that the message was for.
func (g *Gate) blame(sys *System, pid PID) {
	b := g.blamed.Load()
	if b == nil || b.pid != pid {
		stats := sys.statsOf(pid)
		if stats == nil {
			return
		}
		b = &blamed{pid, stats}
		g.blamed.Store(b)
	}
	b.stats.refused.Add(1)
}

// gated is a message that holds a place.
type gated struct {
	gate     *Gate
	msg      any
	released atomic.Bool
}

func (m *gated) release() {
	if m.released.CompareAndSwap(false, true) {
		m.gate.pending.Add(-1)
	}
}
