package dns

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// zone answers from records in the form of zone files, by name and type. Names
// without any record do not exist.
func zone(lines ...string) answers {
	all := records(lines...)
	return func(a asked) [][]byte {
		q := a.msg.Question[0]
		m := new(dns.Msg).SetReply(a.msg)
		exists := false
		for _, rr := range all {
			if dns.CanonicalName(rr.Header().Name) != dns.CanonicalName(q.Name) {
				continue
			}
			exists = true
			if rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == dns.TypeCNAME {
				m.Answer = append(m.Answer, rr)
			}
			if c, ok := rr.(*dns.CNAME); ok {
				for _, target := range all {
					if target.Header().Name == c.Target && target.Header().Rrtype == q.Qtype {
						m.Answer = append(m.Answer, target)
					}
				}
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		return [][]byte{packed(m)}
	}
}

// byFamily answers A with v4 and AAAA with v6.
func byFamily(v4, v6 answers) answers {
	return func(a asked) [][]byte {
		if a.msg.Question[0].Qtype == dns.TypeA {
			return v4(a)
		}
		return v6(a)
	}
}

// resolver returns a Resolver for a site, without hosts file unless change sets
// one. It is closed at the end of the test.
func (s *site) resolver(t testing.TB, change ...func(*ResolverConfig)) *Resolver {
	t.Helper()
	cfg := ResolverConfig{Upstreams: s.upstreams(), Hosts: filepath.Join(t.TempDir(), "hosts")}
	for _, c := range change {
		c(&cfg)
	}
	r := NewResolver(cfg)
	t.Cleanup(r.Close)
	return r
}

func wantResolution(t testing.TB, r *Resolver, domain string, want Resolution) {
	t.Helper()
	got, err := r.Resolve(t.Context(), domain)
	if err != nil || got.Outcome != want.Outcome || got.Refused != want.Refused || !slices.Equal(got.V4, want.V4) || !slices.Equal(got.V6, want.V6) {
		t.Errorf("%s: got %+v, %v, want %+v", domain, got, err, want)
	}
}

func TestResolve(t *testing.T) {
	s := newSite(t, zone(
		"both.example. A 198.51.100.2", "both.example. A 198.51.100.1", "both.example. AAAA 2001:db8::1",
		"four.example. A 198.51.100.4", "six.example. AAAA 2001:db8::6", "text.example. TXT x",
		"alias.example. CNAME both.example.", "dangling.example. CNAME gone.example.",
		"private.example. A 10.0.0.7", "private.example. AAAA fd00::7",
		"mixed.example. A 127.0.0.1", "mixed.example. A 198.51.100.9", "mixed.example. AAAA ::1",
		"bad.example. A 169.254.169.254", "bad.example. AAAA fd00:2021:1111::5", "bad.example. A 100.96.0.1",
		"own.example. A 203.0.113.1",
	))
	r := s.resolver(t, func(c *ResolverConfig) {
		c.Own = func(a netip.Addr) bool { return a == netip.MustParseAddr("203.0.113.1") }
	})
	for _, tc := range []struct {
		name, domain string
		want         Resolution
	}{
		{"both families, sorted", "both.example", Resolution{Outcome: Found, V4: addrs("198.51.100.1", "198.51.100.2"), V6: addrs("2001:db8::1")}},
		{"other letter case", "BOTH.Example", Resolution{Outcome: Found, V4: addrs("198.51.100.1", "198.51.100.2"), V6: addrs("2001:db8::1")}},
		{"IPv4 only", "four.example", Resolution{Outcome: Found, V4: addrs("198.51.100.4")}},
		{"IPv6 only", "six.example", Resolution{Outcome: Found, V6: addrs("2001:db8::6")}},
		{"an alias", "alias.example", Resolution{Outcome: Found, V4: addrs("198.51.100.1", "198.51.100.2"), V6: addrs("2001:db8::1")}},
		{"private addresses", "private.example", Resolution{Outcome: Found, V4: addrs("10.0.0.7"), V6: addrs("fd00::7")}},
		{"some addresses refused", "mixed.example", Resolution{Outcome: Found, V4: addrs("198.51.100.9"), Refused: 2}},
		{"all addresses refused", "bad.example", Resolution{Outcome: Found, Refused: 3}},
		{"an address of the gateway", "own.example", Resolution{Outcome: Found, Refused: 1}},
		{"a name without addresses", "text.example", Resolution{Outcome: NoData}},
		{"an alias that leads nowhere", "dangling.example", Resolution{Outcome: NoData}},
		{"a name that does not exist", "none.example", Resolution{Outcome: NoSuchName}},
	} {
		t.Run(tc.name, func(t *testing.T) { wantResolution(t, r, tc.domain, tc.want) })
	}
}

func TestFamiliesFailIndependently(t *testing.T) {
	v4, v6 := zone("a.example. A 198.51.100.1"), zone("a.example. AAAA 2001:db8::1")
	text := zone("a.example. TXT x")
	only4 := Resolution{Outcome: Found, V4: addrs("198.51.100.1")}
	only6 := Resolution{Outcome: Found, V6: addrs("2001:db8::1")}
	later := func(next answers) answers {
		return func(a asked) [][]byte {
			time.Sleep(300 * time.Millisecond) // longer than grace in this test
			return next(a)
		}
	}
	for _, tc := range []struct {
		name string
		site answers
		want Resolution
	}{
		{"AAAA fails", byFamily(v4, codes(dns.RcodeServerFailure)), only4},
		{"AAAA is refused", byFamily(v4, codes(dns.RcodeRefused)), only4},
		{"AAAA is never answered", byFamily(v4, silent), only4},
		{"AAAA does not exist", byFamily(v4, codes(dns.RcodeNameError)), only4},
		{"A fails", byFamily(codes(dns.RcodeServerFailure), v6), only6},
		{"A is never answered", byFamily(silent, v6), only6},
		{"A has no data and AAAA is late", byFamily(text, later(v6)), only6},
		{"A fails and AAAA is late", byFamily(codes(dns.RcodeServerFailure), later(v6)), only6},
		{"both fail", codes(dns.RcodeServerFailure), Resolution{Outcome: Failed}},
		{"one has no data, one fails", byFamily(text, codes(dns.RcodeServerFailure)), Resolution{Outcome: Failed}},
		{"one does not exist, one has no data", byFamily(codes(dns.RcodeNameError), text), Resolution{Outcome: NoData}},
		{"one does not exist, one is never answered", byFamily(codes(dns.RcodeNameError), silent), Resolution{Outcome: NoSuchName}},
		{"one fails, one is never answered", byFamily(codes(dns.RcodeServerFailure), silent), Resolution{Outcome: TimedOut}},
		{"one has no data, one is never answered", byFamily(text, silent), Resolution{Outcome: TimedOut}},
		{"neither is answered", silent, Resolution{Outcome: TimedOut}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newSite(t, tc.site).resolver(t)
			r.grace, r.timeout = 100*time.Millisecond, patience
			if tc.want.Outcome == TimedOut {
				r.timeout = time.Second
			}
			wantResolution(t, r, "a.example", tc.want)
		})
	}
}

func TestWithoutNameServersResolvingFailsAtOnce(t *testing.T) {
	wantResolution(t, newSite(t).resolver(t), "a.example", Resolution{Outcome: Failed})
}

func TestResolvingHasTenSeconds(t *testing.T) {
	if r := newSite(t).resolver(t); r.timeout != 10*time.Second {
		t.Errorf("rule 51: the limit is %v", r.timeout)
	}
	r := newSite(t, silent).resolver(t)
	r.timeout = 500 * time.Millisecond
	began := time.Now()
	wantResolution(t, r, "a.example", Resolution{Outcome: TimedOut})
	if took := time.Since(began); took < r.timeout || took > patience {
		t.Errorf("it took %v, the limit is %v", took, r.timeout)
	}
}

func TestTruncatedAddressesAreFetchedOverTCP(t *testing.T) {
	var lines []string
	for i := range MaxAddresses + 20 {
		lines = append(lines, "many.example. A 198.51.100."+strconv.Itoa(i))
	}
	whole := zone(lines...)
	s := newSite(t, func(a asked) [][]byte {
		if a.tcp {
			return whole(a)
		}
		m := new(dns.Msg).SetReply(a.msg)
		m.Truncated = true
		return [][]byte{packed(m)}
	})
	got, err := s.resolver(t).Resolve(t.Context(), "many.example")
	if err != nil || got.Outcome != Found || len(got.V4) != MaxAddresses {
		t.Fatalf("got %+v, %v", got, err)
	}
	if got.V4[0] != netip.MustParseAddr("198.51.100.0") || got.V4[MaxAddresses-1] != netip.MustParseAddr("198.51.100."+strconv.Itoa(MaxAddresses-1)) {
		t.Errorf("not the lowest addresses are kept: %v", got.V4)
	}
}

func TestATruncatedAnswerWithoutAddressesIsAFailure(t *testing.T) {
	s := newSite(t, func(a asked) [][]byte {
		if a.tcp {
			return nil
		}
		m := new(dns.Msg).SetReply(a.msg)
		m.Truncated = true
		return [][]byte{packed(m)}
	})
	wantResolution(t, s.resolver(t), "a.example", Resolution{Outcome: Failed})
}

func TestHostsFileComesFirst(t *testing.T) {
	s := newSite(t, zone("a.example. A 198.51.100.1", "a.example. AAAA 2001:db8::1"))
	file := filepath.Join(t.TempDir(), "hosts")
	r := s.resolver(t, func(c *ResolverConfig) { c.Hosts = file })
	asked := Resolution{Outcome: Found, V4: addrs("198.51.100.1"), V6: addrs("2001:db8::1")}
	wantResolution(t, r, "a.example", asked) // without a hosts file
	before := s.servers[0].queries()
	replace(t, file, "198.51.100.77 a.example\n")
	wantResolution(t, r, "A.example", Resolution{Outcome: Found, V4: addrs("198.51.100.77")})
	wantResolution(t, r, "a.example.", Resolution{Outcome: Found, V4: addrs("198.51.100.77")})
	replace(t, file, "127.0.1.1 a.example\n198.51.100.78 a.example\n")
	wantResolution(t, r, "a.example", Resolution{Outcome: Found, V4: addrs("198.51.100.78"), Refused: 1})
	if n := s.servers[0].queries(); n != before {
		t.Error("a name of the hosts file was asked for")
	}
	replace(t, file, "198.51.100.77 b.example\n")
	wantResolution(t, r, "a.example", asked)
}

func TestSearchDomainsCompleteNames(t *testing.T) {
	s := newSite(t, zone("db.corp.example. A 198.51.100.1", "www.example. A 198.51.100.2"))
	s.write(t, "nameserver "+s.servers[0].addr.String(), "search lab.example corp.example")
	r := s.resolver(t)
	wantResolution(t, r, "db", Resolution{Outcome: Found, V4: addrs("198.51.100.1")})
	wantResolution(t, r, "db.", Resolution{Outcome: NoSuchName})
	wantResolution(t, r, "www.example", Resolution{Outcome: Found, V4: addrs("198.51.100.2")})
	wantResolution(t, r, "none", Resolution{Outcome: NoSuchName})
}

func TestResolvingAsksAnew(t *testing.T) {
	var mu sync.Mutex
	current := zone("a.example. A 198.51.100.1")
	s := newSite(t, func(a asked) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return current(a)
	})
	r := s.resolver(t)
	wantResolution(t, r, "a.example", Resolution{Outcome: Found, V4: addrs("198.51.100.1")})
	mu.Lock()
	current = zone("a.example. A 198.51.100.2")
	mu.Unlock()
	wantResolution(t, r, "a.example", Resolution{Outcome: Found, V4: addrs("198.51.100.2")})
}

func TestNamesThatAreNotAskedFor(t *testing.T) {
	s := newSite(t, zone())
	r := s.resolver(t)
	for _, domain := range []string{"", ".", "*.example", "a..example", `a\.example`, "a example", "a/b"} {
		if got, err := r.Resolve(t.Context(), domain); !errors.Is(err, ErrName) {
			t.Errorf("%q: %+v, %v", domain, got, err)
		}
	}
	if s.servers[0].queries() > 0 {
		t.Error("one of them was asked for")
	}
}

// requests starts n requests for a domain and waits until they are under way.
func requests(t *testing.T, r *Resolver, ctx context.Context, domain string, n int) <-chan resolved {
	t.Helper()
	r.mu.Lock()
	before := r.requests
	r.mu.Unlock()
	results := make(chan resolved, n)
	for range n {
		go func() {
			res, err := r.Resolve(ctx, domain)
			results <- resolved{res, err}
		}()
	}
	eventually(t, "the requests are under way", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.requests == before+n
	})
	return results
}

type resolved struct {
	Resolution
	err error
}

func TestRequestsForADomainShareOneLookup(t *testing.T) {
	gate := make(chan struct{})
	r := newSite(t, withhold(gate, zone("a.example. A 198.51.100.1"))).resolver(t)
	r.timeout = 10 * patience
	const n = 20
	results := requests(t, r, t.Context(), "a.example", n-1)
	upper := requests(t, r, t.Context(), "A.EXAMPLE", 1)
	r.mu.Lock()
	if len(r.lookups) != 1 {
		t.Errorf("%d lookups for one domain", len(r.lookups))
	}
	r.mu.Unlock()
	close(gate)
	first := <-upper
	for range n - 1 {
		got := <-results
		if got.err != nil || len(got.V4) != 1 || &got.V4[0] != &first.V4[0] {
			t.Fatalf("got %+v, which is not that of the others", got)
		}
	}
}

func TestAThousandRequestsAtOnceAndNoMore(t *testing.T) {
	gate := make(chan struct{})
	r := newSite(t, withhold(gate, zone("a.example. A 198.51.100.1"))).resolver(t)
	r.timeout = 10 * patience
	results := requests(t, r, t.Context(), "a.example", MaxResolving)
	for _, domain := range []string{"a.example", "b.example"} {
		if got, err := r.Resolve(t.Context(), domain); !errors.Is(err, ErrBusy) {
			t.Errorf("one more, for %s: %+v, %v", domain, got, err)
		}
	}
	close(gate)
	for range MaxResolving {
		if got := <-results; got.err != nil || got.Outcome != Found {
			t.Fatalf("got %+v", got)
		}
	}
	wantResolution(t, r, "a.example", Resolution{Outcome: Found, V4: addrs("198.51.100.1")})
}

func TestLookupsThatWereGivenUpCount(t *testing.T) {
	gate := make(chan struct{})
	r := newSite(t, withhold(gate, zone())).resolver(t)
	r.timeout = 10 * patience
	const given = 5
	for i := range given {
		ctx, cancel := context.WithCancel(t.Context())
		results := requests(t, r, ctx, "given"+strconv.Itoa(i), 1)
		cancel()
		if got := <-results; !errors.Is(got.err, context.Canceled) {
			t.Fatalf("got %+v", got)
		}
	}
	r.mu.Lock()
	if r.requests != 0 || len(r.lookups) != given {
		t.Errorf("%d requests, %d lookups, want 0 and %d", r.requests, len(r.lookups), given)
	}
	// The rest of those that were given up is made up, to spare the sockets.
	for i := given; i < MaxResolving; i++ {
		r.lookups["made-up"+strconv.Itoa(i)] = &lookup{}
	}
	r.mu.Unlock()
	if got, err := r.Resolve(t.Context(), "more.example"); !errors.Is(err, ErrBusy) {
		t.Errorf("one more: %+v, %v", got, err)
	}
	close(gate)
	eventually(t, "lookups that were given up have ended", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.lookups) == MaxResolving-given
	})
}

func TestARequestThatIsGivenUpLeavesTheOthers(t *testing.T) {
	gate := make(chan struct{})
	r := newSite(t, withhold(gate, zone("a.example. A 198.51.100.1"))).resolver(t)
	r.timeout = 10 * patience
	ctx, cancel := context.WithCancel(t.Context())
	given := requests(t, r, ctx, "a.example", 1)
	stays := requests(t, r, t.Context(), "a.example", 1)
	cancel()
	if got := <-given; !errors.Is(got.err, context.Canceled) {
		t.Errorf("given up: %+v", got)
	}
	close(gate)
	if got := <-stays; got.err != nil || !slices.Equal(got.V4, addrs("198.51.100.1")) {
		t.Errorf("the other: %+v", got)
	}
}

func TestCloseEndsLookups(t *testing.T) {
	r := newSite(t, silent).resolver(t)
	r.timeout = 10 * patience
	results := requests(t, r, t.Context(), "a.example", 3)
	r.Close()
	r.Close()
	for range 3 {
		if got := <-results; !errors.Is(got.err, ErrClosed) {
			t.Errorf("got %+v", got)
		}
	}
	if _, err := r.Resolve(t.Context(), "a.example"); !errors.Is(err, ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestOutcomesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for o := NoSuchName; o <= Found; o++ {
		if s := o.String(); s == "" || s == "invalid" || seen[s] {
			t.Errorf("outcome %d is called %q", o, s)
		} else {
			seen[s] = true
		}
	}
	if s := (Found + 1).String(); s != "invalid" {
		t.Errorf("an unknown outcome is called %q", s)
	}
}
