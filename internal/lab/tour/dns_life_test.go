package tour

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// TestDNSNameWithoutAddress promises that a domain that does not resolve is
// unreachable, which no client takes for the loss of its access, and is reached
// as soon as it has addresses and the client asks again.
func TestDNSNameWithoutAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.serve(t, house1, house16)
	r := s.add(t, "*.site.example")
	t.Run("a name that does not exist", func(t *testing.T) {
		proxies := s.enter(t, r, "none.site.example")
		for _, proxy := range proxies {
			s.unreachable(t, 0, proxy)
		}
		s.resolves(t, "none.site.example", house1, house16)
		s.unreachable(t, 0, proxies[0]) // nobody has asked again
		s.enter(t, r, "none.site.example")
		s.answers(t, proxies[0])
		s.answers(t, proxies[4])
	})
	t.Run("a name of one family", func(t *testing.T) {
		s.resolves(t, "four.site.example", house1)
		proxies := s.enter(t, r, "four.site.example")
		s.answers(t, proxies[0])
		s.unreachable(t, 0, proxies[4])
		s.resolves(t, "six.site.example", house16)
		proxies = s.enter(t, r, "six.site.example")
		s.unreachable(t, 0, proxies[0])
		s.answers(t, proxies[4])
	})
	t.Run("a name server that fails", func(t *testing.T) {
		s.names.SetManners("failing.site.example", resource.Manners{Rcode: dns.RcodeServerFailure})
		s.unreachable(t, 0, s.enter(t, r, "failing.site.example")[0])
	})
	t.Run("addresses that no client may reach", func(t *testing.T) {
		gateway, _ := s.client().GatewayInterface()
		for i, a := range []netip.Addr{
			netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.0.1"), gateway.IPv4, s.client().Interface().IPv4,
			s.net.Gateway.Host.IPv4, s.net.ResourceGateway.IPv4, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("224.0.0.1"),
			netip.MustParseAddr("::1"), gateway.IPv6, s.net.ResourceGateway.IPv6, netip.MustParseAddr("fe80::1"),
		} {
			name := fmt.Sprintf("own%d.site.example", i)
			s.resolves(t, name, a)
			proxies := s.enter(t, r, name)
			s.unreachable(t, 0, proxies[0])
			s.unreachable(t, 0, proxies[4])
		}
	})
	t.Run("a name server that does not answer", func(t *testing.T) {
		s.names.SetManners("silent.site.example", resource.Manners{Silent: true})
		begin := time.Now()
		active, err := s.client().SetUp(within(t, stepLimit), r.ID, "silent.site.example")
		took := time.Since(begin)
		t.Logf("active %v after %.1f s, asked %+v", active, took.Seconds(), s.names.Asked("silent.site.example", dns.TypeA))
		if err != nil || active || took < 9500*time.Millisecond || took > 15*time.Second {
			t.Errorf("active %v after %v, error %v", active, took, err)
		}
	})
}

// TestDNSRevocation promises that a revoked resource is prohibited at once, of
// flows that existed as of new ones, and serves a client that gets it again.
func TestDNSRevocation(t *testing.T) {
	t.Parallel()
	const name = "revoked.site.example"
	s := newSite(t, alone())
	s.serve(t, house1)
	s.resolves(t, name, house1)
	r, other := s.add(t, name), s.add(t, "other.site.example")
	s.resolves(t, "other.site.example", house1)
	kept := s.flowTo(t, s.enter(t, other, "other.site.example")[0], resource.DefaultPorts.TCPEcho)
	proxies := s.enter(t, r, name)
	flow := s.flowTo(t, proxies[0], resource.DefaultPorts.TCPEcho)
	alive(t, flow)
	after := s.lastEvent()
	if err := s.portal.Revoke("", r.ID); err != nil {
		t.Fatal(err)
	}
	refused, err := s.untilRefused(within(t, stepLimit), 0, proxies[0])
	if err != nil {
		t.Fatal(err)
	}
	pushed := s.awaitEvent(t, "nothing was revoked", after, stepLimit, func(e portal.Event) bool { return e.Kind == portal.AccessRejected })
	t.Logf("prohibited %s after the push", milliseconds(refused.Sub(pushed.At)))
	if d := refused.Sub(pushed.At); d > time.Second {
		t.Errorf("prohibited after %v only", d)
	}
	if err := echoOnce(flow, time.Now().Add(300*time.Millisecond)); err == nil {
		t.Error("the flow goes on")
	}
	s.prohibits(t, 0, proxies[4])
	if active, err := s.client().SetUp(within(t, stepLimit), r.ID, name); err != nil || active {
		t.Errorf("a set-up of what is revoked: active %v, error %v", active, err)
	}
	s.prohibits(t, 0, proxies[0])
	alive(t, kept)

	s.grant(t, r, longAccess)
	if again := s.enter(t, r, name); again[0] != proxies[0] {
		t.Fatalf("the name has other addresses: %v", again)
	}
	s.answers(t, proxies[0])
	alive(t, s.flowTo(t, proxies[0], resource.DefaultPorts.TCPEcho))
	alive(t, kept)
}

// feedFrom is startFeed from a proxy address.
func (s *site) feedFrom(t *testing.T, proxy netip.Addr) *feed {
	t.Helper()
	conn := s.flowTo(t, proxy, resource.DefaultPorts.HTTP)
	if err := conn.(*net.TCPConn).SetReadBuffer(feedWindow); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /file?size=%d&seed=%d HTTP/1.1\r\nHost: lab\r\n\r\n", int64(1)<<40, feedSeed); err != nil {
		t.Fatal(err)
	}
	f := &feed{conn: conn, stop: make(chan struct{}), done: make(chan struct{}), sum: sha256.New(), begin: time.Now()}
	go func() {
		defer close(f.done)
		f.err = f.run()
		f.elapsed = time.Since(f.begin)
	}()
	t.Cleanup(func() {
		conn.Close() // first: nothing may come any more
		f.end()
	})
	return f
}

// TestDNSExpiryInMidDownload promises that a download stops within a second of
// the end of the access that it rests on.
func TestDNSExpiryInMidDownload(t *testing.T) {
	t.Parallel()
	const name = "expiring.site.example"
	s := newSite(t, alone())
	s.resolves(t, name, places[files4].address)
	r := s.add(t, name)
	s.grant(t, r, shortAccess)
	proxy := s.enter(t, r, name)[0]
	var end time.Time
	for _, auth := range s.portal.State().Authorizations {
		if auth.ResourceID == r.ID {
			end = time.Unix(auth.ExpiresAt.Unix(), 0) // as on the wire
		}
	}
	f := s.feedFrom(t, proxy)
	var bytes int64
	var last time.Time // when something came
	err := await(within(t, stepLimit), "the download goes on", func() bool {
		if got := f.received(); got != bytes {
			bytes, last = got, time.Now()
		}
		return time.Since(end) > 3*time.Second && time.Since(last) > 2*time.Second
	})
	if err != nil {
		t.Fatal(err)
	}
	f.conn.Close()
	f.end()
	late := last.Sub(end)
	t.Logf("%.1f MB, the last of them %s after the end, machine late by %s at most", float64(bytes)/1e6, milliseconds(late), milliseconds(f.lag))
	if bytes == 0 || late < -1500*time.Millisecond || late-f.lag > expiryBound {
		t.Errorf("%d bytes, the last of them %v after the end", bytes, late)
	}
	s.prohibits(t, 0, proxy)
	if _, _, err := s.client().AccessDomain(within(t, stepLimit), r.ID, name); err == nil {
		t.Error("access after its end")
	}
	s.grant(t, r, longAccess)
	s.enter(t, r, name)
	s.downloads(t, proxy)
}

// counts wants the services of an address to have seen what they should. They
// count an echo when it is on its way.
func (s *site) counts(t *testing.T, at netip.Addr, what string, right func(resource.Stats) bool) {
	t.Helper()
	if err := await(within(t, pingPatience), "not counted", func() bool { return right(s.at[at].Stats()) }); err != nil {
		t.Errorf("%v saw %+v, not %s", at, s.at[at].Stats(), what)
	}
}

// TestDNSAddressChange promises that sessions stay with the address they began
// with when a domain moves, and new ones go to the new one.
func TestDNSAddressChange(t *testing.T) {
	t.Parallel()
	const name = "moving.site.example"
	s := newSite(t, alone())
	s.serve(t, house1, house2)
	s.resolves(t, name, house1)
	r := s.add(t, name)
	proxy := s.enter(t, r, name)[0]
	ports := resource.DefaultPorts
	words, datagrams := s.flowTo(t, proxy, ports.TCPEcho), s.fromPort(t, "udp4", 42000, netip.AddrPortFrom(proxy, ports.UDPEcho))
	download := s.feedFrom(t, proxy)
	for _, conn := range []net.Conn{words, datagrams} {
		if err := said(conn, "before"); err != nil {
			t.Fatal(err)
		}
	}

	s.resolves(t, name, house2)
	s.enter(t, r, name)
	before := s.at[house1].Stats()
	for _, conn := range []net.Conn{words, datagrams} {
		if err := said(conn, "after"); err != nil {
			t.Errorf("a session from before: %v", err)
		}
	}
	s.counts(t, house1, "a datagram of the old session", func(now resource.Stats) bool { return now.Echoed == before.Echoed+1 })
	alive(t, s.flowTo(t, proxy, ports.TCPEcho))
	fresh := s.fromPort(t, "udp4", 42001, netip.AddrPortFrom(proxy, ports.UDPEcho))
	if err := said(fresh, "new"); err != nil {
		t.Error(err)
	}
	s.downloads(t, proxy)
	s.counts(t, house2, "what is new", func(now resource.Stats) bool {
		return now.Connections == 1 && now.Echoed == 1 && now.Requests == 2
	})
	s.counts(t, house1, "nothing new", func(now resource.Stats) bool {
		return now.Connections == before.Connections && now.Requests == before.Requests
	})
	sofar := download.received()
	if err := await(within(t, stepLimit), "the download stands still", func() bool { return download.received() > sofar+feedRate }); err != nil {
		t.Fatal(err)
	}
	download.unharmed(t, stallLimit)
	alive(t, words)
}

// TestDNSProxiesRenumbered promises that a client that has begun to number its
// domains anew, as after a restart, gets what it says.
func TestDNSProxiesRenumbered(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.serve(t, house1, house2)
	r := s.add(t, "*.site.example")
	s.resolves(t, "one.site.example", house1)
	s.resolves(t, "two.site.example", house2)
	proxies := s.enter(t, r, "one.site.example")
	old := s.flowTo(t, proxies[0], resource.DefaultPorts.TCPEcho)
	alive(t, old)
	active, err := s.client().SetUpWith(within(t, stepLimit), r.ID, "two.site.example", proxies)
	if err != nil || !active {
		t.Fatalf("active %v, error %v", active, err)
	}
	alive(t, s.flowTo(t, proxies[0], resource.DefaultPorts.TCPEcho))
	if got := s.at[house2].Stats().Connections; got != 1 {
		t.Errorf("the new host has %d connections", got)
	}
	if err := echoOnce(old, time.Now().Add(300*time.Millisecond)); err == nil {
		t.Error("a session of the old numbers goes on")
	}
}

// TestDNSClientSentAway promises that a client whose only resource was a domain,
// and ends, is served like a new one when it comes back.
func TestDNSClientSentAway(t *testing.T) {
	t.Parallel()
	const name = "only.site.example"
	s := newSite(t, alone())
	s.serve(t, house1)
	s.resolves(t, name, house1)
	r := s.add(t, name)
	proxy := s.enter(t, r, name)[0]
	s.answers(t, proxy)
	goodbyes := s.client().Goodbyes()
	for _, id := range []string{s.resources[files4].ID, s.resources[files6].ID, r.ID} {
		if err := s.portal.Revoke("", id); err != nil {
			t.Fatal(err)
		}
	}
	err := await(within(t, stepLimit), "no goodbye", func() bool { return s.client().Goodbyes() > goodbyes })
	if err != nil {
		t.Fatal(err)
	}
	s.grant(t, r, longAccess)
	s.enter(t, r, name)
	s.answers(t, proxy)
	s.downloads(t, proxy)
}

// TestDNSThroughChanges promises that sessions of DNS resources and questions to
// the gateway survive what concerns others: another path, a portal that is gone
// for a while, and the gateway's return to it.
func TestDNSThroughChanges(t *testing.T) {
	t.Parallel()
	const name = "lasting.site.example"
	s := newSite(t, alone())
	s.serve(t, house1)
	s.resolves(t, name, house1)
	s.set(t, zone...)
	r := s.add(t, name)
	proxy := s.enter(t, r, name)[0]
	flow := s.flowTo(t, proxy, resource.DefaultPorts.TCPEcho)
	datagrams := s.fromPort(t, "udp4", 43000, netip.AddrPortFrom(proxy, resource.DefaultPorts.UDPEcho))
	download := s.feedFrom(t, proxy)
	questions, err := s.client().DialDNS(within(t, stepLimit), "tcp4")
	if err != nil {
		t.Fatal(err)
	}
	defer questions.Close()
	good := func(when string) {
		t.Helper()
		alive(t, flow)
		if err := said(datagrams, when); err != nil {
			t.Errorf("%s: datagrams: %v", when, err)
		}
		if err := questions.SetDeadline(time.Now().Add(pingPatience)); err != nil {
			t.Fatal(err)
		}
		err := questions.WriteMsg(new(dns.Msg).SetQuestion("site.example.", dns.TypeTXT))
		if err == nil {
			_, err = questions.ReadMsg()
		}
		if err != nil {
			t.Errorf("%s: a question on the connection from before: %v", when, err)
		}
		if _, _, err := s.query(within(t, pingPatience), "udp4", "site.example", dns.TypeTXT, 0); err != nil {
			t.Errorf("%s: a question: %v", when, err)
		}
		if active, err := s.client().SetUp(within(t, stepLimit), r.ID, name); err != nil || !active {
			t.Errorf("%s: set-up: active %v, error %v", when, active, err)
		}
	}
	good("at first")
	after := s.lastEvent()
	s.sendAway(t)
	s.awaitReturn(t, after, returnLimit)
	good("after the gateway's return")
	if err := s.portal.PushInit(""); err != nil {
		t.Fatal(err)
	}
	good("after another init")
	if err := s.client().Reconnect(within(t, stepLimit)); err != nil {
		t.Fatal(err)
	}
	good("on another path")
	download.unharmed(t, stepLimit)
}
