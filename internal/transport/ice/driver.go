package ice

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport/stun"
)

// agent carries messages and time to the core of one connection, and what the
// core decides to the wire and to the callbacks.
type agent struct {
	mux      *Mux
	log      *slog.Logger
	name     string // USERNAME of inbound requests: ours:theirs
	reverse  string // USERNAME of our checks: theirs:ours
	number   uint32 // marks our transaction ids
	tie      uint64
	onState  func(State)
	onBest   func(local, remote netip.AddrPort)
	lastData func() time.Time
	done     chan struct{}

	row row // of the Mux's timetable, under its lock

	mu        sync.Mutex
	closed    bool
	core      *controlled
	requests  *stun.Integrity // keyed with our password
	responses *stun.Integrity // keyed with the client's
	answers   *signer         // keyed with our password
	checks    *signer         // keyed with the client's
	state     State           // as reported
	best      way             // as reported
}

// way is one pair of addresses.
type way struct{ local, remote netip.AddrPort }

// work is what an agent has to do outside of its lock.
type work struct {
	send         []outgoing
	state        State
	best         way
	stateChanged bool
	bestChanged  bool
}

func newAgent(cfg Config) *agent {
	a := &agent{
		mux: cfg.Mux, log: cfg.Logger,
		name: cfg.LocalUfrag + ":" + cfg.RemoteUfrag, reverse: cfg.RemoteUfrag + ":" + cfg.LocalUfrag,
		tie:     randomNumber(),
		onState: cfg.OnState, onBest: cfg.OnBest, lastData: cfg.LastData,
		done: make(chan struct{}), row: row{index: -1},
		requests: stun.NewIntegrity([]byte(cfg.LocalPwd)), responses: stun.NewIntegrity([]byte(cfg.RemotePwd)),
		answers: newSigner(cfg.LocalPwd), checks: newSigner(cfg.RemotePwd),
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	now := a.mux.now()
	a.core = newControlled(randomNumber, now)
	a.core.setLocals(cfg.Locals, now)
	a.mux.register(a)
	a.change(func(time.Duration) {}) // its silence begins
	return a
}

func (a *agent) AddRemote(c Candidate) {
	c.Addr = unmap(c.Addr)
	if !Usable(c.Addr) || int(c.Type) >= len(typePreference) {
		return
	}
	a.change(func(now time.Duration) {
		if !a.core.addRemote(c, now) {
			a.mux.drops.Add(drop.CandidateUnusable, 1)
		}
	})
}

func (a *agent) RemoveRemote(c Candidate) {
	c.Addr = unmap(c.Addr)
	a.change(func(now time.Duration) { a.core.removeRemote(c.Key(), now) })
}

func (a *agent) SetLocals(locals []Candidate) {
	a.change(func(now time.Duration) { a.core.setLocals(locals, now) })
}

func (a *agent) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	a.mux.unregister(a)
	close(a.done)
}

func (a *agent) Done() <-chan struct{} { return a.done }

func (a *agent) change(f func(now time.Duration)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		now := a.mux.now()
		f(now)
		a.arrange(now)
	}
}

// request takes an inbound Binding request with our USERNAME and answers it.
func (a *agent) request(b []byte, h stun.Header, local, remote netip.AddrPort) drop.Reason {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || !a.core.serves(local) || !a.requests.Verify(b) {
		return drop.STUNUnknown
	}
	now := a.mux.now()
	priority, use := wishes(b)
	if !a.core.request(local, remote, priority, use, now) {
		return drop.STUNUnknown
	}
	buf := buffers.Get().(*[]byte)
	*buf = a.answers.appendAnswer((*buf)[:0], h.TransactionID, remote)
	a.mux.enqueue(outgoing{buf, local, remote})
	a.arrange(now)
	return drop.None
}

// response takes the answer to a check. An error ends here: there is none that
// a controlled agent could do something about (transport §2.2).
func (a *agent) response(b []byte, h stun.Header, id uint64) drop.Reason {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || !a.responses.Verify(b) {
		return drop.STUNUnknown
	}
	now := a.mux.now()
	var known bool
	if h.Class == stun.Success {
		known = a.core.success(id, now)
	} else {
		known = a.core.refused(id)
	}
	if !known {
		return drop.STUNUnknown
	}
	a.arrange(now)
	return drop.None
}

// tick collects what has to be done into w, whose list is used again.
func (a *agent) tick(w *work, due []check) []check {
	w.send, w.stateChanged, w.bestChanged = w.send[:0], false, false
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return due
	}
	now := a.mux.now()
	if a.lastData != nil {
		// By age, because the clock of these times may be set.
		if age := time.Since(a.lastData()); age >= 0 {
			a.core.sawData(now-age, now)
		}
	}
	due = a.core.due(due[:0], now)
	for _, c := range due {
		buf := buffers.Get().(*[]byte)
		*buf = a.checks.appendCheck((*buf)[:0], a.transaction(c.id), a.reverse, a.tie, !is4(c.local))
		w.send = append(w.send, outgoing{buf, c.local, c.remote})
	}
	w.state, w.stateChanged = a.core.state(now), a.core.state(now) != a.state
	w.best = a.bestWay()
	w.bestChanged = w.best != a.best && w.best != way{}
	a.state, a.best = w.state, w.best
	a.mux.table.put(a, a.core.deadline(now))
	return due
}

// unsent takes back a check that did not go out.
func (a *agent) unsent(k check) {
	a.change(func(now time.Duration) { a.core.unsent(k, now) })
}

// report tells the owner what changed.
func (a *agent) report(w *work) {
	if w.stateChanged && !a.isClosed() {
		a.log.Debug("ICE state", "state", w.state)
		if a.onState != nil {
			a.onState(w.state)
		}
	}
	if w.bestChanged && !a.isClosed() {
		a.log.Debug("best ICE pair", "local", w.best.local, "remote", w.best.remote)
		if a.onBest != nil {
			a.onBest(w.best.local, w.best.remote)
		}
	}
}

func (a *agent) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// arrange enters the agent's next appointment: at once if there is something to
// report.
func (a *agent) arrange(now time.Duration) {
	at := now
	if a.core.state(now) == a.state && a.bestWay() == a.best {
		at = a.core.deadline(now)
	}
	a.mux.schedule(a, at)
}

func (a *agent) bestWay() way {
	if p := a.core.best; p != nil {
		return way{p.local, p.remote}
	}
	return way{}
}

// transaction makes the transaction id of a check: it tells the agent, so that
// there is no table of transactions. What makes an answer credible is its
// integrity, and not that the id cannot be guessed.
func (a *agent) transaction(id uint64) (t stun.TransactionID) {
	binary.BigEndian.PutUint32(t[:], a.number)
	binary.BigEndian.PutUint64(t[4:], id)
	return t
}

func splitTransaction(t stun.TransactionID) (number uint32, id uint64) {
	return binary.BigEndian.Uint32(t[:]), binary.BigEndian.Uint64(t[4:])
}

func randomNumber() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return binary.BigEndian.Uint64(b[:])
}
