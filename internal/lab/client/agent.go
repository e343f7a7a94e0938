package client

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun/v3"
)

// Timers of the original's client (transport §2.7, §2.9).
const (
	firstGap   = 250 * time.Millisecond // between a check and its repetition, doubled each time
	longestGap = 1500 * time.Millisecond
	checkLimit = 12 // unanswered checks after which a pair is dead

	idleAfter      = 20 * time.Second // without inner packets
	idleGap        = 25 * time.Second
	idleCheckLimit = 4
	idlePoll       = 200 * time.Millisecond // how late an idle agent may notice a packet

	noPairPatience      = 2 * time.Second
	noCandidatePatience = 10 * time.Second
)

const maxPairs = 100

// agentConfig is what an agent is made of. The callbacks run on its goroutine
// and must not wait for it.
type agentConfig struct {
	local, remote iceCredentials
	legs          []*stunConn
	lastPacket    func() time.Time // of the tunnel, either way
	nominated     func(leg *stunConn, remote netip.AddrPort)
	failed        func() // at most once; the agent has ended itself
}

// agent is a controlling ICE agent with the habits of the original's client
// (transport §2.7 and §2.8), which pion's has not: it checks every pair for as
// long as that lives, nominates the best one that answers, moves up when a
// better one does, and down when the nominated one dies or is taken back.
type agent struct {
	cfg   agentConfig
	tie   [8]byte
	in    chan arrived
	poked chan struct{}
	quit  chan struct{} // closed by stop
	done  chan struct{} // closed when the goroutine has ended

	mu    sync.Mutex
	calls []func() // guarded by mu, for the goroutine

	// What follows belongs to the goroutine.
	began   time.Time
	remotes map[netip.AddrPort]uint32 // priority
	revoked map[netip.AddrPort]bool
	pairs   []*pair
	best    *pair // the nominated one that packets take
	idle    bool
	without time.Time // since when there is no pair that can work
}

type arrived struct {
	leg  *stunConn
	from netip.AddrPort
	data []byte
}

// pair is one of our addresses and one of the gateway's.
type pair struct {
	leg       *stunConn
	remote    netip.AddrPort
	priority  uint64
	sent      [][stun.TransactionIDSize]byte // the latest requests, oldest first
	pending   int                            // checks since the last answer
	next      time.Time
	answered  bool
	nominated bool // carried by all later checks
}

func newAgent(cfg agentConfig) *agent {
	a := &agent{
		cfg: cfg, in: make(chan arrived, 64), poked: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
		began: time.Now(), remotes: make(map[netip.AddrPort]uint32), revoked: make(map[netip.AddrPort]bool),
	}
	_, _ = rand.Read(a.tie[:])
	for _, leg := range cfg.legs {
		go a.receive(leg)
	}
	go a.run()
	return a
}

// stop ends the agent and waits for it.
func (a *agent) stop() {
	close(a.quit)
	<-a.done
}

// add adds candidates of the gateway; an earlier revocation is forgotten.
func (a *agent) add(candidates []remoteCandidate) {
	a.call(func() {
		for _, c := range candidates {
			delete(a.revoked, c.addr)
			a.learn(c.addr, c.priority)
		}
	})
}

// remove takes candidates of the gateway back, with the pairs that use them.
func (a *agent) remove(addrs []netip.AddrPort) {
	a.call(func() {
		for _, r := range addrs {
			delete(a.remotes, r)
			a.revoked[r] = true
		}
		a.pairs = slices.DeleteFunc(a.pairs, func(p *pair) bool { return slices.Contains(addrs, p.remote) })
	})
}

// call lets the goroutine run f, and does not wait for it.
func (a *agent) call(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, f)
	select {
	case a.poked <- struct{}{}:
	default:
	}
}

func (a *agent) takeCalls() []func() {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls := a.calls
	a.calls = nil
	return calls
}

// receive passes on what arrives on a leg, until that is closed.
func (a *agent) receive(leg *stunConn) {
	for {
		select {
		case d := <-leg.in:
			select {
			case a.in <- arrived{leg, d.from, d.data}:
			case <-a.done:
				return
			}
		case <-leg.closed:
			return
		case <-a.done:
			return
		}
	}
}

func (a *agent) run() {
	defer close(a.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-a.quit:
			return
		case <-a.poked:
			for _, f := range a.takeCalls() {
				f()
			}
		case d := <-a.in:
			a.handle(d)
		case <-timer.C:
		}
		now := time.Now()
		a.bury(now)
		a.nominate(now)
		if a.hopeless(now) {
			a.cfg.failed()
			return
		}
		timer.Reset(a.check(now))
	}
}

// learn notes an address of the gateway and makes its pairs. Of two candidates
// with one address the better one counts.
func (a *agent) learn(remote netip.AddrPort, priority uint32) {
	if priority <= a.remotes[remote] {
		return
	}
	a.remotes[remote] = priority
	for _, leg := range a.cfg.legs {
		if leg.local.Addr().Is4() == remote.Addr().Is4() {
			a.pairUp(leg, remote)
		}
	}
}

// pairUp returns the pair of the two, which may be new.
func (a *agent) pairUp(leg *stunConn, remote netip.AddrPort) *pair {
	ours, theirs := uint64(leg.priority()), uint64(a.remotes[remote])
	priority := min(ours, theirs)<<32 + 2*max(ours, theirs) // RFC 8445 §6.1.2.3
	if ours > theirs {
		priority++
	}
	i := slices.IndexFunc(a.pairs, func(p *pair) bool { return p.leg == leg && p.remote == remote })
	if i >= 0 {
		a.pairs[i].priority = priority
		return a.pairs[i]
	}
	p := &pair{leg: leg, remote: remote, priority: priority}
	if len(a.pairs) < maxPairs {
		a.pairs = append(a.pairs, p)
	}
	return p
}

// bury removes the pairs whose last check had its time.
func (a *agent) bury(now time.Time) {
	if idle := a.best != nil && now.Sub(a.cfg.lastPacket()) > idleAfter; idle != a.idle {
		a.idle = idle
		for _, p := range a.pairs {
			p.pending = 0
			if !idle {
				p.next = now // a packet wakes the connection
			}
		}
	}
	limit := checkLimit
	if a.idle {
		limit = idleCheckLimit
	}
	a.pairs = slices.DeleteFunc(a.pairs, func(p *pair) bool { return p.pending >= limit && !now.Before(p.next) })
}

// nominate moves to the best pair that answers.
func (a *agent) nominate(now time.Time) {
	var best *pair
	for _, p := range a.pairs {
		if p.answered && (best == nil || p.priority > best.priority) {
			best = p
		}
	}
	if best == a.best || best == nil && a.best == nil {
		return
	}
	a.best = best
	if best == nil {
		return
	}
	best.nominated, best.next = true, now
	a.cfg.nominated(best.leg, best.remote)
}

// hopeless reports that the connection has failed (transport §2.9).
func (a *agent) hopeless(now time.Time) bool {
	if len(a.pairs) > 0 {
		a.without = time.Time{}
		return false
	}
	if a.without.IsZero() {
		a.without = now
	}
	if len(a.remotes) == 0 && now.Sub(a.began) < noCandidatePatience {
		return false
	}
	return now.Sub(a.without) >= noPairPatience
}

// check sends what is due and returns how long the next check has.
func (a *agent) check(now time.Time) time.Duration {
	wait := idlePoll // the longest, so that packets and failures are noticed
	for _, p := range a.pairs {
		if !now.Before(p.next) {
			a.request(p)
			gap := min(firstGap<<min(p.pending, 8), longestGap)
			if a.idle {
				gap = idleGap
			}
			p.pending++
			p.next = now.Add(gap)
		}
		wait = min(wait, p.next.Sub(now))
	}
	return wait
}

// answeredBy notes a success: the next check is due after the longest gap.
func (a *agent) answeredBy(p *pair, now time.Time) {
	p.answered, p.pending = true, 0
	gap := longestGap
	if a.idle {
		gap = idleGap
	}
	p.next = now.Add(gap)
}

func hostPriority(local netip.Addr) uint32 {
	priority := uint32(126)<<24 | 65534<<8 | 255
	if local.Is6() {
		priority += 1 << 8
	}
	return priority
}
