package tour

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"firezone-gateway/internal/lab/labtest"
	"firezone-gateway/internal/lab/resource"
)

// dnsTransports are the ways to the gateway's DNS service.
var dnsTransports = []string{"udp4", "udp6", "tcp4", "tcp6"}

// zone is what the site's name server says in these tests.
var zone = []string{
	"site.example. 60 IN TXT \"v=lab1\" \"second\"",
	"_ldap._tcp.site.example. 60 IN SRV 10 20 389 dc1.site.example.",
	"_ldap._tcp.site.example. 60 IN SRV 10 30 389 dc2.site.example.",
	"site.example. 60 IN MX 10 mail.site.example.",
	"www.site.example. 60 IN A 10.20.0.21",
}

// query asks the gateway one question and returns its answer, with the records
// as lines, in order.
func (s *site) query(ctx context.Context, network, name string, qtype uint16, edns uint16) (*dns.Msg, []string, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	if edns > 0 {
		q.SetEdns0(edns, false)
	}
	answer, err := s.client().Query(ctx, network, q)
	if err != nil {
		return nil, nil, err
	}
	var lines []string
	for _, rr := range answer.Answer {
		lines = append(lines, rr.String())
	}
	slices.Sort(lines)
	switch {
	case !answer.Response:
		err = fmt.Errorf("no response but a query")
	case len(answer.Question) != 1 || answer.Question[0] != q.Question[0]:
		err = fmt.Errorf("another question: %v", answer.Question)
	}
	return answer, lines, err
}

// as returns zone-file lines as a name server's answer prints them.
func as(t *testing.T, lines ...string) []string {
	t.Helper()
	var out []string
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rr.String())
	}
	slices.Sort(out)
	return out
}

func (s *site) set(t *testing.T, lines ...string) {
	t.Helper()
	if err := s.names.Set(lines...); err != nil {
		t.Fatal(err)
	}
}

// TestDNSQueries promises that the gateway answers clients' questions with what
// the site's name server says, over both transports and families.
func TestDNSQueries(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.set(t, zone...)
	long, huge := resource.LongTXT("long.site.example", 4000), resource.LongTXT("huge.site.example", 50000)
	middling := resource.LongTXT("middling.site.example", 900)
	s.set(t, slices.Concat(long, huge, middling)...)
	whole := []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"site.example", dns.TypeTXT, dns.RcodeSuccess, zone[:1]},
		{"_ldap._tcp.site.example", dns.TypeSRV, dns.RcodeSuccess, zone[1:3]},
		{"_LDAP._tcp.Site.Example", dns.TypeSRV, dns.RcodeSuccess, zone[1:3]},
		{"site.example", dns.TypeMX, dns.RcodeSuccess, zone[3:4]},
		{"www.site.example", dns.TypeA, dns.RcodeSuccess, zone[4:]},
		{"www.site.example", dns.TypeTXT, dns.RcodeSuccess, nil},
		{"none.site.example", dns.TypeTXT, dns.RcodeNameError, nil},
	}
	for _, network := range dnsTransports {
		t.Run(network, func(t *testing.T) {
			for _, q := range whole {
				begin := time.Now()
				answer, got, err := s.query(within(t, stepLimit), network, q.name, q.qtype, 0)
				if err != nil {
					t.Errorf("%s: %v", q.name, err)
					continue
				}
				t.Logf("%s %s: %s, %d records after %s", q.name, dns.TypeToString[q.qtype], dns.RcodeToString[answer.Rcode], len(got), milliseconds(time.Since(begin)))
				if answer.Rcode != q.rcode || answer.Truncated || !slices.Equal(got, as(t, q.want...)) {
					t.Errorf("%s: %v", q.name, answer)
				}
			}
			for _, q := range []struct {
				name  string
				edns  uint16
				lines []string
				fits  bool // a datagram
			}{
				{"middling.site.example", 1232, middling, true},
				{"middling.site.example", 0, middling, false},
				{"long.site.example", 1232, long, false},
				{"long.site.example", 4096, long, false},
				{"huge.site.example", 0, huge, false},
			} {
				answer, got, err := s.query(within(t, stepLimit), network, q.name, dns.TypeTXT, q.edns)
				if err != nil {
					t.Errorf("%s: %v", q.name, err)
					continue
				}
				size := answer.Len()
				t.Logf("%s with EDNS %d: %d records in %d bytes, truncated %v", q.name, q.edns, len(got), size, answer.Truncated)
				if strings.HasPrefix(network, "tcp") || q.fits {
					if answer.Truncated || !slices.Equal(got, as(t, q.lines...)) {
						t.Errorf("%s with EDNS %d: not whole", q.name, q.edns)
					}
				} else if !answer.Truncated || size > max(512, min(int(q.edns), 1200)) {
					t.Errorf("%s with EDNS %d: truncated %v in %d bytes", q.name, q.edns, answer.Truncated, size)
				}
			}
		})
	}
	t.Run("queries of one connection", func(t *testing.T) {
		s.names.SetManners("slow.site.example", resource.Manners{Delay: 2 * time.Second})
		conn, err := s.client().DialDNS(within(t, stepLimit), "tcp4")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(stepLimit)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"slow.site.example.", "site.example."} {
			if err := conn.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeTXT)); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{"site.example.", "slow.site.example."} {
			answer, err := conn.ReadMsg()
			if err != nil {
				t.Fatal(err)
			}
			if got := answer.Question[0].Name; got != want {
				t.Errorf("%s is answered before %s", got, want)
			}
		}
	})
	t.Run("a name server that does not answer", func(t *testing.T) {
		s.names.SetManners("silent.site.example", resource.Manners{Silent: true})
		begin := time.Now()
		answer, _, err := s.query(within(t, stepLimit), "udp4", "silent.site.example", dns.TypeTXT, 0)
		took := time.Since(begin)
		if err != nil || answer.Rcode != dns.RcodeServerFailure || took < 4*time.Second || took > 8*time.Second {
			t.Errorf("%v after %v, error %v", answer, took, err)
		}
		t.Logf("SERVFAIL after %.2f s", took.Seconds())
	})
	t.Run("somebody who is no client", func(t *testing.T) {
		gateway, _ := s.client().GatewayInterface()
		route := netip.PrefixFrom(gateway.IPv4, 32)
		if err := s.net.Resource.AddRoute(route, s.net.ResourceGateway.IPv4, "eth0"); err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"udp4", "tcp4"} {
			ctx, cancel := context.WithTimeout(t.Context(), pingPatience)
			defer cancel()
			conn, err := s.net.Resource.DialContext(ctx, network, netip.AddrPortFrom(gateway.IPv4, 53535).String())
			if err != nil {
				continue // as good as no answer
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(pingPatience))
			stranger := &dns.Conn{Conn: conn}
			_ = stranger.WriteMsg(new(dns.Msg).SetQuestion("site.example.", dns.TypeTXT))
			if answer, err := stranger.ReadMsg(); err == nil {
				t.Errorf("%s: %v", network, answer)
			}
		}
	})
	t.Run("a name server that changes", func(t *testing.T) {
		if err := s.addAddress(nameServer6); err != nil {
			t.Fatal(err)
		}
		other, err := resource.ServeDNS(s.net.Resource, nameServer6, 53)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.Set("site.example. 60 IN TXT other"); err != nil {
			t.Fatal(err)
		}
		s.setNameServers(t, nameServer6)
		begin := time.Now()
		err = await(within(t, stepLimit), "the old name server is asked on", func() bool {
			_, got, err := s.query(within(t, pingPatience), "udp4", "site.example", dns.TypeTXT, 0)
			return err == nil && len(got) == 1 && strings.Contains(got[0], "other")
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("asked %s after the change", milliseconds(time.Since(begin)))
	})
	t.Run("other software goes on", func(t *testing.T) { require(t, s.World, pingAnswered, gatewayLeaves) })
}

// TestDNSDeadFirstNameServer promises that a name server that is gone costs
// little time, once.
func TestDNSDeadFirstNameServer(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone(), nameServerDead, nameServer4)
	s.set(t, zone...)
	s.serve(t, house1)
	var first, rest time.Duration
	for i := range 20 {
		begin := time.Now()
		answer, got, err := s.query(within(t, stepLimit), dnsTransports[i%len(dnsTransports)], "site.example", dns.TypeTXT, 0)
		took := time.Since(begin)
		if err != nil || answer.Rcode != dns.RcodeSuccess || !slices.Equal(got, as(t, zone[0])) {
			t.Fatalf("%v, error %v", answer, err)
		}
		if i < len(dnsTransports) {
			first = max(first, took)
		} else {
			rest = max(rest, took)
		}
	}
	t.Logf("one of the first queries took %s, one of the others %s", milliseconds(first), milliseconds(rest))
	if first > 3*time.Second || rest > 3*time.Second {
		t.Error("that is too long")
	}
	begin := time.Now()
	proxy := s.enter(t, s.add(t, "www.site.example"), "www.site.example")[0]
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a set-up took %v", took)
	}
	s.answers(t, proxy)
}

// crowd asks n questions at once, over some sockets, and counts the answers by
// their codes; what is not answered counts as -1.
func (s *site) crowd(t *testing.T, n int) map[int]int {
	t.Helper()
	const perSocket = 50
	codes := make(map[int]int)
	var mu sync.Mutex
	var asking sync.WaitGroup
	for first := 0; first < n; first += perSocket {
		asking.Go(func() {
			conn, err := s.client().DialDNS(t.Context(), dnsTransports[first/perSocket%2])
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for i := first; i < min(first+perSocket, n); i++ {
				q := new(dns.Msg).SetQuestion(fmt.Sprintf("q%d.crowd.example.", i), dns.TypeTXT)
				if err := conn.WriteMsg(q); err != nil {
					t.Error(err)
				}
			}
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Error(err)
			}
			seen := make(map[string]int)
			for len(seen) < min(perSocket, n-first) {
				answer, err := conn.ReadMsg()
				if err != nil {
					break
				}
				seen[answer.Question[0].Name] = answer.Rcode
			}
			mu.Lock()
			defer mu.Unlock()
			for _, code := range seen {
				codes[code]++
			}
			codes[-1] += min(perSocket, n-first) - len(seen)
		})
	}
	asking.Wait()
	return codes
}

// TestDNSThousandQueriesAtOnce promises that so many questions are answered, and
// that those beyond the limit hear of it at once.
func TestDNSThousandQueriesAtOnce(t *testing.T) {
	s := newSite(t, alone())
	var lines []string
	for i := range 1200 {
		lines = append(lines, fmt.Sprintf("q%d.crowd.example. 60 IN TXT t%d", i, i))
	}
	s.set(t, lines...)
	// Of the client's device, whose default holds half of them.
	err := s.host(0).Do(func() error {
		link, err := netlink.LinkByName("tun-client")
		if err != nil {
			return err
		}
		return netlink.LinkSetTxQLen(link, 10000)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.names.SetManners("", resource.Manners{Delay: 2 * time.Second})
	begin := time.Now()
	codes := s.crowd(t, 1000)
	t.Logf("1000 at once, answers by code: %v, in %.2f s", codes, time.Since(begin).Seconds())
	if codes[dns.RcodeSuccess] != 1000 {
		t.Errorf("%d of 1000 were answered", codes[dns.RcodeSuccess])
	}
	begin = time.Now()
	codes = s.crowd(t, 1200)
	t.Logf("1200 at once, answers by code: %v, in %.2f s", codes, time.Since(begin).Seconds())
	if codes[dns.RcodeSuccess] < 900 || codes[-1] > 0 || codes[dns.RcodeSuccess]+codes[dns.RcodeServerFailure] != 1200 {
		t.Error("not every query beyond the limit was told so")
	}
	s.names.SetManners("", resource.Manners{})
	if answer, _, err := s.query(within(t, stepLimit), "udp4", "q1.crowd.example", dns.TypeTXT, 0); err != nil || answer.Rcode != dns.RcodeSuccess {
		t.Errorf("afterwards: %v, error %v", answer, err)
	}
}

// TestDNSWithoutIPv6 promises that a host whose kernel has no IPv6 serves DNS
// resources and questions over IPv4.
func TestDNSWithoutIPv6(t *testing.T) {
	t.Parallel()
	labtest.NeedNamespaces(t)
	o := alone()
	o.scene.prepare = func(w *World) error {
		return w.net.Gateway.Host.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1")
	}
	s := newSiteOf(t, o, func(t *testing.T, w *World) { require(t, w, gatewayJoins, firstClient) })
	s.set(t, zone...)
	s.serve(t, house1)
	s.resolves(t, "both.site.example", house1, house16)
	r := s.add(t, "*.site.example")
	proxies := s.enter(t, r, "both.site.example")
	s.downloads(t, proxies[0])
	s.echoes(t, 0, proxies[0])
	if reply, err := s.pingWithin(t.Context(), 0, proxies[4], time.Second); err == nil && reply.Error == nil {
		t.Error("IPv6 works without IPv6")
	}
	for _, network := range []string{"udp4", "tcp4"} {
		answer, got, err := s.query(within(t, stepLimit), network, "site.example", dns.TypeTXT, 0)
		if err != nil || !slices.Equal(got, as(t, zone[0])) {
			t.Errorf("%s: %v, error %v", network, answer, err)
		}
	}
	for _, line := range s.gateway.Tail(200) {
		if strings.Contains(line, "WARN") || strings.Contains(line, "ERROR") {
			t.Log(line)
		}
	}
	require(t, s.World, gatewayLeaves)
}

// firstClient connects one client and gives it the IPv4 resource.
func firstClient(ctx context.Context, w *World) (Measurement, error) {
	if err := w.connect(ctx, 0); err != nil {
		return Measurement{}, err
	}
	return Measurement{Text: "one client"}, w.authorize(ctx, 0)
}
