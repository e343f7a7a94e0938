package resource_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"firezone-gateway/internal/lab/resource"
)

func serveDNS(t *testing.T) *resource.DNSServer {
	t.Helper()
	s, err := resource.ServeDNS(host{}, netip.MustParseAddr("127.0.0.1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func ask(ctx context.Context, s *resource.DNSServer, network, name string, qtype uint16, edns uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype)
	if edns > 0 {
		q.SetEdns0(edns, false)
	}
	client := dns.Client{Net: network, UDPSize: dns.MaxMsgSize}
	answer, _, err := client.ExchangeContext(ctx, q, s.Address().String())
	return answer, err
}

func mustAsk(t *testing.T, s *resource.DNSServer, network, name string, qtype uint16, edns uint16) *dns.Msg {
	t.Helper()
	answer, err := ask(t.Context(), s, network, name, qtype, edns)
	if err != nil {
		t.Fatalf("%s over %s: %v", name, network, err)
	}
	return answer
}

func TestDNSServerSaysWhatItWasTold(t *testing.T) {
	s := serveDNS(t)
	err := s.Set("a.example. 60 IN A 192.0.2.1", "a.example. 60 IN A 192.0.2.2", "a.example. 60 IN TXT one",
		"_x._tcp.example. 60 IN SRV 1 2 3 a.example.")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		qtype   uint16
		rcode   int
		records int
	}{
		{"a.example.", dns.TypeA, dns.RcodeSuccess, 2},
		{"A.Example.", dns.TypeTXT, dns.RcodeSuccess, 1},
		{"a.example.", dns.TypeAAAA, dns.RcodeSuccess, 0},
		{"_x._tcp.example.", dns.TypeSRV, dns.RcodeSuccess, 1},
		{"b.example.", dns.TypeA, dns.RcodeNameError, 0},
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, tt := range tests {
			got := mustAsk(t, s, network, tt.name, tt.qtype, 0)
			if got.Rcode != tt.rcode || len(got.Answer) != tt.records || !got.Authoritative {
				t.Errorf("%s over %s: %v", tt.name, network, got)
			}
		}
	}
	if got := s.Asked("a.example", dns.TypeTXT); got != (resource.Asked{UDP: 1, TCP: 1}) {
		t.Errorf("asked %+v", got)
	}
}

func TestDNSServerChangesWhatItSays(t *testing.T) {
	s := serveDNS(t)
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, step := range []struct {
		addresses []netip.Addr
		a, aaaa   int
		rcode     int
	}{
		{[]netip.Addr{v4, v6}, 1, 1, dns.RcodeSuccess},
		{[]netip.Addr{v6, v6.Next()}, 0, 2, dns.RcodeSuccess},
		{nil, 0, 0, dns.RcodeNameError},
		{[]netip.Addr{v4}, 1, 0, dns.RcodeSuccess},
	} {
		if err := s.SetAddresses("a.example", step.addresses...); err != nil {
			t.Fatal(err)
		}
		a, aaaa := mustAsk(t, s, "udp", "a.example.", dns.TypeA, 0), mustAsk(t, s, "udp", "a.example.", dns.TypeAAAA, 0)
		if len(a.Answer) != step.a || len(aaaa.Answer) != step.aaaa || a.Rcode != step.rcode {
			t.Errorf("%v: %v, %v", step.addresses, a, aaaa)
		}
	}
	for _, line := range []string{"", "a.example. 60 IN A 300.0.0.1", "a.example. 60 IN NONSENSE x"} {
		if err := s.Set(line); err == nil {
			t.Errorf("%q is a record", line)
		}
	}
}

func TestDNSServerTruncatesDatagramsOnly(t *testing.T) {
	s := serveDNS(t)
	lines := resource.LongTXT("long.example", 3001)
	if len(lines) != 16 {
		t.Fatalf("%d records", len(lines))
	}
	if err := s.Set(lines...); err != nil {
		t.Fatal(err)
	}
	for edns, whole := range map[uint16]bool{0: false, 512: false, 1232: false, 4096: true} {
		got := mustAsk(t, s, "udp", "long.example.", dns.TypeTXT, edns)
		limit := max(512, int(edns))
		if got.Truncated == whole || got.Len() > limit || whole && len(got.Answer) != 16 {
			t.Errorf("EDNS %d: %d records in %d bytes, truncated %v", edns, len(got.Answer), got.Len(), got.Truncated)
		}
	}
	if got := mustAsk(t, s, "tcp", "long.example.", dns.TypeTXT, 0); got.Truncated || len(got.Answer) != 16 {
		t.Errorf("over TCP: %d records, truncated %v", len(got.Answer), got.Truncated)
	}
}

func TestDNSServerHasManners(t *testing.T) {
	s := serveDNS(t)
	if err := s.Set("slow.example. 60 IN TXT x", "polite.example. 60 IN TXT x", "failing.example. 60 IN TXT x"); err != nil {
		t.Fatal(err)
	}
	const delay = 200 * time.Millisecond
	s.SetManners("slow.example", resource.Manners{Delay: delay})
	s.SetManners("failing.example", resource.Manners{Rcode: dns.RcodeServerFailure})
	begin := time.Now()
	mustAsk(t, s, "tcp", "slow.example.", dns.TypeTXT, 0)
	if took := time.Since(begin); took < delay {
		t.Errorf("answered after %v", took)
	}
	if got := mustAsk(t, s, "udp", "failing.example.", dns.TypeTXT, 0); got.Rcode != dns.RcodeServerFailure || len(got.Answer) != 0 {
		t.Errorf("%v", got)
	}
	s.SetManners("", resource.Manners{Silent: true})
	s.SetManners("polite.example", resource.Manners{})
	mustAsk(t, s, "udp", "polite.example.", dns.TypeTXT, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if answer, err := ask(ctx, s, "udp", "other.example.", dns.TypeTXT, 0); err == nil {
		t.Errorf("silence is %v", answer)
	}
}

func TestDNSServerEndsInMidDelay(t *testing.T) {
	s := serveDNS(t)
	s.SetManners("", resource.Manners{Delay: time.Hour})
	asked := make(chan error, 1)
	go func() {
		_, err := ask(t.Context(), s, "tcp", "a.example.", dns.TypeA, 0)
		asked <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); s.Asked("a.example", dns.TypeA).TCP == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the query did not arrive")
		}
		time.Sleep(time.Millisecond)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-asked; err == nil {
		t.Error("an answer after the end")
	}
}

func TestDNSServerNeedsItsSockets(t *testing.T) {
	if _, err := resource.ServeDNS(broken{}, netip.MustParseAddr("127.0.0.1"), 0); !errors.Is(err, errNoSocket) {
		t.Errorf("error %v", err)
	}
	s := serveDNS(t)
	if _, err := resource.ServeDNS(host{}, s.Address().Addr(), s.Address().Port()); err == nil {
		t.Error("two servers on one port")
	}
	if lines := resource.LongTXT("a", 0); !slices.Equal(lines, nil) {
		t.Errorf("no text is %q", lines)
	}
}
