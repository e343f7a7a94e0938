package tour

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/gateway"
	"firezone-gateway/internal/lab/resource"
)

// newNAT64Site is a site whose daemon translates between IPv4 and IPv6. What it
// does otherwise is TestDNSNameWithoutAddress's promise: "a name of one family".
func newNAT64Site(t *testing.T) *site {
	t.Helper()
	o := alone()
	o.scene.daemon = func(_ *World, g *gateway.Options) { g.Env = append(g.Env, "FIREZONE_NAT64=true") }
	return newSite(t, o)
}

// TestNAT64 promises that a name of one family is reached by its proxy addresses
// of both.
func TestNAT64(t *testing.T) {
	t.Parallel()
	s := newNAT64Site(t)
	s.addDeep(t)
	r := s.add(t, "*.site.example")
	s.resolves(t, "six.site.example", deep6)
	s.resolves(t, "four.site.example", deep4)
	s.resolves(t, "both.site.example", deep4, deep6)
	six, four := s.enter(t, r, "six.site.example"), s.enter(t, r, "four.site.example")
	for _, c := range []struct {
		name  string
		proxy netip.Addr
	}{{"IPv4 to IPv6", six[0]}, {"IPv6 to IPv4", four[4]}} {
		t.Run(c.name, func(t *testing.T) {
			t.Run("ping", func(t *testing.T) { s.answers(t, c.proxy) })
			t.Run("datagrams", func(t *testing.T) { s.echoes(t, 0, c.proxy) })
			t.Run("download", func(t *testing.T) { s.downloads(t, c.proxy) })
			t.Run("upload", func(t *testing.T) { s.uploads(t, c.proxy) })
			t.Run("a word on a connection", func(t *testing.T) {
				alive(t, s.flowTo(t, c.proxy, resource.DefaultPorts.TCPEcho))
			})
			exceeded, closed := report{Type: 11, From: c.proxy}, report{Type: 3, Code: 3, From: c.proxy}
			if c.proxy.Is6() {
				exceeded, closed = report{Type: 3, From: c.proxy}, report{Type: 1, Code: 4, From: c.proxy}
			}
			for hops := 1; hops <= 3; hops++ {
				t.Run(fmt.Sprintf("a probe that dies after %d hops", hops), func(t *testing.T) {
					want := exceeded
					if hops == 3 {
						want = closed
					}
					got, err := s.newProbe(t, netip.AddrPortFrom(c.proxy, 33434), hops).send(t, 32)
					if err != nil || got != want {
						t.Errorf("%+v, error %v, not %+v", got, err, want)
					}
				})
			}
		})
	}
	t.Run("each family stays with its own where it has one", func(t *testing.T) {
		both := s.enter(t, r, "both.site.example")
		s.answers(t, both[0])
		s.answers(t, both[4])
		s.answers(t, six[4])
		s.answers(t, four[0])
	})
}

// uploads sends a file to a proxy address.
func (s *site) uploads(t *testing.T, proxy netip.Addr) {
	t.Helper()
	at := netip.AddrPortFrom(proxy, resource.DefaultPorts.HTTP)
	u, err := resource.Upload(within(t, stepLimit), s.host(0), at, s.options.RelayTransfer, 6)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %.1f MB in %.2f s, %s", at, float64(u.Bytes)/1e6, u.Elapsed.Seconds(), rate(u.BitsPerSecond()))
	if u.Bytes != s.options.RelayTransfer || !u.Intact() {
		t.Errorf("%d bytes arrived, intact: %v", u.Bytes, u.Intact())
	}
}

// TestNAT64PathMTU promises that both ends learn which size fits, in terms of
// their own IP version.
func TestNAT64PathMTU(t *testing.T) {
	t.Parallel()
	s := newNAT64Site(t)
	s.addDeep(t)
	r := s.add(t, "*.site.example")
	s.resolves(t, "six.site.example", deep6)
	s.resolves(t, "four.site.example", deep4)
	six, four := s.enter(t, r, "six.site.example"), s.enter(t, r, "four.site.example")
	s.answers(t, six[0])
	s.answers(t, four[4])
	narrow := func(mtu int) {
		t.Helper()
		err := s.net.Resource.Do(func() error {
			link, err := netlink.LinkByName("deep0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(link, mtu)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a way over IPv6 that takes what is least for it", func(t *testing.T) {
		narrow(1280)
		got, err := s.newProbe(t, netip.AddrPortFrom(six[0], 33434), 64).send(t, 1280-28)
		if want := (report{Type: 3, Code: 4, MTU: 1260, From: six[0]}); err != nil || got != want {
			t.Errorf("%+v, error %v, not %+v", got, err, want)
		}
		s.uploads(t, six[1]) // of which nothing is known yet
		s.downloads(t, six[1])
	})
	t.Run("a narrow way over IPv4, where packets are cut", func(t *testing.T) {
		narrow(narrowMTU)
		s.uploads(t, four[5])
	})
	t.Run("an IPv4 host that sends what does not fit as IPv6", func(t *testing.T) {
		s.serve(t, house1)
		s.resolves(t, "house.site.example", house1)
		proxy := s.enter(t, r, "house.site.example")[4]
		var host net.PacketConn
		err := s.net.Resource.Do(func() (err error) {
			large := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
				if e := c.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
				}); e != nil {
					return e
				}
				return err
			}}
			host, err = large.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(house1, 5005).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { host.Close() })
		flow, err := s.host(0).DialContext(within(t, pingPatience), "udp", netip.AddrPortFrom(proxy, 5005).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flow.Close() })
		if _, err := flow.Write([]byte("begin")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1500)
		_, from, err := host.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		err = await(within(t, pingPatience), "the host does not learn the size", func() bool {
			_, err := host.WriteTo(buf[:1261-28], from)
			return errors.Is(err, unix.EMSGSIZE)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := host.WriteTo(buf[:1260-28], from); err != nil {
			t.Errorf("what fits is not sent: %v", err)
		}
		if n, err := flow.Read(buf); err != nil || n != 1260-28 {
			t.Errorf("%d bytes arrived, error %v", n, err)
		}
	})
}
