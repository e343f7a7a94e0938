package ice

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// Times are durations since an origin that the caller chose, the same for every
// call. Never is later than all of them.
const never = time.Duration(math.MaxInt64)

// The schedule of checks on a pair that does not answer: at 0, 0.25, 0.75, 1.75
// and 3.25 s and then every 1.5 s, twelve in all as both generations of clients
// do (T-17), and on at every 15 s as the newer gateway does, so that a path that
// opens later is found (transport §2.7).
const (
	firstGap   = 250 * time.Millisecond
	fastGap    = 1500 * time.Millisecond
	slowGap    = 15 * time.Second
	fastChecks = 12
	maxChecks  = 45
)

// A pair is dead when deadMisses checks in a row went unanswered over deadAfter
// and the client was not heard on it meanwhile. One lost datagram is no reason
// to leave a path, and two are not either.
const (
	deadMisses = 3
	deadAfter  = 4 * time.Second
)

// A check that meets a channel which is not bound yet is sent again soon: binding
// takes a round trip to the relay, and the shortest gap of the schedule is often
// ten of those.
const (
	unreadyGap = 20 * time.Millisecond
	maxUnready = 50
)

// pair is one way between us and the client, and what is known about it.
type pair struct {
	local, remote netip.AddrPort
	priority      uint64
	nominated     bool // USE-CANDIDATE was received on it
	answered      bool // a check of ours was, at some time
	dead          bool // until the client is heard on it again
	tries         uint8
	misses        uint8         // checks since the client was heard on it
	missSince     time.Duration // time of the first of them
	heard         time.Duration // last request or answer
	last, next    time.Duration // checks of ours
	ids           [4]uint64     // of the last checks without answer, 0: none
	unready       uint8         // checks that did not go out
}

// pairPriority is the priority of a pair whose controlling side has a candidate
// of priority g, and whose controlled side one of priority d (RFC 8445 §6.1.2.3).
func pairPriority(g, d uint32) uint64 {
	p := uint64(min(g, d))<<32 + 2*uint64(max(g, d))
	if g > d {
		p++
	}
	return p
}

// check notes that a check goes out.
func (p *pair) check(id uint64, now time.Duration) {
	copy(p.ids[1:], p.ids[:])
	p.ids[0] = id
	if p.misses == 0 {
		p.missSince = now
	}
	p.misses = min(p.misses+1, maxChecks)
	p.tries = min(p.tries+1, maxChecks)
	p.last, p.next = now, never
	if gap := p.gap(); gap != never {
		p.next = now + gap
	}
}

// unsent takes back that a check went out.
func (p *pair) unsent(now time.Duration) {
	if p.unready == maxUnready || p.tries == 0 || p.misses == 0 {
		return
	}
	p.unready++
	p.tries--
	p.misses--
	p.next = now + unreadyGap
}

// gap is the wait after as many checks in a row without answer as tries says.
func (p *pair) gap() time.Duration {
	switch {
	case p.tries >= maxChecks:
		return never
	case p.tries >= fastChecks:
		return slowGap
	case p.answered:
		return fastGap
	}
	return min(firstGap<<(p.tries-1), fastGap)
}

// success notes the answer to a check; interval is the wait for the next one.
func (p *pair) success(now, interval time.Duration) {
	p.alive(now)
	p.answered, p.tries = true, 0
	p.next = p.last + interval
}

// request notes a check of the client. On a pair that does not answer it
// triggers one of ours, and no more often than the schedule's shortest gap: two
// sides that answer every check with a check would else never come to rest.
func (p *pair) request(now time.Duration) {
	p.alive(now)
	if !p.answered || p.tries >= deadMisses {
		// From here the schedule goes on at the fast gap.
		p.tries = min(p.tries, deadMisses+1)
		p.next = min(p.next, max(now, p.last+firstGap))
	}
}

func (p *pair) alive(now time.Duration) {
	p.heard, p.misses, p.dead = now, 0, false
}

// takes reports whether id is that of a check without answer, and forgets it.
func (p *pair) takes(id uint64) bool {
	i := slices.Index(p.ids[:], id)
	if i < 0 || id == 0 {
		return false
	}
	p.ids[i] = 0
	return true
}
