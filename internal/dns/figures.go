package dns

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// durationBounds are the upper bounds of a Histogram's ranges.
var durationBounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// DurationBounds returns the upper bounds of a Histogram's ranges, ascending.
func DurationBounds() []time.Duration { return durationBounds[:] }

// Histogram is how durations are distributed: Counts[i] of them were at most
// DurationBounds()[i], and above the bound before; the last were above all.
type Histogram struct {
	Counts [len(durationBounds) + 1]uint64
	Sum    time.Duration
}

// Figures are what a gateway's look-ups took since the start. They are consistent
// one by one.
type Figures struct {
	// Queries of clients that were answered. Types and codes come from closed sets.
	Queries []QueryCount
	// Attempts at asking a name server that ended with an answer or a failure.
	Attempts []AttemptFigures
	// Lookups of DNS resources, by outcome.
	Lookups []LookupFigures
}

// QueryCount is how many queries of a type were answered with a code, in the
// spelling of RFC 1035 and its successors; "other" and "OTHER" are the rest.
type QueryCount struct {
	Type, Code string
	Count      uint64
}

// AttemptFigures are those of attempts over one transport that ended alike.
// Failure is "" for those that yielded a usable answer, the response code of one
// that is a refusal, or one of timeout, connection_refused, malformed and network.
type AttemptFigures struct {
	Network   Network
	Failure   string
	Durations Histogram
}

// LookupFigures are those of look-ups with one outcome.
type LookupFigures struct {
	Outcome   Outcome
	Durations Histogram
}

// Figures returns what happened so far, without what never did.
func (f *Forwarder) Figures() Figures {
	var out Figures
	for t, name := range questionNames {
		for c, code := range codeNames {
			if n := f.queries[t][c].Load(); n > 0 {
				out.Queries = append(out.Queries, QueryCount{name, code, n})
			}
		}
	}
	m := &f.up.measured
	for n, network := range [...]Network{UDP, TCP} {
		for e, failure := range failureNames {
			if h := m.attempts[n][e].load(); h != (Histogram{}) {
				out.Attempts = append(out.Attempts, AttemptFigures{network, failure, h})
			}
		}
	}
	for o := range m.lookups {
		if h := m.lookups[o].load(); h != (Histogram{}) {
			out.Lookups = append(out.Lookups, LookupFigures{Outcome(o), h})
		}
	}
	return out
}

// histogram is written by any number of goroutines.
type histogram struct {
	counts [len(durationBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

func (h *histogram) add(d time.Duration) {
	i := 0
	for i < len(durationBounds) && d > durationBounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

func (h *histogram) load() Histogram {
	out := Histogram{Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	return out
}

// measured is what Upstreams and the Resolvers on it count.
type measured struct {
	attempts [2][len(failureNames)]histogram // over UDP and TCP
	lookups  [Found + 1]histogram
}

// attempt counts one that ended with r or err.
func (m *measured) attempt(overTCP bool, r reply, err error, took time.Duration) {
	n := 0
	if overTCP {
		n = 1
	}
	m.attempts[n][failureOf(r, err)].add(took)
}

// Failures of attempts. Between the first and the second are the refusals, in the
// order of codeNames.
const (
	failedNot       = 0
	failedInTime    = len(codeNames)
	failedRefused   = len(codeNames) + 1
	failedMalformed = len(codeNames) + 2
	failedNetwork   = len(codeNames) + 3
)

var failureNames = [...]string{
	"", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "OTHER",
	failedInTime: "timeout", failedRefused: "connection_refused", failedMalformed: "malformed", failedNetwork: "network",
}

func failureOf(r reply, err error) int {
	var unreachable *net.OpError
	switch {
	case err == nil && refusal(r.msg):
		return codeOf(r.msg.Rcode)
	case err == nil:
		return failedNot
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return failedInTime
	case errors.Is(err, syscall.ECONNREFUSED):
		return failedRefused
	case errors.As(err, &unreachable):
		return failedNetwork
	}
	return failedMalformed
}

// codeNames are the response codes that name servers use. Those above NOERROR are
// in their numeric order.
var codeNames = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "OTHER"}

func codeOf(rcode int) int {
	if rcode &= 0xf; rcode < len(codeNames)-1 {
		return rcode
	}
	return len(codeNames) - 1
}

var questionTypes = [...]uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeMX, dns.TypeNS, dns.TypePTR,
	dns.TypeSOA, dns.TypeSRV, dns.TypeTXT, dns.TypeSVCB, dns.TypeHTTPS, dns.TypeANY,
}

var questionNames = [len(questionTypes) + 1]string{
	"A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT", "SVCB", "HTTPS", "ANY", "other",
}

// queries counts answered queries by type and code.
type queries [len(questionNames)][len(codeNames)]atomic.Uint64

func (q *queries) add(query *dns.Msg, rcode int) {
	t := 0
	for t < len(questionTypes) && questionTypes[t] != query.Question[0].Qtype {
		t++
	}
	q[t][codeOf(rcode)].Add(1)
}
