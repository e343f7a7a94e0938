package scale

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/stun/v3"
)

// profile times the checks of a pair (transport §2.7).
type profile struct {
	initial, longest time.Duration
	count            int
}

var (
	activeProfile = profile{250 * time.Millisecond, 1500 * time.Millisecond, 12}
	idleProfile   = profile{25 * time.Second, 25 * time.Second, 4}
)

// maxPairs bounds a checklist (transport §2.7).
const maxPairs = 100

// pair is one way to the gateway.
type pair struct {
	local, remote netip.AddrPort
	priority      uint64
	answered      bool
	nominated     bool
	unanswered    int // checks since the last answer
	last, next    time.Time
	open          [][stun.TransactionIDSize]byte // checks without answer
}

// checklist is the set of a client's pairs, the best one first.
type checklist struct {
	pairs   []*pair
	profile profile
}

// add makes a pair whose check is due at once. Of two pairs between the same
// addresses the better one is kept.
func (l *checklist) add(local, remote netip.AddrPort, priority uint32, now time.Time) *pair {
	value := pairPriority(hostPriority(local.Addr()), priority)
	if p := l.find(local, remote); p != nil {
		p.priority = max(p.priority, value)
		l.sort()
		return p
	}
	if len(l.pairs) == maxPairs {
		return nil
	}
	p := &pair{local: local, remote: remote, priority: value, next: now}
	l.pairs = append(l.pairs, p)
	l.sort()
	return p
}

func (l *checklist) sort() {
	slices.SortStableFunc(l.pairs, func(a, b *pair) int { return cmp.Compare(b.priority, a.priority) })
}

func (l *checklist) find(local, remote netip.AddrPort) *pair {
	for _, p := range l.pairs {
		if p.local == local && p.remote == remote {
			return p
		}
	}
	return nil
}

// answer takes the success of a check and returns its pair, nil for one of no
// check that is open.
func (l *checklist) answer(id [stun.TransactionIDSize]byte, now time.Time) *pair {
	for _, p := range l.pairs {
		if slices.Contains(p.open, id) {
			p.answered, p.unanswered, p.open = true, 0, p.open[:0]
			p.next = now.Add(l.profile.longest)
			return p
		}
	}
	return nil
}

// selected returns the pair that data takes: the best one that is nominated.
func (l *checklist) selected() *pair {
	for _, p := range l.pairs {
		if p.nominated {
			return p
		}
	}
	return nil
}

// toNominate returns the best answered pair unless it is nominated already
// (transport §2.8).
func (l *checklist) toNominate() *pair {
	for _, p := range l.pairs {
		if p.answered {
			if p.nominated {
				return nil
			}
			return p
		}
	}
	return nil
}

// due returns the pairs to check. Those without an answer for too long are
// deleted.
func (l *checklist) due(now time.Time) []*pair {
	l.pairs = slices.DeleteFunc(l.pairs, func(p *pair) bool {
		return !now.Before(p.next) && p.unanswered >= l.profile.count
	})
	var due []*pair
	for _, p := range l.pairs {
		if !now.Before(p.next) {
			due = append(due, p)
		}
	}
	return due
}

// sent notes that a check went out.
func (l *checklist) sent(p *pair, id [stun.TransactionIDSize]byte, now time.Time) {
	p.open = append(p.open, id)
	if len(p.open) > l.profile.count {
		p.open = slices.Delete(p.open, 0, 1)
	}
	gap := l.profile.longest
	if p.unanswered < 16 {
		gap = min(l.profile.initial<<p.unanswered, gap)
	}
	p.unanswered++
	p.last, p.next = now, now.Add(gap)
}

// change moves to another profile: checks become rare, or are due at once.
func (l *checklist) change(to profile, now time.Time) {
	if l.profile == to {
		return
	}
	l.profile = to
	for _, p := range l.pairs {
		p.next = p.last.Add(to.longest)
		if p.next.Before(now) {
			p.next = now
		}
	}
}

// next is when the first check is due, zero for never.
func (l *checklist) next() (at time.Time) {
	for _, p := range l.pairs {
		at = earliest(at, p.next)
	}
	return at
}

// earliest returns the earlier of two times, of which zero ones do not count.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// pairPriority is that of RFC 8445 §6.1.2.3 for the controlling agent.
func pairPriority(ours, theirs uint32) uint64 {
	g, d := uint64(ours), uint64(theirs)
	value := min(g, d)<<32 + 2*max(g, d)
	if g > d {
		value++
	}
	return value
}

// jitter spreads what is repeated (WireGuard paper §6.4: up to 333 ms).
func jitter() time.Duration { return rand.N(333 * time.Millisecond) }
