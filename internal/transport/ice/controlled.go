package ice

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// idleAfter without inner data makes a connection idle (transport §2.9).
	idleAfter = 20 * time.Second
	// idleInterval is how often an idle connection is checked as a whole, so that
	// a phone that sleeps is not woken (T-35).
	idleInterval = 25 * time.Second
	// idlePatience is when an idle client's pair is dead: a client gives up 100 s
	// after the first of its checks that was lost, and must not be outrun (T-34).
	idlePatience = 110 * time.Second
	// disconnectedAfter and failedAfter without a sign of the client change the
	// state. Clients give up after 100 s and the newer gateway after 615.5 s
	// (transport §2.7, T-34).
	disconnectedAfter = time.Minute
	failedAfter       = 11 * time.Minute
)

// controlled is the controlled side of ICE for one client (transport §7.8): it
// says which checks to send when, and which pair is the best one. It is pure; the
// inputs are the messages that were authenticated, the changes of candidates,
// and time, which must not run backwards.
type controlled struct {
	draw func() uint64 // random numbers for transaction ids

	locals    []address
	signalled []Candidate // of the client
	remotes   []address   // of signalled, and peer-reflexive ones
	blocked   []netip.AddrPort
	pairs     []*pair // best first

	best      *pair
	connected bool // a check was answered, or a pair nominated
	idle      bool
	activity  time.Duration // last inner data or change of candidates
	heard     time.Duration // last sign of the client
	checked   time.Duration // last check of ours on any pair
}

// address is one end of pairs. Reflexive is set for peer-reflexive ones.
type address struct {
	addr      netip.AddrPort
	priority  uint32
	reflexive bool
}

// check is a Binding request to send.
type check struct {
	local, remote netip.AddrPort
	id            uint64 // the part of the transaction id that the pair knows
}

func newControlled(draw func() uint64, now time.Duration) *controlled {
	return &controlled{draw: draw, activity: now, heard: now, checked: now}
}

// serves reports whether addr is one of the local addresses.
func (c *controlled) serves(addr netip.AddrPort) bool { return find(c.locals, addr) != nil }

// request takes an authenticated check of the client with its PRIORITY, and
// whether it had USE-CANDIDATE. It must be answered if the result is true, which
// does not depend on there being a pair (T-15, T-16).
func (c *controlled) request(local, remote netip.AddrPort, priority uint32, use bool, now time.Duration) bool {
	if !c.serves(local) || slices.Contains(c.blocked, remote) {
		return false
	}
	silence := now - c.heard
	c.heard = now
	p := c.pair(local, remote)
	fresh := p == nil
	if fresh {
		if p = c.discover(local, remote, priority, use, now); p == nil {
			return true
		}
	}
	revived := p.dead && use
	p.request(now)
	if use {
		p.nominated, c.connected = true, true
	}
	c.choose()
	// The client returned, or went a way that it would not go if the best pair
	// were alive.
	if silence >= idlePatience || revived || fresh && p != c.best {
		c.wake(now)
	}
	return true
}

// success takes an authenticated answer and reports whether it belongs to a
// check. Where it came from is not compared (transport §2.2).
func (c *controlled) success(id uint64, now time.Duration) bool {
	for _, p := range c.pairs {
		if p.takes(id) {
			p.success(now, c.interval(p))
			c.heard, c.connected = now, true
			c.choose()
			return true
		}
	}
	return false
}

// refused takes an authenticated error response, which changes nothing, and
// reports whether it belongs to a check.
func (c *controlled) refused(id uint64) bool {
	return slices.ContainsFunc(c.pairs, func(p *pair) bool { return p.takes(id) })
}

// sawData says when inner data passed last.
func (c *controlled) sawData(at, now time.Duration) {
	if at > c.activity && now-at < idleAfter {
		c.wake(at)
	}
}

// state is what is known about the client as a whole.
func (c *controlled) state(now time.Duration) State {
	switch silence := now - c.heard; {
	case silence >= failedAfter:
		return StateFailed
	case !c.connected:
		return StateChecking
	case silence >= disconnectedAfter:
		return StateDisconnected
	}
	return StateConnected
}

// due appends the checks that have to be sent to list. It also judges which
// pairs are dead and so may change the best one.
func (c *controlled) due(list []check, now time.Duration) []check {
	c.idle = c.best != nil && now-c.activity >= idleAfter
	c.judge(now)
	if c.state(now) == StateFailed {
		return list
	}
	if c.idle {
		if now-c.checked >= idleInterval {
			list = append(list, c.check(c.best, now))
		}
		return list
	}
	if p := c.best; p != nil && p.next <= now && p.misses == deadMisses-2 {
		c.suspect(now)
	}
	for _, p := range c.pairs {
		if p.next <= now {
			list = append(list, c.check(p, now))
		}
	}
	return list
}

// deadline is when due has to be called next, provided that it was called for
// now and no input came since.
func (c *controlled) deadline(now time.Duration) time.Duration {
	var next time.Duration
	switch c.state(now) {
	case StateFailed:
		return never
	case StateConnected:
		next = c.heard + disconnectedAfter
	default:
		next = c.heard + failedAfter
	}
	if c.idle {
		return min(next, c.checked+idleInterval)
	}
	for _, p := range c.pairs {
		next = min(next, p.next)
		if p.nominated && !p.dead && p.misses >= deadMisses {
			next = min(next, p.missSince+deadAfter)
		}
	}
	return next
}

// judge finds the pairs that are dead.
func (c *controlled) judge(now time.Duration) {
	for _, p := range c.pairs {
		if c.idle {
			p.dead = p.dead || p.nominated && now-p.heard >= idlePatience
		} else {
			p.dead = p.dead || p.misses >= deadMisses && now-p.missSince >= deadAfter
		}
	}
	c.choose()
}

// choose finds the best pair: the one of the highest priority among those that
// the client nominated and that are alive. It nominates several and keeps doing
// so, therefore the order of its requests says nothing (T-18, T-19). A dead one is
// left only for one that was heard while it was silent: when all are, the client
// is away, and there is nothing to be gained from another way.
func (c *controlled) choose() {
	for _, p := range c.pairs {
		if !p.nominated || p.dead || c.best != nil && c.best.dead && p.heard < c.best.missSince {
			continue
		}
		c.prefer(p)
		return
	}
	if c.best == nil {
		if i := slices.IndexFunc(c.pairs, func(p *pair) bool { return p.nominated }); i >= 0 {
			c.prefer(c.pairs[i])
		}
	}
}

func (c *controlled) prefer(p *pair) {
	if p != c.best {
		c.best = p
		if p.next != never {
			p.next = min(p.next, p.last+fastGap)
		}
	}
}

// suspect has the pairs checked that could take over from the best one, which
// begins to look dead.
func (c *controlled) suspect(now time.Duration) {
	for _, p := range c.pairs {
		if p.nominated && p != c.best {
			p.next = min(p.next, max(now, p.last+firstGap))
		}
	}
}

// wake makes the connection active. The checks that an idle connection did not
// send are no evidence against its pairs.
func (c *controlled) wake(at time.Duration) {
	c.activity = max(c.activity, at)
	if c.idle {
		c.idle = false
		for _, p := range c.pairs {
			p.misses = 0
		}
	}
}

func (c *controlled) check(p *pair, now time.Duration) check {
	id := max(c.draw(), 1)
	p.check(id, now)
	c.checked = now
	return check{p.local, p.remote, id}
}

// unsent says that a check did not go out, because its way does not exist yet.
func (c *controlled) unsent(k check, now time.Duration) {
	if p := c.pair(k.local, k.remote); p != nil && p.takes(k.id) {
		p.unsent(now)
	}
}

// interval is how often a pair that answers is checked: the best one as often as
// it takes to leave it in time, the others as the newer gateway does.
func (c *controlled) interval(p *pair) time.Duration {
	if p == c.best {
		return fastGap
	}
	return slowGap
}
