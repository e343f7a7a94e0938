package ice

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	stunlib "github.com/pion/stun/v3"
)

var (
	hostLocal    = Candidate{Type: Host, Addr: local, Priority: 2130706175}
	relayLocal   = Candidate{Type: Relay, Addr: ap("198.51.100.1:50000"), Priority: 37748479}
	useCandidate = stunlib.RawAttribute{Type: stunlib.AttrUseCandidate}
	hostRemote   = Candidate{Type: Host, Addr: remote, Priority: 2130706175}
	direct       = way{local, remote}
	relayed      = way{relayLocal.Addr, remote}
)

func TestT17PunchingFollowsTheSchedule(t *testing.T) {
	c := newCourse(t)
	c.open = func(way) bool { return false }
	c.core.setLocals([]Candidate{hostLocal, {Type: Host, Addr: ap("[2001:db8::1]:1")}}, c.now)
	c.core.addRemote(hostRemote, c.now)
	c.run(20 * time.Minute)
	ms := time.Millisecond
	want := []time.Duration{0, 250 * ms, 750 * ms, 1750 * ms, 3250 * ms, 4750 * ms, 6250 * ms, 7750 * ms, 9250 * ms, 10750 * ms, 12250 * ms, 13750 * ms}
	for len(want) < 45 {
		want = append(want, want[len(want)-1]+15*time.Second)
	}
	if got := c.sentOn(direct); !slices.Equal(got, want) || len(c.sent) != len(got) {
		t.Fatalf("checks at %v", got)
	}
	if c.core.state(c.now) != StateFailed || c.core.deadline(c.now) != never {
		t.Error("the agent does not give up")
	}
	// A candidate that is removed is not checked any more.
	c.core.addRemote(Candidate{Type: Host, Addr: ap("203.0.113.6:6")}, c.now)
	c.core.removeRemote(Key{Host, ap("203.0.113.6:6"), netip.AddrPort{}}, c.now)
	c.run(time.Minute)
	if len(c.sent) != len(want) {
		t.Errorf("%d checks of a removed candidate", len(c.sent)-len(want))
	}
}

func TestACheckOfTheClientTriggersOurs(t *testing.T) {
	c := newCourse(t)
	c.open = func(way) bool { return false }
	c.core.setLocals([]Candidate{hostLocal}, c.now)
	c.core.addRemote(hostRemote, c.now)
	c.run(10 * time.Minute)
	before := len(c.sent)
	c.core.request(local, remote, 1, false, c.now)
	c.run(0)
	if len(c.sent) != before+1 {
		t.Fatalf("%d checks at once", len(c.sent)-before)
	}
	for range 1000 { // ten seconds of a peer that answers checks with checks
		c.core.request(local, remote, 1, false, c.now)
		c.run(10 * time.Millisecond)
	}
	if n := len(c.sent) - before; n < 10 || n > 41 {
		t.Errorf("%d checks in ten seconds", n)
	}
	before = len(c.sent)
	for range 40 { // a minute of a client that gets none of ours
		c.core.request(local, remote, 1, false, c.now)
		c.run(fastGap)
	}
	if n := len(c.sent) - before; n < 40 || n > 42 {
		t.Errorf("%d checks in a minute", n)
	}
}

// T-18, T-19.
func TestDownwardSelectionNeedsSilence(t *testing.T) {
	for _, tt := range []struct {
		name   string
		silent []way
		want   []way
	}{
		{"both ways are alive", nil, nil},
		{"the direct way is dead", []way{direct}, []way{relayed}},
		{"the relayed way is dead", []way{relayed}, nil},
		{"both are", []way{direct, relayed}, nil}, // the client is away
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := connected(t)
			c.bests, c.bestAt = c.bests[len(c.bests)-1:], c.bestAt[len(c.bestAt)-1:]
			c.open = func(w way) bool { return !slices.Contains(tt.silent, w) }
			c.run(5 * time.Minute)
			if got := c.bests[1:]; !slices.Equal(got, tt.want) {
				t.Errorf("the best became %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("two lost checks are no silence", func(t *testing.T) {
		c := connected(t)
		c.checks = nil
		lost := 0
		c.open = func(w way) bool {
			if w == direct {
				lost++
			}
			return w != direct || lost%3 == 0
		}
		c.bests, c.bestAt = c.bests[len(c.bests)-1:], c.bestAt[len(c.bestAt)-1:]
		c.run(5 * time.Minute)
		if len(c.bests) != 1 {
			t.Errorf("the best became %v", c.bests[1:])
		}
	})
	t.Run("the last one stays when all are dead, and the first that revives takes over", func(t *testing.T) {
		c := connected(t)
		c.open = func(way) bool { return false }
		c.run(time.Minute)
		if c.best() != direct {
			t.Fatalf("the best is %v", c.best())
		}
		c.open = func(w way) bool { return w == relayed }
		c.run(15 * time.Second)
		if c.best() != relayed {
			t.Fatalf("the best is %v", c.best())
		}
	})
}

// The client of this test knows nothing better than to wait: it deletes the pair
// after 16.5 s and has it again when a check of ours arrives (transport §2.7).
func TestABlockedDirectPathIsLeftAndFoundAgain(t *testing.T) {
	for _, blocked := range []time.Duration{7 * time.Second, 30 * time.Second, 8 * time.Minute} {
		t.Run(blocked.String(), func(t *testing.T) {
			for _, shift := range []time.Duration{0, 400 * time.Millisecond, 1100 * time.Millisecond} {
				c := connected(t)
				c.run(shift)
				c.open = func(w way) bool { return w != direct }
				delete(c.checks, direct)
				start := c.now
				c.run(blocked)
				if at := c.bestAt[len(c.bestAt)-1]; c.best() != relayed || at-start > 6*time.Second {
					t.Errorf("after %v the best is %v", at-start, c.best())
				}
				c.open = func(way) bool { return true }
				start = c.now
				c.run(20 * time.Second)
				if at := c.bestAt[len(c.bestAt)-1]; c.best() != direct {
					t.Errorf("%v after the block the best is %v", at-start, c.best())
				}
				if n := len(c.bests); n != len(slices.Compact(slices.Clone(c.bests))) || n > 4 {
					t.Errorf("flaps: %v", c.bests)
				}
			}
		})
	}
}

func TestOurOwnChecksAreEnoughToLeaveADeadPath(t *testing.T) {
	for _, shift := range []time.Duration{0, 400 * time.Millisecond, 1100 * time.Millisecond, 9 * time.Second} {
		c := connected(t)
		c.checks = nil // of an agent that only answers
		c.run(shift)
		c.open = func(w way) bool { return w != direct }
		start := c.now
		c.run(10 * time.Second)
		if at := c.bestAt[len(c.bestAt)-1]; c.best() != relayed || at-start > 6*time.Second {
			t.Errorf("after %v the best is %v", at-start, c.best())
		}
	}
}

func TestNominationIsEnoughToBeTheBest(t *testing.T) {
	c := newCourse(t)
	c.open = func(way) bool { return false }
	c.core.setLocals([]Candidate{hostLocal, relayLocal}, c.now)
	for _, step := range []struct {
		over way
		use  bool
		want way
	}{
		{relayed, false, way{}},
		{direct, false, way{}},
		{relayed, true, relayed},
		{direct, false, relayed},
		{direct, true, direct},
		{relayed, true, direct}, // T-18
		{direct, false, direct},
	} {
		if !c.core.request(step.over.local, step.over.remote, 1<<30, step.use, c.now) || c.best() != step.want {
			t.Fatalf("after %+v the best is %v", step, c.best())
		}
	}
	if c.core.state(c.now) != StateConnected {
		t.Error("not connected")
	}
}

func TestWhatIsTakenAwayIsGoneAtOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		take func(*course)
		want way
	}{
		"the host address":     {func(c *course) { c.core.setLocals([]Candidate{relayLocal}, c.now) }, relayed},
		"the relayed address":  {func(c *course) { c.core.setLocals([]Candidate{hostLocal}, c.now) }, direct},
		"all local addresses":  {func(c *course) { c.core.setLocals(nil, c.now) }, way{}},
		"the client's address": {func(c *course) { c.core.removeRemote(hostRemote.Key(), c.now) }, way{}},
		"a candidate whose address another one has": {func(c *course) {
			c.core.addRemote(Candidate{Type: ServerReflexive, Addr: remote, Priority: 3}, c.now)
			c.core.removeRemote(hostRemote.Key(), c.now)
		}, direct},
	} {
		t.Run(name, func(t *testing.T) {
			c := connected(t)
			tt.take(c)
			if c.best() != tt.want {
				t.Errorf("the best is %v, want %v", c.best(), tt.want)
			}
			c.sent = nil
			c.run(time.Minute)
			for _, s := range c.sent {
				if !c.core.serves(s.local) || find(c.core.remotes, s.remote) == nil {
					t.Errorf("check on %v", s.way)
				}
			}
		})
	}
}

func TestAddressesOfTheClient(t *testing.T) {
	from := ap("203.0.113.9:9")
	t.Run("an unknown one has the priority of its request until it is signalled", func(t *testing.T) {
		c := newCourse(t)
		c.core.setLocals([]Candidate{hostLocal, relayLocal}, c.now)
		c.core.request(local, from, 77, false, c.now)
		if p := c.core.pairs; len(p) != 1 || p[0].priority != pairPriority(77, hostLocal.Priority) {
			t.Fatalf("pairs %+v", p)
		}
		c.core.addRemote(Candidate{Type: Relay, Addr: from, Priority: 99}, c.now)
		if p := c.core.pairs; len(p) != 2 || p[0].priority != pairPriority(99, hostLocal.Priority) || p[1].local != relayLocal.Addr {
			t.Fatalf("pairs %+v", p)
		}
	})
	t.Run("a removed one is ignored until it is signalled again", func(t *testing.T) {
		c := newCourse(t)
		c.core.setLocals([]Candidate{hostLocal}, c.now)
		c.core.addRemote(hostRemote, c.now)
		c.core.removeRemote(hostRemote.Key(), c.now)
		if c.core.request(local, remote, 1, true, c.now) || c.core.best != nil {
			t.Fatal("answered")
		}
		c.core.addRemote(hostRemote, c.now)
		if !c.core.request(local, remote, 1, true, c.now) {
			t.Fatal("ignored")
		}
	})
	t.Run("a new one of a client behind a NAT replaces the old at once", func(t *testing.T) {
		c := newCourse(t)
		c.core.setLocals([]Candidate{hostLocal}, c.now)
		for port := range uint16(5) {
			moved := netip.AddrPortFrom(remote.Addr(), 1000+port)
			c.core.request(local, moved, 77, true, c.now)
			if c.best() != (way{local, moved}) {
				t.Fatalf("the best is %v", c.best())
			}
		}
	})
	t.Run("the best pair's is not given up for others", func(t *testing.T) {
		c := newCourse(t)
		c.core.setLocals([]Candidate{hostLocal}, c.now)
		c.core.request(local, remote, 77, true, c.now)
		for i := range 2 * maxRemotes {
			c.now += time.Millisecond
			c.core.request(local, netip.AddrPortFrom(from.Addr(), uint16(1+i)), 5, true, c.now)
		}
		if c.best() != direct {
			t.Errorf("the best is %v", c.best())
		}
	})
	t.Run("however many there are, all are answered and the best pair stays", func(t *testing.T) {
		c := connected(t)
		for i := range 1000 {
			c.core.request(local, netip.AddrPortFrom(from.Addr(), uint16(1+i)), 5, i%2 == 0, c.now)
			if !c.core.request(relayLocal.Addr, netip.AddrPortFrom(from.Addr(), uint16(1+i)), 5, false, c.now) {
				t.Fatal("not answered")
			}
		}
		if c.best() != direct || len(c.core.pairs) > maxPairs || len(c.core.remotes) > maxRemotes {
			t.Fatalf("best %v, %d pairs, %d addresses", c.best(), len(c.core.pairs), len(c.core.remotes))
		}
		for i := range MaxRemotes + 5 {
			want := i < MaxRemotes-1
			if got := c.core.addRemote(Candidate{Type: Host, Addr: netip.AddrPortFrom(ap("192.0.2.9:1").Addr(), uint16(1+i))}, c.now); got != want {
				t.Fatalf("%d. candidate: %v", i, got)
			}
		}
		for i := range 2 * maxBlocked {
			k := Candidate{Type: Relay, Addr: netip.AddrPortFrom(ap("192.0.2.10:1").Addr(), uint16(1+i))}
			c.core.removeRemote(Candidate{Type: Host, Addr: netip.AddrPortFrom(ap("192.0.2.9:1").Addr(), uint16(1+i))}.Key(), c.now)
			c.core.addRemote(k, c.now)
			c.core.removeRemote(k.Key(), c.now)
		}
		if len(c.core.blocked) != maxBlocked || c.best() != direct {
			t.Fatalf("%d blocked, best %v", len(c.core.blocked), c.best())
		}
	})
}

func TestIdleConnections(t *testing.T) {
	idle := func(t *testing.T) *course {
		c := connected(t)
		c.checks, c.pauses = nil, true
		c.run(idleAfter + 5*time.Second)
		c.sent, c.bests, c.bestAt = nil, nil, nil
		return c
	}
	t.Run("one check in 25 s for all pairs together", func(t *testing.T) {
		c := idle(t)
		c.run(10 * time.Minute)
		if n := len(c.sent); n < 22 || n > 24 {
			t.Errorf("%d checks in ten minutes", n)
		}
	})
	t.Run("data wakes it", func(t *testing.T) {
		c := idle(t)
		c.pauses = false
		c.run(2 * idleInterval)
		if n := len(c.sent); n < 15 {
			t.Errorf("%d checks", n)
		}
	})
	t.Run("what was not answered while it was idle does not count when data wakes it", func(t *testing.T) {
		c := idle(t)
		c.open = func(w way) bool { return w == relayed }
		for range 3 {
			c.core.request(relayed.local, relayed.remote, 1, true, c.now)
			c.run(idleInterval)
		}
		c.open, c.pauses = func(way) bool { return true }, false
		c.run(time.Minute)
		if len(c.bests) != 1 || c.best() != direct {
			t.Errorf("the best became %v", c.bests)
		}
	})
	t.Run("a client that sleeps for 100 s keeps its way, after that another is chosen if it is alive", func(t *testing.T) {
		c := idle(t)
		c.open = func(w way) bool { return w == relayed }
		start := c.now
		for c.now < start+3*time.Minute {
			c.core.request(relayed.local, relayed.remote, 1, true, c.now)
			c.run(idleInterval)
		}
		if at := c.bestAt[len(c.bestAt)-1]; c.best() != relayed || at-start < 100*time.Second-idleInterval {
			t.Errorf("%v after %v", c.best(), at-start)
		}
	})
	t.Run("a way that was dead does not come back to life by idleness", func(t *testing.T) {
		c := connected(t)
		delete(c.checks, direct)
		c.open = func(w way) bool { return w != direct }
		c.run(10 * time.Second)
		c.checks, c.pauses = nil, true
		n := len(c.bests)
		c.run(time.Minute)
		if c.best() != relayed || len(c.bests) != n {
			t.Errorf("the best became %v", c.bests[n:])
		}
	})
	t.Run("a client that comes back after long is checked actively", func(t *testing.T) {
		c := idle(t)
		c.open = func(way) bool { return false }
		c.run(5 * time.Minute)
		c.open = func(way) bool { return true }
		c.sent = nil
		c.core.request(direct.local, direct.remote, 1, true, c.now)
		c.run(10 * time.Second)
		if n := len(c.sent); n < 6 {
			t.Errorf("%d checks", n)
		}
	})
	t.Run("a client that goes another way has it tested whether the best one is alive", func(t *testing.T) {
		c := idle(t)
		c.open = func(w way) bool { return w != direct }
		other := way{relayLocal.Addr, ap("203.0.113.99:9")}
		c.core.request(other.local, other.remote, 1, true, c.now)
		c.run(10 * time.Second)
		if c.best() == direct {
			t.Error("the dead way is still the best")
		}
	})
}

func TestStatesFollowTheClient(t *testing.T) {
	c := connected(t)
	c.checks, c.pauses = nil, true
	c.open = func(way) bool { return false }
	var states []string
	for _, d := range []time.Duration{50 * time.Second, 20 * time.Second, 9 * time.Minute, 2 * time.Minute} {
		c.run(d)
		states = append(states, fmt.Sprint(c.core.state(c.now)))
	}
	if want := []string{"connected", "disconnected", "disconnected", "failed"}; !slices.Equal(states, want) {
		t.Fatalf("states %v", states)
	}
	c.sent = nil
	c.run(time.Hour)
	if len(c.sent) != 0 {
		t.Error("a failed agent checks")
	}
	c.core.request(direct.local, direct.remote, 1, false, c.now)
	if got := c.core.state(c.now); got != StateConnected || c.best() != direct {
		t.Errorf("%v on %v", got, c.best())
	}
}

func TestAnAnswerCountsOnce(t *testing.T) {
	c := newCourse(t)
	c.core.setLocals([]Candidate{hostLocal}, c.now)
	c.core.addRemote(hostRemote, c.now)
	id := c.core.due(nil, c.now)[0].id
	if c.core.success(id+1, c.now) || c.core.success(0, c.now) || c.core.refused(0) {
		t.Error("an answer to nothing")
	}
	if !c.core.success(id, c.now) || c.core.success(id, c.now) {
		t.Error("not once")
	}
	c.now += fastGap
	for _, k := range c.core.due(nil, c.now+slowGap) {
		if !c.core.refused(k.id) || c.core.refused(k.id) {
			t.Error("an error is not taken once")
		}
	}
}

func TestPairPriorityIsThatOfRFC8445(t *testing.T) {
	for _, tt := range []struct {
		g, d uint32
		want uint64
	}{
		{1, 2, 1<<32 + 4},
		{2, 1, 1<<32 + 5},
		{5, 5, 5<<32 + 10},
		{1<<32 - 1, 1, 1<<32 + 2*(1<<32-1) + 1},
	} {
		if got := pairPriority(tt.g, tt.d); got != tt.want {
			t.Errorf("%d, %d: %d, want %d", tt.g, tt.d, got, tt.want)
		}
	}
}

// The first checks through a relay meet a channel that is being bound.
func TestAChecksWayThatDoesNotExistYetIsTriedSoon(t *testing.T) {
	now := time.Hour
	core := newControlled(rand.New(rand.NewPCG(1, 2)).Uint64, now)
	core.setLocals([]Candidate{relayLocal}, now)
	core.addRemote(hostRemote, now)
	for range maxUnready {
		list := core.due(nil, now)
		if len(list) != 1 {
			t.Fatalf("%d checks", len(list))
		}
		core.unsent(list[0], now)
		if at := core.deadline(now); at != now+unreadyGap {
			t.Fatalf("next after %v", at-now)
		}
		now += unreadyGap
	}
	// None of them counts, and there is an end of it.
	list := core.due(nil, now)
	core.unsent(list[0], now)
	if at := core.deadline(now); at != now+firstGap || core.pairs[0].misses != 1 {
		t.Errorf("next after %v, %d misses", at-now, core.pairs[0].misses)
	}
	// An answer that comes to one that was taken back means nothing.
	if core.success(list[0].id, now) {
		t.Error("answered what was not sent")
	}
}
