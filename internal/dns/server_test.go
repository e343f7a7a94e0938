package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestListenSaysWhyItCannotBind(t *testing.T) {
	f := NewForwarder(newSite(t).upstreams())
	for _, network := range networks {
		taken := start(t, network, f)
		for _, tc := range []struct {
			name string
			cfg  ServerConfig
			want error
		}{
			{"an address that no interface has", ServerConfig{Addr: netip.MustParseAddrPort("192.0.2.1:0"), Clients: loopback}, ErrNoAddress},
			{"a port that is taken", ServerConfig{Addr: taken, Clients: loopback}, ErrPortTaken},
			{"all addresses", ServerConfig{Addr: netip.MustParseAddrPort("0.0.0.0:0"), Clients: loopback}, errWildcard},
			{"all IPv6 addresses", ServerConfig{Addr: netip.MustParseAddrPort("[::]:0"), Clients: loopback}, errWildcard},
			{"no address", ServerConfig{Clients: loopback}, errWildcard},
			{"nobody to ask about clients", ServerConfig{Addr: netip.MustParseAddrPort("127.0.0.1:0")}, errNoClients},
		} {
			t.Run(tc.name+" over "+string(network), func(t *testing.T) {
				tc.cfg.Network, tc.cfg.Forwarder = network, f
				s, err := Listen(tc.cfg)
				if s != nil || !errors.Is(err, tc.want) {
					t.Errorf("got %v, %v, want %v", s, err, tc.want)
				}
			})
		}
	}
}

func TestListenKnowsTwoTransports(t *testing.T) {
	_, err := Listen(ServerConfig{Network: "sctp", Addr: netip.MustParseAddrPort("127.0.0.1:0"), Clients: loopback})
	if unknown := net.UnknownNetworkError(""); !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
}

func TestBindErrorsAreToldApart(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{
		syscall.EADDRNOTAVAIL: ErrNoAddress, syscall.EADDRINUSE: ErrPortTaken, syscall.EAFNOSUPPORT: ErrNoFamily,
		syscall.EACCES: syscall.EACCES,
	} {
		err := bindError(&net.OpError{Op: "listen", Err: os.NewSyscallError("bind", errno)})
		if !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v became %v", errno, err)
		}
	}
}

func TestIPv6(t *testing.T) {
	probe, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("the host has no IPv6: ", err)
	}
	probe.Close()
	f := NewForwarder(newSite(t, says("x")).upstreams())
	for _, network := range networks {
		addr := start(t, network, f, func(c *ServerConfig) { c.Addr = netip.MustParseAddrPort("[::1]:0") })
		if got := dialFrom(t, network, netip.IPv6Loopback(), addr).ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
			t.Errorf("rule 71: over %s: %v", network, got)
		}
	}
}

func TestUDPAndTCPShareAPort(t *testing.T) {
	f := NewForwarder(newSite(t, says("x")).upstreams())
	addr := start(t, TCP, f)
	start(t, UDP, f, func(c *ServerConfig) { c.Addr = addr })
	for _, network := range networks {
		if got := dial(t, network, addr).ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
			t.Errorf("over %s: %v", network, got)
		}
	}
}

func TestAServerIsBoundAgainAfterClose(t *testing.T) {
	f := NewForwarder(newSite(t, says("x")).upstreams())
	for _, network := range networks {
		t.Run(string(network), func(t *testing.T) {
			cfg := ServerConfig{Network: network, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Forwarder: f, Clients: loopback}
			for range 3 {
				s, err := Listen(cfg)
				if err != nil {
					t.Fatal(err)
				}
				served := make(chan error, 1)
				go func() { served <- s.Serve() }()
				if got := dial(t, network, s.Addr()).ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
					t.Fatal(got)
				}
				s.Close()
				if err := <-served; err != nil {
					t.Fatal(err)
				}
				cfg.Addr = s.Addr() // with a connection in TIME_WAIT, too
			}
		})
	}
}

func TestCloseAtAnyTime(t *testing.T) {
	f := NewForwarder(newSite(t).upstreams())
	for _, network := range networks {
		listen := func(t *testing.T) *Server {
			s, err := Listen(ServerConfig{Network: network, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Forwarder: f, Clients: loopback})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		t.Run("before Serve over "+string(network), func(t *testing.T) {
			s := listen(t)
			s.Close()
			if err := s.Serve(); err != nil {
				t.Error(err)
			}
		})
		t.Run("twice over "+string(network), func(t *testing.T) {
			s := listen(t)
			served := make(chan error, 1)
			go func() { served <- s.Serve() }()
			s.Close()
			s.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		t.Run("Serve while it serves over "+string(network), func(t *testing.T) {
			s := listen(t)
			served := make(chan error, 2)
			go func() { served <- s.Serve() }()
			go func() { served <- s.Serve() }()
			if err := <-served; err != nil {
				t.Error(err)
			}
			s.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServeTellsThatItsSocketFailed(t *testing.T) {
	f := NewForwarder(newSite(t).upstreams())
	s, err := Listen(ServerConfig{Network: UDP, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Forwarder: f, Clients: loopback})
	if err != nil {
		t.Fatal(err)
	}
	s.udp.SetReadDeadline(time.Unix(1, 0))
	if err := s.Serve(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("UDP: %v", err)
	}
	s.Close()
	s, err = Listen(ServerConfig{Network: TCP, Addr: s.cfg.Addr, Forwarder: f, Clients: loopback})
	if err != nil {
		t.Fatal(err)
	}
	s.tcp.SetDeadline(time.Unix(1, 0))
	if err := s.Serve(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("TCP: %v", err)
	}
	s.Close()
}

func TestCloseWithQueriesUnderWay(t *testing.T) {
	site := newSite(t, silent)
	for _, network := range networks {
		t.Run(string(network), func(t *testing.T) {
			f := NewForwarder(site.upstreams())
			f.timeout = 10 * patience
			s, err := Listen(ServerConfig{Network: network, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Forwarder: f, Clients: loopback})
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve() }()
			c := dial(t, network, s.Addr())
			for range MaxPipelined {
				c.send(packed(query("a.example", dns.TypeTXT)))
			}
			eventually(t, "queries are under way", func() bool { return f.Counts().UnderWay == MaxPipelined })
			s.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if n := f.Counts().UnderWay; n != 0 {
				t.Errorf("%d queries are still under way", n)
			}
			if c := f.Counts(); c != (Counts{}) {
				t.Errorf("ended queries are counted: %+v", c)
			}
			if network == TCP {
				c.wantClosed()
			}
		})
	}
}

func TestOnlyClientsAreServed(t *testing.T) {
	site := newSite(t, says("x"))
	foreign := netip.MustParseAddr("127.0.0.9")
	for _, network := range networks {
		t.Run(string(network), func(t *testing.T) {
			f := NewForwarder(site.upstreams())
			before := site.servers[0].queries()
			addr := start(t, network, f, func(c *ServerConfig) { c.Clients = func(a netip.Addr) bool { return a != foreign } })
			stranger := dialFrom(t, network, foreign, addr)
			if err := stranger.trySend(packed(query("a.example", dns.TypeTXT))); err != nil && network == UDP {
				t.Fatal(err)
			}
			eventually(t, "the stranger is counted", func() bool { return f.Counts() == Counts{Foreign: 1} })
			if network == TCP {
				stranger.wantClosed()
			}
			if n := site.servers[0].queries(); n != before {
				t.Error("a query of a stranger was forwarded")
			}
			if got := dial(t, network, addr).ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
				t.Errorf("the client got %v", got)
			}
		})
	}
}

func TestTheFilterSeesPlainAddresses(t *testing.T) {
	f := NewForwarder(newSite(t).upstreams())
	var seen netip.Addr
	s := Server{cfg: ServerConfig{Forwarder: f, Clients: func(a netip.Addr) bool { seen = a; return true }}}
	for in, want := range map[string]string{"::ffff:100.64.0.1": "100.64.0.1", "fd00:2021:1111::1%tun0": "fd00:2021:1111::1"} {
		if s.fromClient(netip.MustParseAddr(in)); seen != netip.MustParseAddr(want) {
			t.Errorf("%s is seen as %v", in, seen)
		}
	}
}

func TestAnswersOfManyClientsGoToTheRightOne(t *testing.T) {
	echo := func(a asked) [][]byte { return says(a.msg.Question[0].Name)(a) }
	f := NewForwarder(newSite(t, echo).upstreams())
	for _, network := range networks {
		addr := start(t, network, f)
		var wrong, right atomic.Int64
		done := make(chan struct{})
		const clients, each = 8, 20 // as many as one client may have connections
		for i := range clients {
			c := dial(t, network, addr)
			name := string(rune('a'+i)) + ".example."
			go func() {
				defer func() { done <- struct{}{} }()
				for range each {
					q := query(name, dns.TypeTXT)
					q.Id = 1 // the same for all
					if c.trySend(packed(q)) != nil {
						return
					}
					wire, err := c.tryReceive()
					m := new(dns.Msg)
					if err != nil || m.Unpack(wire) != nil {
						return
					}
					if m.Id == 1 && text(m) == name {
						right.Add(1)
					} else {
						wrong.Add(1)
					}
				}
			}()
		}
		for range clients {
			<-done
		}
		if wrong.Load() > 0 || right.Load() != clients*each {
			t.Errorf("over %s: %d right answers, %d wrong ones", network, right.Load(), wrong.Load())
		}
	}
}
