package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func total(h Histogram) (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

func TestQueriesAreCountedByTypeAndCode(t *testing.T) {
	s := newSite(t, func(a asked) [][]byte {
		if a.msg.Question[0].Qtype == dns.TypeMX {
			return codes(dns.RcodeNameError)(a)
		}
		return says("x")(a)
	})
	f := NewForwarder(s.upstreams())
	c := dial(t, UDP, start(t, UDP, f))
	for _, q := range []uint16{dns.TypeTXT, dns.TypeTXT, dns.TypeMX, 65280} {
		c.ask(query("a.example", q))
	}
	update := query("a.example", dns.TypeSOA)
	update.Opcode = dns.OpcodeUpdate
	c.ask(update)
	want := []QueryCount{{"MX", "NXDOMAIN", 1}, {"SOA", "NOTIMP", 1}, {"TXT", "NOERROR", 2}, {"other", "NOERROR", 1}}
	if got := f.Figures().Queries; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestQueriesThatNobodyAnswersAreCounted(t *testing.T) {
	f := NewForwarder(newSite(t).upstreams())
	dial(t, UDP, start(t, UDP, f)).ask(query("a.example", dns.TypeSRV))
	if got := f.Figures().Queries; !slices.Equal(got, []QueryCount{{"SRV", "SERVFAIL", 1}}) {
		t.Errorf("got %v", got)
	}
}

func TestAttemptsAreMeasuredByTransportAndFailure(t *testing.T) {
	for _, tc := range []struct {
		name    string
		site    []answers
		overTCP bool
		want    string
	}{
		{"an answer", []answers{says("x")}, false, "[udp:1]"},
		{"an answer over TCP", []answers{says("x")}, true, "[tcp:1]"},
		{"a refusal", []answers{codes(dns.RcodeServerFailure)}, true, "[tcp:SERVFAIL1]"},
		{"nobody there", []answers{nil}, true, "[tcp:connection_refused1]"},
		{"silence", []answers{silent}, true, "[tcp:timeout1]"},
		{"rubbish", []answers{func(asked) [][]byte { return [][]byte{{1, 2, 3}} }}, true, "[tcp:malformed1]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := newSite(t, tc.site...).upstreams()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			q := query("a.example", dns.TypeTXT)
			_, _ = u.ask(ctx, q, packed(q), tc.overTCP) // judged by what was measured
			var got []string
			for _, a := range NewForwarder(u).Figures().Attempts {
				got = append(got, fmt.Sprintf("%s:%s%d", a.Network, a.Failure, total(a.Durations)))
			}
			if fmt.Sprint(got) != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

func TestLookupsAreMeasuredByOutcome(t *testing.T) {
	s := newSite(t, zone("a.example. A 198.51.100.1"))
	up := s.upstreams()
	r := s.resolver(t, func(c *ResolverConfig) { c.Upstreams = up })
	for _, name := range []string{"a.example", "a.example", "none.example"} {
		if _, err := r.Resolve(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	found := NewForwarder(up).Figures().Lookups
	if len(found) != 2 || found[0].Outcome != NoSuchName || total(found[0].Durations) != 1 ||
		found[1].Outcome != Found || total(found[1].Durations) != 2 || found[1].Durations.Sum <= 0 {
		t.Errorf("got %+v", found)
	}
}

func TestDurationsFallIntoTheirRanges(t *testing.T) {
	var h histogram
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 10 * time.Second, time.Minute} {
		h.add(d)
	}
	got := h.load()
	if last := len(durationBounds); got.Counts[0] != 2 || got.Counts[1] != 1 || got.Counts[last-1] != 1 || got.Counts[last] != 1 || total(got) != 5 {
		t.Errorf("counts %v", got.Counts)
	}
	if !slices.IsSorted(DurationBounds()) || got.Sum != 70*time.Second+2*time.Millisecond+1 {
		t.Errorf("bounds %v, sum %v", DurationBounds(), got.Sum)
	}
}

func TestFailuresHaveNames(t *testing.T) {
	answered := func(rcode int) reply { return reply{msg: &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}} }
	for _, tc := range []struct {
		reply reply
		err   error
		want  string
	}{
		{answered(dns.RcodeSuccess), nil, ""},
		{answered(dns.RcodeNameError), nil, ""},
		{answered(dns.RcodeRefused), nil, "REFUSED"},
		{answered(dns.RcodeNotAuth), nil, "OTHER"},
		{reply{}, context.DeadlineExceeded, "timeout"},
		{reply{}, fmt.Errorf("read: %w", os.ErrDeadlineExceeded), "timeout"},
		{reply{}, &net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "connection_refused"},
		{reply{}, &net.OpError{Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, "network"},
		{reply{}, errMismatch, "malformed"},
		{reply{}, errors.New("unpack"), "malformed"},
	} {
		if got := failureNames[failureOf(tc.reply, tc.err)]; got != tc.want {
			t.Errorf("%v: %q, want %q", tc.err, got, tc.want)
		}
	}
}
