package tour

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

// A host two routers away from the clients: the gateway and the resource's.
var (
	deep4 = netip.MustParseAddr("10.21.0.2")
	deep6 = netip.MustParseAddr("fd00:21::2")
)

const narrowMTU = 1000 // of the way from the second router to the deep host, IPv4 only

// addDeep puts the deep host behind the resource, with the services of one.
func (s *site) addDeep(t *testing.T) {
	t.Helper()
	deep, err := s.net.Lab.AddNamespace("deep")
	if err != nil {
		t.Fatal(err)
	}
	router := s.net.Resource.Namespace
	via4, via6 := netip.MustParseAddr("10.21.0.1"), netip.MustParseAddr("fd00:21::1")
	err = s.net.Lab.Connect(
		labnet.End{Namespace: router, Device: "deep0", Addresses: []netip.Prefix{netip.PrefixFrom(via4, 24), netip.PrefixFrom(via6, 64)}},
		labnet.End{Namespace: deep, Device: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(deep4, 24), netip.PrefixFrom(deep6, 64)}},
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := router.EnableForwarding(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		from   *labnet.Namespace
		dst    string
		via    netip.Addr
		device string
	}{
		{deep, "0.0.0.0/0", via4, "eth0"}, {deep, "::/0", via6, "eth0"},
		{s.net.Gateway.Host.Namespace, "10.21.0.0/24", s.net.Resource.IPv4, labnet.ResourceDevice},
		{s.net.Gateway.Host.Namespace, "fd00:21::/64", s.net.Resource.IPv6, labnet.ResourceDevice},
	} {
		if err := r.from.AddRoute(netip.MustParsePrefix(r.dst), r.via, r.device); err != nil {
			t.Fatal(err)
		}
	}
	// Linux bounds the ICMP errors that it sends to one host.
	for _, n := range []*labnet.Namespace{router, deep, s.net.Gateway.Host.Namespace} {
		for path, value := range map[string]string{"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0"} {
			if err := n.SetSysctl(path, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, address := range []netip.Addr{deep4, deep6} {
		server, err := resource.Serve(deep, address, resource.DefaultPorts, discardLog)
		if err != nil {
			t.Fatal(err)
		}
		s.servers = append(s.servers, server)
	}
}

// report is what the client's kernel learns from an ICMP error about a datagram
// of one of its sockets. What does not fit a socket it throws away.
type report struct {
	Type, Code uint8
	MTU        uint32
	From       netip.Addr
}

// probe is a UDP socket that hears of ICMP errors.
type probe struct {
	*net.UDPConn
	v6 bool
}

// newProbe connects a socket to a closed port, with Don't Fragment and the given
// hop limit.
func (s *site) newProbe(t *testing.T, to netip.AddrPort, hops int) probe {
	t.Helper()
	conn, err := s.host(0).DialContext(within(t, pingPatience), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := probe{conn.(*net.UDPConn), to.Addr().Is6()}
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	type option struct{ level, name, value int }
	options := []option{
		{unix.IPPROTO_IP, unix.IP_TTL, hops}, {unix.IPPROTO_IP, unix.IP_RECVERR, 1},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO},
	}
	if p.v6 {
		options = []option{{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops}, {unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1}}
	}
	err = raw.Control(func(fd uintptr) {
		for _, o := range options {
			if err := unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil {
				t.Errorf("socket option: %v", err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// send sends a datagram of that many bytes and returns what is reported of it.
func (p probe) send(t *testing.T, size int) (report, error) {
	t.Helper()
	if _, err := p.Write(make([]byte, size)); err != nil {
		return report{}, fmt.Errorf("not sent: %w", err)
	}
	raw, err := p.SyscallConn()
	if err != nil {
		return report{}, err
	}
	var r report
	err = await(within(t, pingPatience), "nothing is reported", func() (heard bool) {
		_ = raw.Control(func(fd uintptr) { r, heard = fromErrorQueue(int(fd)) })
		return heard
	})
	return r, err
}

func fromErrorQueue(fd int) (report, bool) {
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 2048), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return report{}, false
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return report{}, false
	}
	const extended = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	for _, m := range messages {
		if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR || len(m.Data) < extended+unix.SizeofSockaddrInet4 {
			continue
		}
		e := (*unix.SockExtendedErr)(unsafe.Pointer(&m.Data[0]))
		r := report{Type: e.Type, Code: e.Code, MTU: e.Info}
		switch offender := m.Data[extended:]; {
		case e.Origin == unix.SO_EE_ORIGIN_ICMP:
			r.From = netip.AddrFrom4([4]byte(offender[4:8]))
		case e.Origin == unix.SO_EE_ORIGIN_ICMP6 && len(offender) >= unix.SizeofSockaddrInet6:
			r.From = netip.AddrFrom16([16]byte(offender[8:24]))
		}
		return r, true
	}
	return report{}, false
}

// TestDNSTraceroute promises that probes which die on the way to a DNS resource
// are reported to the socket that sent them, whoever reports them.
func TestDNSTraceroute(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.addDeep(t)
	const name = "deep.site.example"
	s.resolves(t, name, deep4, deep6)
	proxies := s.enter(t, s.add(t, name), name)
	s.answers(t, proxies[0])
	s.answers(t, proxies[4])
	for _, proxy := range []netip.Addr{proxies[0], proxies[4]} {
		exceeded, closed := report{Type: 11}, report{Type: 3, Code: 3}
		if proxy.Is6() {
			exceeded, closed = report{Type: 3}, report{Type: 1, Code: 4}
		}
		for hops := 1; hops <= 3; hops++ {
			t.Run(fmt.Sprintf("%d hops towards %v", hops, proxy), func(t *testing.T) {
				want := exceeded
				if hops == 3 {
					want = closed
				}
				want.From = proxy
				begin := time.Now()
				got, err := s.newProbe(t, netip.AddrPortFrom(proxy, 33434), hops).send(t, 32)
				t.Logf("%+v after %s", got, milliseconds(time.Since(begin)))
				if err != nil || got != want {
					t.Errorf("%+v, error %v, not %+v", got, err, want)
				}
			})
		}
	}
}

// TestDNSPathMTU promises that what is too big for the way to a DNS resource is
// reported with the size that fits, so that transfers go on with smaller packets.
func TestDNSPathMTU(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.addDeep(t)
	const name = "narrow.site.example"
	s.resolves(t, name, deep4)
	proxy := s.enter(t, s.add(t, name), name)[0]
	s.answers(t, proxy)
	err := s.net.Resource.Do(func() error {
		link, err := netlink.LinkByName("deep0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(link, narrowMTU)
	})
	if err != nil {
		t.Fatal(err)
	}
	p := s.newProbe(t, netip.AddrPortFrom(proxy, 33434), 64)
	got, err := p.send(t, 1200)
	t.Logf("%+v", got)
	if want := (report{Type: 3, Code: 4, MTU: narrowMTU, From: proxy}); err != nil || got != want {
		t.Errorf("%+v, error %v, not %+v", got, err, want)
	}
	at := netip.AddrPortFrom(s.client().Proxies(name)[1], resource.DefaultPorts.HTTP) // of which nothing is known yet
	u, err := resource.Upload(within(t, stepLimit), s.host(0), at, s.options.RelayTransfer, 6)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("upload: %.1f MB in %.2f s, %s", float64(u.Bytes)/1e6, u.Elapsed.Seconds(), rate(u.BitsPerSecond()))
	if u.Bytes != s.options.RelayTransfer || !u.Intact() {
		t.Errorf("%d bytes arrived, intact: %v", u.Bytes, u.Intact())
	}
}
