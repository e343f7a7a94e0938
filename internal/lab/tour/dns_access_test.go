package tour

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// More addresses in the resource's network.
var (
	house1  = netip.MustParseAddr("10.20.0.21")
	house2  = netip.MustParseAddr("10.20.0.22")
	house16 = netip.MustParseAddr("fd00:20::21")
)

// echoes sends datagrams to a proxy address and wants each of them back.
func (s *site) echoes(t *testing.T, client int, proxy netip.Addr) {
	t.Helper()
	at := netip.AddrPortFrom(proxy, resource.DefaultPorts.UDPEcho)
	load := resource.EchoLoad{BitsPerSecond: 2e6, Duration: time.Second, Size: echoSize}
	r, err := resource.UDPEcho(within(t, stepLimit), s.host(client), at, load)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %d datagrams, %d lost, median %s, p99 %s", at, r.Sent, r.Lost, milliseconds(r.Median), milliseconds(r.P99))
	if r.Sent == 0 || r.Lost+r.Repeated+r.Foreign > 0 {
		t.Errorf("%+v", r)
	}
}

// answers pings a proxy address.
func (s *site) answers(t *testing.T, proxy netip.Addr) {
	t.Helper()
	for range pings {
		rtt, err := s.reaches(t.Context(), 0, proxy)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("ping %v: %s", proxy, milliseconds(rtt))
	}
}

// prohibits wants echo requests of client i refused as prohibited.
func (s *site) prohibits(t *testing.T, i int, proxy netip.Addr) {
	t.Helper()
	if err := s.refused(t.Context(), i, proxy); err != nil {
		t.Error(err)
	}
}

// unreachable wants echo requests of client i refused as "network unreachable"
// (ICMP 3/0) or "address unreachable" (ICMPv6 1/3), which no client takes for
// the loss of its access.
func (s *site) unreachable(t *testing.T, i int, proxy netip.Addr) {
	t.Helper()
	want := resource.ICMPError{Type: 3, Code: 0}
	if proxy.Is6() {
		want = resource.ICMPError{IPv6: true, Type: 1, Code: 3}
	}
	reply, err := s.ping(t.Context(), i, proxy)
	switch {
	case err != nil:
		t.Error(err)
	case reply.Error == nil:
		t.Errorf("ping %v was answered", proxy)
	case *reply.Error != want:
		t.Errorf("ping %v: %v, not %v", proxy, *reply.Error, want)
	}
}

// flowTo connects the main client to a port behind a proxy address.
func (s *site) flowTo(t *testing.T, proxy netip.Addr, port uint16) net.Conn {
	t.Helper()
	conn, err := s.host(0).DialContext(within(t, pingPatience), "tcp", netip.AddrPortFrom(proxy, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// alive wants a word back from an echo service.
func alive(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := echoOnce(conn, time.Now().Add(pingPatience)); err != nil {
		t.Errorf("%v to %v: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
	}
}

// TestDNSResource promises that what has a name is reached like what has an
// address, over both families.
func TestDNSResource(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.resolves(t, "files.site.example", places[files4].address, places[files6].address)
	proxies := s.enter(t, s.add(t, "files.site.example"), "files.site.example")
	for family, proxy := range map[string]netip.Addr{"IPv4": proxies[0], "IPv6": proxies[4]} {
		t.Run("download over "+family, func(t *testing.T) { s.downloads(t, proxy) })
		t.Run("datagrams over "+family, func(t *testing.T) { s.echoes(t, 0, proxy) })
		t.Run("ping over "+family, func(t *testing.T) { s.answers(t, proxy) })
	}
	t.Run("any proxy address of the domain", func(t *testing.T) {
		for _, proxy := range proxies {
			if _, err := s.reaches(t.Context(), 0, proxy); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("other software goes on", func(t *testing.T) { require(t, s.World, pingAnswered, gatewayLeaves) })
}

// TestDNSWildcard promises that a pattern covers the names it says and no other.
func TestDNSWildcard(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.serve(t, house1, house2)
	r := s.add(t, "*.apps.site.example")
	for name, address := range map[string]netip.Addr{
		"a.apps.site.example": house1, "b.apps.site.example": house2, "apps.site.example": house1,
	} {
		s.resolves(t, name, address)
		proxy := s.enter(t, r, name)[0]
		before := s.at[address].Stats().Connections
		alive(t, s.flowTo(t, proxy, resource.DefaultPorts.TCPEcho))
		if got := s.at[address].Stats().Connections - before; got != 1 {
			t.Errorf("%s did not lead to %v", name, address)
		}
	}
	for _, name := range []string{"a.b.apps.site.example", "site.example", "xapps.site.example", "a.apps.site.example.evil.example"} {
		s.resolves(t, name, house1)
		proxies, active, err := s.client().AccessDomain(within(t, stepLimit), r.ID, name)
		if err != nil || active {
			t.Errorf("%s: active %v, error %v", name, active, err)
			continue
		}
		if reply, err := s.ping(t.Context(), 0, proxies[0]); err != nil || reply.Error == nil {
			t.Errorf("%s: %+v, error %v", name, reply, err)
		}
	}
}

// fromPort connects from one port of the client, which other connections may
// have as well.
func (s *site) fromPort(t *testing.T, network string, port int, to netip.AddrPort) net.Conn {
	t.Helper()
	reuse := func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if failed == nil {
				failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
		})
		if err == nil {
			err = failed
		}
		return err
	}
	own := net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.client().Interface().IPv4, uint16(port)))
	var local net.Addr = own
	if network == "udp4" {
		local = &net.UDPAddr{IP: own.IP, Port: own.Port}
	}
	dialer := net.Dialer{LocalAddr: local, Control: reuse}
	dialer.SetMultipathTCP(false)
	var conn net.Conn
	err := s.host(0).Do(func() (err error) {
		conn, err = dialer.DialContext(within(t, pingPatience), network, to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestDNSTwoDomainsOnOneAddress promises that two names of one host stay apart,
// even where a client uses one source port for both.
func TestDNSTwoDomainsOnOneAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.serve(t, house1)
	r := s.add(t, "*.site.example")
	var flows [2][]net.Conn
	for i := range flows {
		name := fmt.Sprintf("name%d.site.example", i)
		s.resolves(t, name, house1)
		to := netip.AddrPortFrom(s.enter(t, r, name)[0], resource.DefaultPorts.TCPEcho)
		flows[i] = []net.Conn{s.fromPort(t, "tcp4", 41000, to), s.fromPort(t, "udp4", 41001, to)}
	}
	for round := range 20 {
		for i, pair := range flows {
			for _, conn := range pair {
				word := fmt.Sprintf("round %2d of name %d", round, i)
				if err := said(conn, word); err != nil {
					t.Fatalf("%v: %v", conn.RemoteAddr(), err)
				}
			}
		}
	}
	s.counts(t, house1, "two connections and 40 datagrams", func(now resource.Stats) bool { return now.Connections == 2 && now.Echoed == 40 })
}

// said wants a word back.
func said(conn net.Conn, word string) error {
	if err := conn.SetDeadline(time.Now().Add(pingPatience)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	answer := make([]byte, len(word))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if string(answer) != word {
		return fmt.Errorf("%q came back for %q", answer, word)
	}
	return nil
}

// open reports whether a TCP port behind a proxy address takes connections, and
// wants it prohibited if not.
func (s *site) open(t *testing.T, proxy netip.Addr, port uint16) bool {
	t.Helper()
	at := netip.AddrPortFrom(proxy, port)
	conn, err := s.host(0).DialContext(within(t, pingPatience), "tcp4", at.String())
	if err == nil {
		conn.Close()
		return true
	}
	refusal, err := refusedTCP(within(t, pingPatience), s.host(0), at)
	if err != nil || !refusal.Prohibited() {
		t.Errorf("%v: %v, error %v", at, refusal, err)
	}
	return false
}

// TestDNSFiltersOfTwoResourcesOnOneName promises that each of two resources
// opens its own ports of a name, and takes them along when it goes.
func TestDNSFiltersOfTwoResourcesOnOneName(t *testing.T) {
	t.Parallel()
	const name = "shared.site.example"
	s := newSite(t, alone())
	s.serve(t, house1)
	s.resolves(t, name, house1)
	ports := resource.DefaultPorts
	words := s.add(t, name, portal.Ports(portal.TCP, ports.TCPEcho, ports.TCPEcho))
	web := s.add(t, name, portal.Ports(portal.TCP, ports.HTTP, ports.HTTP), portal.Filter{Protocol: portal.ICMP})
	proxy := s.enter(t, words, name)[0]
	want := func(when string, echo, http, ping bool) {
		t.Helper()
		if got := s.open(t, proxy, ports.TCPEcho); got != echo {
			t.Errorf("%s: echo port open: %v", when, got)
		}
		if got := s.open(t, proxy, ports.HTTP); got != http {
			t.Errorf("%s: HTTP port open: %v", when, got)
		}
		if ping {
			s.answers(t, proxy)
		} else {
			s.prohibits(t, 0, proxy)
		}
		if s.open(t, proxy, ports.Sink) {
			t.Errorf("%s: a port of neither is open", when)
		}
	}
	want("with the first", true, false, false)
	if again := s.enter(t, web, name)[0]; again != proxy {
		t.Fatalf("the name has %v and %v", proxy, again)
	}
	want("with both", true, true, true)
	flow := s.flowTo(t, proxy, ports.TCPEcho)
	alive(t, flow)
	if err := s.portal.Revoke("", web.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.untilRefused(within(t, stepLimit), 0, proxy); err != nil {
		t.Fatal(err)
	}
	want("without the second", true, false, false)
	alive(t, flow)
}

// TestDNSFiltersOfTwoNamesOnOneAddress promises that a host's address opens under
// one name nothing that was granted under another one.
func TestDNSFiltersOfTwoNamesOnOneAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.serve(t, house1)
	ports := resource.DefaultPorts
	var proxies []netip.Addr
	var first portal.Resource
	for i, port := range []uint16{ports.TCPEcho, ports.HTTP} {
		name := fmt.Sprintf("name%d.site.example", i)
		s.resolves(t, name, house1)
		r := s.add(t, name, portal.Ports(portal.TCP, port, port))
		if i == 0 {
			first = r
		}
		proxies = append(proxies, s.enter(t, r, name)[0])
	}
	for i, proxy := range proxies {
		if echo, http := s.open(t, proxy, ports.TCPEcho), s.open(t, proxy, ports.HTTP); echo != (i == 0) || http != (i == 1) {
			t.Errorf("name %d: echo %v, HTTP %v", i, echo, http)
		}
	}
	// A change of one is none of the other.
	first.Filters = []portal.Filter{portal.Ports(portal.TCP, ports.Sink, ports.Sink)}
	if _, err := s.portal.UpdateResource(first); err != nil {
		t.Fatal(err)
	}
	err := await(within(t, stepLimit), "the new filter does not hold", func() bool {
		conn, err := s.host(0).DialContext(within(t, pingPatience), "tcp4", netip.AddrPortFrom(proxies[0], ports.Sink).String())
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.open(t, proxies[0], ports.TCPEcho) || !s.open(t, proxies[1], ports.HTTP) || s.open(t, proxies[1], ports.Sink) {
		t.Error("after the change the wrong ports are open")
	}
	// The address itself was not granted.
	s.prohibits(t, 0, house1)
}

// TestDNSWithAnOlderPortal promises names to clients of the first generation as
// well, which set their domains up in the tunnel like the others.
func TestDNSWithAnOlderPortal(t *testing.T) {
	t.Parallel()
	o := alone()
	o.V1 = true
	s := newSite(t, o)
	s.resolves(t, "files.site.example", places[files4].address, places[files6].address)
	proxies := s.enter(t, s.add(t, "files.site.example"), "files.site.example")
	s.downloads(t, proxies[0])
	s.downloads(t, proxies[4])
	require(t, s.World, pingAnswered, gatewayLeaves)
}
