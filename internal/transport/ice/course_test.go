package ice

import (
	"math/rand/v2"
	"testing"
	"time"
)

// course drives a core through virtual time. Checks of either side arrive after
// half of the round trip, where the way is open.
type course struct {
	testing.TB
	core   *controlled
	now    time.Duration
	rtt    time.Duration
	open   func(way) bool
	data   time.Duration // last inner data
	pauses bool          // no inner data any more

	checks  map[way]time.Duration // of the client, when the next is due, all with USE-CANDIDATE
	flights []flight
	sent    []sentCheck
	bests   []way
	bestAt  []time.Duration
}

type sentCheck struct {
	way
	at time.Duration
}

type flight struct {
	at   time.Duration
	id   uint64 // of the answer, 0: a check of the client
	over way
}

func newCourse(t testing.TB) *course {
	const start = time.Hour // time need not begin at zero
	random := rand.New(rand.NewPCG(1, 2))
	return &course{
		TB: t, core: newControlled(random.Uint64, start), now: start, data: start, rtt: 20 * time.Millisecond,
		open: func(way) bool { return true }, checks: make(map[way]time.Duration),
	}
}

// run lets time pass.
func (c *course) run(d time.Duration) {
	c.Helper()
	end := c.now + d
	for steps := 0; ; steps++ {
		if steps > 1_000_000 {
			c.Fatal("the core does not come to rest")
		}
		if !c.pauses {
			c.data = c.now
		}
		c.core.sawData(c.data, c.now)
		for _, k := range c.core.due(nil, c.now) {
			over := way{k.local, k.remote}
			c.sent = append(c.sent, sentCheck{over, c.now})
			if c.open(over) {
				c.flights = append(c.flights, flight{at: c.now + c.rtt, id: k.id, over: over})
			}
		}
		c.note()
		next := min(end, c.core.deadline(c.now))
		if at := c.core.deadline(c.now); at <= c.now {
			c.Fatalf("at %v the next appointment is at %v", c.now, at)
		}
		for _, at := range c.checks {
			next = min(next, at)
		}
		for _, f := range c.flights {
			next = min(next, f.at)
		}
		c.now = next
		for over, at := range c.checks {
			if at <= c.now {
				c.checks[over] = c.now + fastGap
				if c.open(over) {
					c.flights = append(c.flights, flight{at: c.now, over: over})
				}
			}
		}
		c.arrivals()
		c.note()
		if c.now >= end {
			return
		}
	}
}

func (c *course) arrivals() {
	flights := c.flights
	c.flights = nil
	for _, f := range flights {
		switch {
		case f.at > c.now:
			c.flights = append(c.flights, f)
		case f.id != 0:
			c.core.success(f.id, c.now)
		default:
			c.core.request(f.over.local, f.over.remote, 1, true, c.now)
		}
	}
}

func (c *course) note() {
	if p := c.core.best; p != nil {
		if w := (way{p.local, p.remote}); len(c.bests) == 0 || c.bests[len(c.bests)-1] != w {
			c.bests, c.bestAt = append(c.bests, w), append(c.bestAt, c.now)
		}
	}
}

func (c *course) best() way {
	if c.core.best == nil {
		return way{}
	}
	return way{c.core.best.local, c.core.best.remote}
}

// sentOn returns when checks went over a way, counted from the first.
func (c *course) sentOn(w way) (at []time.Duration) {
	for _, s := range c.sent {
		if s.way == w {
			at = append(at, s.at)
		}
	}
	for i := len(at) - 1; i >= 0; i-- {
		at[i] -= at[0]
	}
	return at
}

// connected is a course with a direct and a relayed way, both nominated.
func connected(t testing.TB) *course {
	c := newCourse(t)
	c.core.setLocals([]Candidate{hostLocal, relayLocal}, c.now)
	c.core.addRemote(hostRemote, c.now)
	c.checks[direct], c.checks[relayed] = c.now, c.now
	c.run(20 * time.Second)
	if c.best() != direct {
		t.Fatalf("the best is %v", c.best())
	}
	return c
}
