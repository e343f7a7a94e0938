package dns

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"firezone-gateway/internal/drop"
)

// Forwarder hands the queries of all servers that share it to name servers and
// bounds how many are under way. All methods may be called concurrently.
type Forwarder struct {
	up      *Upstreams
	slots   chan struct{}
	timeout time.Duration
	counts  counts
	queries queries
}

// NewForwarder returns a Forwarder for at most MaxForwarded queries at once.
func NewForwarder(up *Upstreams) *Forwarder {
	return &Forwarder{up: up, slots: make(chan struct{}, MaxForwarded), timeout: ForwardTimeout}
}

// Counts is what became of the queries of all servers of a Forwarder.
type Counts struct {
	UnderWay int // queries that wait for a name server

	Answered  uint64 // with what a name server said
	Truncated uint64 // of these: did not fit into a UDP answer
	Failed    uint64 // SERVFAIL: no name server, none answered in time
	Overflow  uint64 // SERVFAIL: MaxForwarded queries were under way
	Refused   uint64 // NOTIMP: an opcode other than QUERY

	Malformed   uint64 // dropped or, over TCP, connection closed: not a query
	Foreign     uint64 // dropped or connection closed: not from a client
	Connections uint64 // closed at once: too many
}

type counts struct {
	answered, truncated, failed, overflow, refused, malformed, foreign, connections atomic.Uint64
}

// count counts what is not forwarded, here and among the drops.
func (f *Forwarder) count(n *atomic.Uint64, why drop.Reason) {
	n.Add(1)
	f.up.drops.Add(why, 1)
}

// Counts returns a snapshot.
func (f *Forwarder) Counts() Counts {
	c := &f.counts
	return Counts{
		UnderWay: len(f.slots),
		Answered: c.answered.Load(), Truncated: c.truncated.Load(), Failed: c.failed.Load(),
		Overflow: c.overflow.Load(), Refused: c.refused.Load(), Malformed: c.malformed.Load(),
		Foreign: c.foreign.Load(), Connections: c.connections.Load(),
	}
}

// admit parses what a client sent and reserves a slot for it. If that is not to
// be forwarded, it returns the answer instead, or neither for what is not
// a query. The caller of forward releases the slot.
//
// An UPDATE or NOTIFY is not forwarded: the site's name server would take it
// for the gateway's own.
func (f *Forwarder) admit(wire []byte) (query *dns.Msg, answer []byte) {
	query, err := parseQuery(wire)
	switch {
	case err != nil:
		f.up.note(err)
		f.count(&f.counts.malformed, drop.DNSMalformed)
		return nil, nil
	case query.Opcode != dns.OpcodeQuery:
		f.counts.refused.Add(1)
		f.queries.add(query, dns.RcodeNotImplemented)
		return nil, fail(query, dns.RcodeNotImplemented)
	}
	select {
	case f.slots <- struct{}{}:
		return query, nil
	default:
		f.count(&f.counts.overflow, drop.DNSOverflow)
		f.queries.add(query, dns.RcodeServerFailure)
		return nil, fail(query, dns.RcodeServerFailure)
	}
}

// forward returns the answer to an admitted query and gives its slot back. Over
// UDP the answer fits the client. The result is nil if nothing can be answered
// or serving ends: after silence clients ask again.
func (f *Forwarder) forward(serving context.Context, query *dns.Msg, wire []byte, overTCP bool) []byte {
	defer func() { <-f.slots }()
	ctx, cancel := context.WithTimeout(serving, f.timeout)
	defer cancel()
	r, err := f.up.ask(ctx, query, wire, overTCP)
	if err != nil && serving.Err() != nil {
		return nil
	}
	if err != nil {
		f.counts.failed.Add(1)
		f.queries.add(query, dns.RcodeServerFailure)
		return fail(query, dns.RcodeServerFailure)
	}
	f.counts.answered.Add(1)
	f.queries.add(query, r.msg.Rcode)
	if overTCP {
		return r.wire
	}
	limit := MaxUDPAnswer
	if r.fetched {
		limit = announced(query) // which the name server was not bound by
	}
	if len(r.wire) > limit {
		f.counts.truncated.Add(1)
	}
	return fit(r.wire, r.msg, query, limit)
}
