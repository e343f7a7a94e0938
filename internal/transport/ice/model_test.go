package ice

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestTheCoreKeepsItsPromises applies whatever can happen in any order.
func TestTheCoreKeepsItsPromises(t *testing.T) {
	locals := []Candidate{hostLocal, relayLocal, {Type: Host, Addr: ap("[2001:db8::1]:52625"), Priority: 2130706431}}
	addrs := []netip.AddrPort{remote, ap("203.0.113.6:6"), ap("203.0.113.7:7"), ap("[2001:db8::7]:7"), ap("198.51.100.9:9")}
	rapid.Check(t, func(t *rapid.T) {
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		now := time.Duration(0)
		core := newControlled(random.Uint64, now)
		m := modelOf(locals)
		core.setLocals(locals, now)
		var open []check
		address := rapid.SampledFrom(addrs)
		candidate := func(t *rapid.T) Candidate {
			return Candidate{Type: Type(rapid.IntRange(0, 2).Draw(t, "type")), Addr: address.Draw(t, "address"), Priority: rapid.Uint32().Draw(t, "priority")}
		}
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				end := now + time.Duration(rapid.Int64Range(0, int64(40*time.Second)).Draw(t, "time"))
				if rapid.Bool().Draw(t, "data") {
					core.sawData(now, now)
				}
				for {
					wasIdle := core.idle
					list := core.due(nil, now)
					for _, k := range list {
						m.sent(t, k, now, wasIdle && core.idle)
					}
					if wasIdle && core.idle && len(list) > 1 {
						t.Fatalf("%d checks of an idle connection", len(list))
					}
					open = append(open, list...)
					m.compare(t, core)
					if again := core.due(nil, now); len(again) > 0 {
						t.Fatalf("%d more checks at the same time", len(again))
					}
					next := core.deadline(now)
					if next <= now {
						t.Fatalf("at %v the next appointment is at %v", now, next)
					}
					if next > end {
						break
					}
					now = next
				}
				now = end
			},
			"the client checks": func(t *rapid.T) {
				l, r := rapid.SampledFrom(locals).Draw(t, "local").Addr, address.Draw(t, "remote")
				if is4(l) != is4(r) {
					t.Skip("no such datagram")
				}
				use := rapid.Bool().Draw(t, "use")
				got := core.request(l, r, rapid.Uint32().Draw(t, "priority"), use, now)
				if want := m.locals[l] && !m.blocked[r]; got != want {
					t.Fatalf("answered: %v, want %v", got, want)
				}
				if got && use {
					m.nominated[way{l, r}] = true
				}
			},
			"a check is answered": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("there is none")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "check")
				k := open[i]
				open = slices.Delete(open, i, i+1)
				if core.success(k.id, now) && core.pair(k.local, k.remote) == nil {
					t.Fatal("an answer for a pair that does not exist")
				}
			},
			"a candidate is added": func(t *rapid.T) {
				c := candidate(t)
				if !core.addRemote(c, now) {
					t.Fatal("refused")
				}
				m.signalled[c.Key()] = true
				delete(m.blocked, c.Addr)
			},
			"a candidate is removed": func(t *rapid.T) {
				if k := candidate(t).Key(); m.signalled[k] {
					core.removeRemote(k, now)
					m.remove(k)
				}
			},
			"the local addresses change": func(t *rapid.T) {
				set := rapid.SliceOfDistinct(rapid.SampledFrom(locals), func(c Candidate) netip.AddrPort { return c.Addr }).Draw(t, "locals")
				core.setLocals(set, now)
				m.setLocals(set)
			},
			"": func(t *rapid.T) { m.compare(t, core) },
		})
	})
}

// model is what the core must know, told in another way.
type model struct {
	locals    map[netip.AddrPort]bool
	signalled map[Key]bool
	blocked   map[netip.AddrPort]bool
	nominated map[way]bool
	last      map[way]time.Duration // check on a pair
	lastIdle  time.Duration
	best      way
}

func modelOf(locals []Candidate) *model {
	m := &model{
		signalled: make(map[Key]bool), blocked: make(map[netip.AddrPort]bool), nominated: make(map[way]bool),
		last: make(map[way]time.Duration), lastIdle: -time.Hour,
	}
	m.setLocals(locals)
	return m
}

func (m *model) setLocals(set []Candidate) {
	m.locals = make(map[netip.AddrPort]bool)
	for _, c := range set {
		if c.Type != ServerReflexive {
			m.locals[c.Addr] = true
		}
	}
	m.forget(func(w way) bool { return !m.locals[w.local] })
}

func (m *model) remove(k Key) {
	delete(m.signalled, k)
	for other := range m.signalled {
		if other.Addr == k.Addr {
			return
		}
	}
	m.blocked[k.Addr] = true
	m.forget(func(w way) bool { return w.remote == k.Addr })
}

func (m *model) forget(gone func(way) bool) {
	for w := range m.nominated {
		if gone(w) {
			delete(m.nominated, w)
		}
	}
	for w := range m.last {
		if gone(w) {
			delete(m.last, w)
		}
	}
	if gone(m.best) {
		m.best = way{}
	}
}

func (m *model) sent(t *rapid.T, k check, now time.Duration, idle bool) {
	w := way{k.local, k.remote}
	if last, ok := m.last[w]; ok && now-last < firstGap {
		t.Fatalf("two checks on %v within %v", w, now-last)
	}
	if idle && now-m.lastIdle < idleInterval {
		t.Fatalf("two checks of an idle connection within %v", now-m.lastIdle)
	}
	if !m.locals[k.local] || m.blocked[k.remote] || is4(k.local) != is4(k.remote) {
		t.Fatalf("a check on %v", w)
	}
	m.last[w], m.lastIdle = now, now
}

func (m *model) compare(t *rapid.T, core *controlled) {
	if !slices.IsSortedFunc(core.pairs, func(a, b *pair) int { return cmp.Compare(b.priority, a.priority) }) {
		t.Fatal("the pairs are not in order")
	}
	alive, all := way{}, 0
	for _, p := range core.pairs {
		w := way{p.local, p.remote}
		if p.nominated != m.nominated[w] {
			t.Fatalf("%v nominated: %v", w, p.nominated)
		}
		if p.nominated {
			all++
			if core.best.dead && !p.dead && p.heard >= core.best.missSince {
				t.Fatalf("%v is alive, and %v the best although it is dead", w, core.best)
			}
			if !p.dead && alive == (way{}) {
				alive = w
			}
		}
	}
	if all != len(m.nominated) {
		t.Fatalf("%d nominated pairs, want %d", all, len(m.nominated))
	}
	for k := range m.signalled {
		for l := range m.locals {
			if is4(l) == is4(k.Addr) && core.pair(l, k.Addr) == nil {
				t.Fatalf("no pair of %v and %v", l, k.Addr)
			}
		}
	}
	got := way{}
	if core.best != nil {
		got = way{core.best.local, core.best.remote}
	}
	switch dead := core.best != nil && core.best.dead; {
	case all == 0:
		if got != (way{}) {
			t.Fatalf("the best is %v, which is not nominated", got)
		}
	case !m.nominated[got]:
		t.Fatalf("the best is %v, which is not nominated", got)
	case !dead:
		if got != alive {
			t.Fatalf("the best is %v, want %v", got, alive)
		}
	case m.best != way{} && got != m.best:
		t.Fatalf("%v was left for %v, which is dead", m.best, got)
	}
	m.best = got
}
