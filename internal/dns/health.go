package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Pace of the choice among name servers.
const (
	measureFor  = time.Minute      // a measurement counts (dataplane §6.3, defect 9: not for ever)
	probeFor    = 5 * time.Second  // for so long nobody else tries a server without measurement first
	penaltyUnit = time.Second      // after the first failure; doubles
	penaltyMax  = 32 * time.Second // and is below measureFor, so that a server that came back is found

	hedgeUnknown = 300 * time.Millisecond
	hedgeMin     = 100 * time.Millisecond
	hedgeMax     = time.Second
)

// health ranks name servers by how they did lately. It takes the time from its
// caller, which also serialises calls.
//
//	unknown --first query--> tried --answer--> measured --a minute--> unknown
//	any --failure--> penalised, 1 s to 32 s --> unknown
//
// No server is ever excluded: a client can ask for names that make any of them
// fail, and must not be able to cut the others off.
type health struct {
	servers []record // in file order
}

type record struct {
	addr     netip.Addr
	rtt      time.Duration // smoothed
	measured time.Time     // of rtt; zero if there is none
	tried    time.Time     // last time it was ranked first without measurement
	failures int           // since the last answer
	until    time.Time     // end of the penalty
}

// configure replaces the list of servers and keeps what is known of those that
// stay.
func (h *health) configure(addrs []netip.Addr) {
	servers := make([]record, 0, len(addrs))
	for _, a := range addrs {
		r := record{addr: a}
		if old := h.find(a); old != nil {
			r = *old
		}
		servers = append(servers, r)
	}
	h.servers = servers
}

// order returns all servers, the best first: those whose measurement is missing
// or old once, then by round-trip time, then by the end of their penalty.
func (h *health) order(now time.Time) []netip.Addr {
	ranked := make([]*record, len(h.servers))
	for i := range h.servers {
		ranked[i] = &h.servers[i]
	}
	slices.SortStableFunc(ranked, func(a, b *record) int {
		class := a.class(now)
		if c := cmp.Compare(class, b.class(now)); c != 0 {
			return c
		}
		switch class {
		case classMeasured:
			return cmp.Compare(a.rtt, b.rtt)
		case classPenalised:
			return a.until.Compare(b.until)
		}
		return 0
	})
	addrs := make([]netip.Addr, len(ranked))
	for i, r := range ranked {
		addrs[i] = r.addr
	}
	if len(ranked) > 0 && ranked[0].class(now) == classUnknown {
		ranked[0].tried = now
	}
	return addrs
}

// answered notes an answer of a server after rtt.
func (h *health) answered(addr netip.Addr, rtt time.Duration, now time.Time) {
	r := h.find(addr)
	if r == nil {
		return
	}
	if r.current(now) {
		rtt = r.rtt + (rtt-r.rtt)/8 // RFC 6298 §2.3
	}
	r.rtt, r.measured = rtt, now
	r.failures, r.until = 0, time.Time{}
}

// overtaken notes that a server had not answered after waited, when another
// one did. Its round-trip time is at least that.
func (h *health) overtaken(addr netip.Addr, waited time.Duration, now time.Time) {
	if r := h.find(addr); r != nil && (!r.current(now) || r.rtt < waited) {
		r.rtt, r.measured = waited, now
	}
}

// failed notes that a server did not answer, or with nonsense.
func (h *health) failed(addr netip.Addr, now time.Time) {
	r := h.find(addr)
	if r == nil || now.Before(r.until) {
		return // queries that ran together are one failure
	}
	r.until = now.Add(min(penaltyUnit<<min(r.failures, 10), penaltyMax))
	r.failures++
	r.measured = time.Time{}
}

// hedge returns for how long to wait for a server before another one is asked
// too.
func (h *health) hedge(addr netip.Addr, now time.Time) time.Duration {
	r := h.find(addr)
	if r == nil || !r.current(now) {
		return hedgeUnknown
	}
	return min(max(3*r.rtt, hedgeMin), hedgeMax)
}

func (h *health) find(addr netip.Addr) *record {
	for i := range h.servers {
		if h.servers[i].addr == addr {
			return &h.servers[i]
		}
	}
	return nil
}

const (
	classUnknown = iota
	classMeasured
	classTried
	classPenalised
)

func (r *record) class(now time.Time) int {
	switch {
	case now.Before(r.until):
		return classPenalised
	case r.current(now):
		return classMeasured
	case !r.tried.IsZero() && now.Sub(r.tried) < probeFor:
		return classTried
	default:
		return classUnknown
	}
}

func (r *record) current(now time.Time) bool {
	return !r.measured.IsZero() && now.Sub(r.measured) < measureFor
}
