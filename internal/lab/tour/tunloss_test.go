package tour

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	labnet "firezone-gateway/internal/lab/net"
)

const (
	// lossBound is how long the loss of the TUN device may cost traffic: it shows
	// at once, and another device is made after a tenth of a second.
	lossBound = 2 * time.Second
	// undoneBound is the same for what others take from the device, which the
	// gateway looks after every two seconds.
	undoneBound = 5 * time.Second
	// undoneStall is how long a TCP flow may stand still over that: its sender
	// tries again at growing distances (RFC 6298).
	undoneStall = 3 * undoneBound
)

// TestTourOutlivesTheLossOfItsDevice promises that whatever others do to the TUN
// device, its addresses, routes, rules or firewall is put right by the gateway
// alone. The clients notice a pause, and keep connections and sessions.
func TestTourOutlivesTheLossOfItsDevice(t *testing.T) {
	t.Parallel()
	s := newSite(t, alone())
	s.set(t, zone...)
	w, host := s.World, s.net.Gateway.Host
	feed := startFeed(t, w)
	goodbyes := w.clients[0].Goodbyes()
	device := func(f func(netlink.Link) error) func() error {
		return func() error {
			link, err := netlink.LinkByName("tun-firezone")
			if err != nil {
				return err
			}
			return f(link)
		}
	}
	addresses := func(family int) func(netlink.Link) error {
		return func(link netlink.Link) error {
			list, err := netlink.AddrList(link, family)
			for _, a := range list {
				if err == nil {
					err = netlink.AddrDel(link, &a)
				}
			}
			return err
		}
	}
	put := func(name string, bound time.Duration, undo func() error) {
		t.Helper()
		begin := time.Now()
		if err := host.Do(undo); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if raceDetector {
			bound *= 2
		}
		s.awaitWhole(t, name, begin.Add(bound+time.Second))
		w.awaitTraffic(t, files4)
		w.awaitTraffic(t, files6)
		took := time.Since(begin)
		t.Logf("without %s: whole again after %s", name, milliseconds(took))
		if took > bound {
			t.Errorf("without %s: whole again after %v", name, took)
		}
		for _, network := range dnsTransports {
			if _, got, err := s.query(within(t, stepLimit), network, "www.site.example", mdns.TypeA, 0); err != nil || len(got) != 1 {
				t.Errorf("without %s: %s query: %q, %v", name, network, got, err)
			}
		}
	}
	for _, loss := range []struct {
		name  string
		bound time.Duration
		undo  func() error
	}{
		{"the device", lossBound, device(netlink.LinkDel)},
		{"the second device", lossBound, device(netlink.LinkDel)},
		{"its name", undoneBound, device(func(l netlink.Link) error { return netlink.LinkSetName(l, "other") })},
		{"its state", undoneBound, device(netlink.LinkSetDown)},
		{"its IPv4 address", undoneBound, device(addresses(netlink.FAMILY_V4))},
		{"its IPv6 address", undoneBound, device(addresses(netlink.FAMILY_V6))},
		{"the routes to clients", undoneBound, device(func(l netlink.Link) error {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_UNSPEC},
				netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
			for _, r := range routes {
				if err == nil && r.Table != unix.RT_TABLE_LOCAL {
					err = netlink.RouteDel(&r)
				}
			}
			return err
		})},
		{"the rules", undoneBound, func() error {
			rules, err := netlink.RuleList(netlink.FAMILY_V4)
			for _, r := range rules {
				if err == nil && r.Mark != 0 {
					r.Family = netlink.FAMILY_V4
					err = netlink.RuleDel(&r)
				}
			}
			return err
		}},
		{"forwarding", undoneBound, func() error { return host.SetSysctl("net/ipv4/ip_forward", "0") }},
	} {
		put(loss.name, loss.bound, loss.undo)
		// TCP is given the time to notice before the next blow.
		received := feed.received()
		if err := await(within(t, undoneStall), "the download", func() bool { return feed.received() > received }); err != nil {
			t.Errorf("without %s: %v", loss.name, err)
			logConnections(t, "resource", s.net.Resource)
			logConnections(t, "client", s.net.Clients[0].Host)
		}
	}
	feed.unharmed(t, undoneStall)
	// The kernel resets the flows whose translation is taken away.
	put("the firewall", undoneBound, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
	if n := w.clients[0].Goodbyes(); n != goodbyes {
		t.Errorf("the client was sent away %d times", n-goodbyes)
	}
	require(t, w, pingAnswered, pathIsDirect, gatewayLeaves)
}

// awaitWhole waits until the gateway's host has all that belongs to a TUN device.
func (s *site) awaitWhole(t *testing.T, without string, deadline time.Time) {
	t.Helper()
	missing := ""
	ctx := within(t, time.Until(deadline))
	err := await(ctx, "the device is not whole again", func() bool {
		missing = ""
		return s.net.Gateway.Host.Do(func() error { missing = missingOnHost(); return nil }) == nil && missing == ""
	})
	if err != nil {
		t.Errorf("without %s: %v: %s", without, err, missing)
	}
}

func missingOnHost() string {
	link, err := netlink.LinkByName("tun-firezone")
	if err != nil {
		return err.Error()
	}
	if link.Attrs().RawFlags&unix.IFF_UP == 0 {
		return "link is down"
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if list, err := netlink.AddrList(link, family); err != nil || len(list) != 1 {
			return "address"
		}
		rules, err := netlink.RuleList(family)
		marked := 0
		for _, r := range rules {
			if r.Mark != 0 {
				marked++
			}
		}
		if err != nil || marked != 3 {
			return "rules"
		}
	}
	c, err := nftables.New()
	if err != nil {
		return err.Error()
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil || len(chains) < 2 {
		return "firewall"
	}
	return ""
}

// logConnections logs the host's TCP connections with their timers, as the kernel
// lists them: whether a flow that stands still has ended at one side, or waits.
func logConnections(t *testing.T, name string, host labnet.Host) {
	t.Helper()
	const established = " 01 "
	err := host.Do(func() error {
		list, err := os.ReadFile("/proc/thread-self/net/tcp")
		for line := range strings.Lines(string(list)) {
			if strings.Contains(line, established) {
				t.Logf("%s: %s", name, strings.TrimSpace(line))
			}
		}
		return err
	})
	if err != nil {
		t.Log(err)
	}
}
