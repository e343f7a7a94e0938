package transport

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"firezone-gateway/internal/drop"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// host is a network namespace with an interface that has two addresses of each
// family. Sockets have to be opened on the test's goroutine, which is inside.
type host struct {
	t    testing.TB
	link netlink.Link
}

// addresses are those of a host.
var addresses = [families][2]netip.Addr{
	IPv4: {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	IPv6: {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

func newHost(t testing.TB) *host {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		skipOrFail(t, "network namespace: "+err.Error())
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		skipOrFail(t, "unshare: "+err.Error())
	}
	t.Cleanup(func() {
		// On failure the thread stays locked and ends with the goroutine.
		if err := netns.Set(home); err != nil {
			t.Errorf("return to the first namespace: %v", err)
			return
		}
		home.Close()
		runtime.UnlockOSThread()
	})
	h := &host{t: t}
	lo, err := netlink.LinkByName("lo")
	h.must(err)
	h.must(netlink.LinkSetUp(lo))
	h.plugIn()
	return h
}

// plugIn makes the interface, a new one after it was removed.
func (h *host) plugIn() {
	h.t.Helper()
	h.link = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "edge0"}, PeerName: "far0"}
	if err := netlink.LinkAdd(h.link); err != nil {
		skipOrFail(h.t, "pair of interfaces: "+err.Error())
	}
	far, err := netlink.LinkByName("far0")
	h.must(err)
	h.must(netlink.LinkSetUp(far))
	h.must(netlink.LinkSetUp(h.link))
	for _, pair := range addresses {
		for _, a := range pair {
			if err := h.add(a); err != nil {
				skipOrFail(h.t, "address "+a.String()+": "+err.Error())
			}
		}
	}
}

// add gives the interface an address and waits until datagrams reach it: the
// kernel makes the route to an IPv6 address later, in a work queue.
func (h *host) add(a netip.Addr) error {
	h.t.Helper()
	if err := netlink.AddrAdd(h.link, addressOf(a)); err != nil {
		return err
	}
	eventually(h.t, "a route to "+a.String(), func() bool {
		routes, err := netlink.RouteGet(a.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
	return nil
}

// addressOf returns a with no network: the kernel would remove the others of the
// network with the first.
func addressOf(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Flags: unix.IFA_F_NODAD,
	}
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// disableIPv6 is the switch that administrators use.
func (h *host) disableIPv6() {
	h.t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err != nil {
		skipOrFail(h.t, "sysctl: "+err.Error())
	}
}

func TestEachPathHasItsSource(t *testing.T) {
	newHost(t)
	client, s := openSockets(t, Config{}), openSockets(t, Config{})
	ec, es := startEngine(t, client, 128), startEngine(t, s, 128)
	checks := 0
	for f, pair := range addresses {
		for _, at := range pair {
			for _, from := range pair {
				bufs, want := batch(1312, 1312, 96)
				to := netip.AddrPortFrom(at, s.LocalPort(Family(f)))
				send(t, client, client.Path(from, to), bufs)
				back := es.expect(t, want)
				if back.Local() != to || back.Remote().Addr() != from {
					t.Fatalf("the path is %v, want %v to %v", back, to, from)
				}
				if err := es.bind.Send(bufs, back, headroom); err != nil {
					t.Fatal(err)
				}
				if got := ec.expect(t, want).Remote(); got != to {
					t.Errorf("asked at %v, answered from %v", to, got)
				}
				if err := s.SendTo(bindingRequest(), back); err != nil {
					t.Fatal(err)
				}
				checks++
				eventually(t, "the check", func() bool { n, _ := ec.sinks.counts(); return n == checks })
			}
		}
	}
	ec.sinks.mu.Lock()
	defer ec.sinks.mu.Unlock()
	for i, r := range ec.sinks.stun {
		f := i / 4
		if want := addresses[f][i%4/2]; r.path.Remote().Addr() != want {
			t.Errorf("STUN %d came from %v, want %v", i, r.path.Remote(), want)
		}
	}
}

// TestPathsEndWithTheirAddress takes away what a path depends on. Its datagrams
// are counted, and nothing is sent from another address; the other paths of the
// same socket and the receivers go on.
func TestPathsEndWithTheirAddress(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(*host, Family)
		left bool // the other path of the family still works
	}{
		{"an address is removed", func(h *host, f Family) { h.must(netlink.AddrDel(h.link, addressOf(addresses[f][0]))) }, true},
		{"the interface is removed", func(h *host, _ Family) { h.must(netlink.LinkDel(h.link)) }, false},
	} {
		for _, f := range []Family{IPv4, IPv6} {
			for _, gso := range []bool{true, false} {
				t.Run(tt.name+" "+f.String()+map[bool]string{true: " with GSO"}[gso], func(t *testing.T) {
					h := newHost(t)
					drops := new(drop.Counters)
					peer, s := openSockets(t, Config{}), openSockets(t, Config{Drops: drops, DisableGSO: !gso})
					e := startEngine(t, peer, 128)
					es := startEngine(t, s, 128)
					offload := s.sockets[f].gso.Load()
					gone := s.Path(addresses[f][0], address(peer, f))
					other := s.Path(addresses[f][1], address(peer, f))
					bufs, want := batch(repeat(40, 1000)...)
					for _, p := range []*Path{gone, other} {
						send(t, s, p, bufs)
						e.expect(t, want)
					}
					tt.take(h, f)
					send(t, s, gone, bufs)
					if err := s.SendTo(bindingRequest(), gone); err == nil {
						t.Error("a check was sent from an address that is gone")
					}
					if got := drops.Load(drop.SendFailed); got != 41 {
						t.Errorf("SendFailed = %d, want 41", got)
					}
					wantFailed := uint64(41)
					send(t, s, other, bufs)
					if tt.left {
						e.expect(t, want)
					} else {
						wantFailed += 40
					}
					if got := drops.Load(drop.SendFailed); got != wantFailed {
						t.Errorf("SendFailed = %d, want %d", got, wantFailed)
					}
					send(t, s, s.Path(loopback[f], address(peer, f)), bufs)
					e.expect(t, want)
					send(t, peer, pathTo(peer, s, f), bufs)
					es.expect(t, want)
					e.expectNothing(t)
					if s.sockets[f].gso.Load() != offload {
						t.Error("a missing address switched the offload")
					}
				})
			}
		}
	}
}

func TestAddressesThatComeBackServeAgain(t *testing.T) {
	h := newHost(t)
	drops := new(drop.Counters)
	peer, s := openSockets(t, Config{}), openSockets(t, Config{Drops: drops})
	e := startEngine(t, peer, 128)
	bufs, want := batch(96)
	for f, pair := range addresses {
		p := s.Path(pair[0], address(peer, Family(f)))
		h.must(netlink.AddrDel(h.link, addressOf(pair[0])))
		send(t, s, p, bufs)
		h.must(h.add(pair[0]))
		send(t, s, p, bufs)
		e.expect(t, want)
	}
	if got := drops.Load(drop.SendFailed); got != 2 {
		t.Errorf("SendFailed = %d, want 2", got)
	}
}

func TestRebindAfterTheInterfaceIsGone(t *testing.T) {
	h := newHost(t)
	peer, s := openSockets(t, Config{}), openSockets(t, Config{Port: PreferredPort})
	e, ep := startEngine(t, s, 128), startEngine(t, peer, 128)
	bufs, want := batch(1312, 1312, 96)
	bothWays := func(f Family, at netip.Addr) {
		t.Helper()
		to := netip.AddrPortFrom(at, PreferredPort)
		send(t, peer, peer.Path(at, to), bufs)
		back := e.expect(t, want)
		if err := e.bind.Send(bufs, back, headroom); err != nil {
			t.Fatal(err)
		}
		if got := ep.expect(t, want).Remote(); got != to || s.LocalPort(f) != PreferredPort {
			t.Errorf("answered from %v, port %d", got, s.LocalPort(f))
		}
	}
	for range 3 {
		for f, pair := range addresses {
			bothWays(Family(f), pair[0])
		}
		h.must(netlink.LinkDel(h.link))
		s.Close()
		next := openSockets(t, Config{Port: PreferredPort, Peers: s.Peers()})
		e.bind.Swap(next)
		s = next
		for f := range addresses { // what is left of the host is served already
			bothWays(Family(f), loopback[f])
		}
		h.plugIn()
	}
	for f, pair := range addresses {
		bothWays(Family(f), pair[1])
	}
}

func TestNoRouteIsCounted(t *testing.T) {
	newHost(t)
	drops := new(drop.Counters)
	s := openSockets(t, Config{Drops: drops})
	bufs, _ := batch(repeat(10, 1000)...)
	for _, a := range []string{"198.51.100.1", "2001:dead::1"} {
		send(t, s, s.Path(netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr(a), 9)), bufs)
		if err := s.SendToServer(bindingRequest(), netip.AddrPortFrom(netip.MustParseAddr(a), 9)); err == nil {
			t.Errorf("sent to %s", a)
		}
	}
	if got := drops.Load(drop.SendFailed); got != 22 {
		t.Errorf("SendFailed = %d, want 22", got)
	}
}

func TestWithIPv6DisabledIPv4Goes(t *testing.T) {
	h := newHost(t)
	h.disableIPv6()
	drops := new(drop.Counters)
	s := openSockets(t, Config{Drops: drops})
	e := startEngine(t, s, 128)
	bufs, want := batch(96, 96)
	send(t, s, s.Path(addresses[IPv6][0], netip.MustParseAddrPort("[2001:db8::2]:9")), bufs)
	if got := drops.Load(drop.SendFailed); got != 2 {
		t.Errorf("SendFailed = %d, want 2", got)
	}
	send(t, s, pathTo(s, s, IPv4), bufs)
	e.expect(t, want)
}
