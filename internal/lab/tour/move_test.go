package tour

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	labnet "firezone-gateway/internal/lab/net"
)

// roamBound is how long after it has moved a client may be without traffic.
const roamBound = 2 * time.Second

// Where sites move to: another address of their network, another one of their
// router. The clients' network ends in .2 at first.
var (
	clientsNext  = netip.MustParseAddr("203.0.113.200")
	gatewaysNext = netip.MustParseAddr("203.0.113.201")
)

// readdress gives a device another address in the place of the one it has.
func readdress(n *labnet.Namespace, device string, from, to netip.Prefix) error {
	// Without it the kernel drops all addresses of a network with the first.
	if err := n.SetSysctl("net/ipv4/conf/all/promote_secondaries", "1"); err != nil {
		return err
	}
	err := n.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		address := func(p netip.Prefix) *netlink.Addr {
			return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		}
		return errors.Join(netlink.AddrAdd(link, address(to)), netlink.AddrDel(link, address(from)))
	})
	if err != nil {
		return fmt.Errorf("move %s from %v to %v: %w", n.Name(), from, to, err)
	}
	return nil
}

// movePublic gives a site's router another public address.
func (w *World) movePublic(s labnet.Site, to netip.Addr) error {
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	if err := w.net.Internet.AddRoute(single(to), netip.Addr{}, s.Router.Name()); err != nil {
		return err
	}
	return readdress(s.Router.Namespace, "wan", single(s.Router.IPv4), single(to))
}

// moveHost gives a site's host another address behind its router.
func moveHost(s labnet.Site) (netip.Addr, error) {
	to := s.Host.IPv4.Next()
	return to, readdress(s.Host.Namespace, "eth0", netip.PrefixFrom(s.Host.IPv4, s.LAN4.Bits()), netip.PrefixFrom(to, s.LAN4.Bits()))
}

// TestTourFollowsARoamingClient promises that a client has traffic again at once
// wherever it goes, and that its TCP connections do not notice more than a pause.
func TestTourFollowsARoamingClient(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		unaware bool // that it moves
		keepKey bool
	}{
		{"its router gets another address, of which it knows nothing", true, true},
		{"it moves, and keeps its key", false, true},
		{"it moves, and takes another key as the original does", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := original()
			// Behind a NAT of its own the gateway would have to hear of the new address
			// from the portal, and the client would have to know it.
			o.scene.openSide = c.unaware
			w := newWorld(t, o)
			settle(t, w)
			w.awaitDirect(t, pathPatience)
			flow, err := w.openFlow(t.Context(), files4)
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()
			feed := startFeed(t, w)
			feed.awaitBytes(t, 1e6)

			begin := time.Now()
			if err := w.movePublic(w.net.Clients[0], clientsNext); err != nil {
				t.Fatal(err)
			}
			if c.unaware {
				w.cutOff(t) // its connection was from the address that is no more
			} else {
				w.roam(t, c.keepKey)
			}
			asked := time.Since(begin)
			w.awaitTraffic(t, files4)
			back := time.Since(begin)
			if err := echoOnce(flow, time.Now().Add(stepLimit)); err != nil {
				t.Errorf("the connection from before: %v", err)
			}
			t.Logf("authorized again after %s, traffic after %s, on the connection from before after %s",
				milliseconds(asked), milliseconds(back), milliseconds(time.Since(begin)))
			limit := roamBound
			if raceDetector {
				limit *= 2
			}
			if back > limit {
				t.Errorf("traffic came back after %v", back)
			}
			feed.awaitBytes(t, 1e6)
			feed.unharmed(t, 3*limit)
			require(t, w, pingAnswered, gatewayLeaves)
		})
	}
}

// roam moves the client to another address of its network, with other ports.
func (w *World) roam(t *testing.T, keepKey bool) {
	t.Helper()
	to, err := moveHost(w.net.Clients[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := w.clients[0].Roam(within(t, stepLimit), []netip.Addr{to}, keepKey); err != nil {
		t.Fatal(err)
	}
}

// TestTourServesAClientThatStartsAgain promises that a client which has lost all
// it knew but its key has access again as fast as at first, as one with a new key
// has. Credentials follow from the keys (portal-protocol §6.1), so with the same
// key the gateway keeps the connection and has to accept another session on it
// (T-30); with another one it makes another connection (T-29).
func TestTourServesAClientThatStartsAgain(t *testing.T) {
	t.Parallel()
	for name, key := range map[string][32]byte{"with its key": {1, 2, 3}, "with a new key": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := original()
			o.scene.clientKey = key
			w := newWorld(t, o)
			settle(t, w)
			before := w.clients[0].PublicKey()
			if err := w.clients[0].Close(); err != nil {
				t.Fatal(err)
			}
			w.clients = nil

			begin := time.Now()
			if err := w.connect(within(t, stepLimit), 0); err != nil {
				t.Fatal(err)
			}
			w.mustAccess(t, files4)
			w.awaitTraffic(t, files4)
			back := time.Since(begin)
			t.Logf("traffic %s after the new start", milliseconds(back))
			if back > roamBound {
				t.Errorf("traffic came back after %v", back)
			}
			if same := w.clients[0].PublicKey() == before; same != (key != [32]byte{}) {
				t.Errorf("the client has the key from before: %v", same)
			}
			w.mustAccess(t, files6)
			require(t, w, pingAnswered, download, pathIsDirect, gatewayLeaves)
		})
	}
}

// gatewayMoveBound is how long after the gateway's host has moved a client may be
// without traffic. Its route is the same, so nobody tells the gateway: its
// connection to the portal has to be missed first, and the client's pairs too.
const gatewayMoveBound = 90 * time.Second

// TestTourOutlivesAMoveOfTheGatewaysHost promises that clients stay connected, or
// come back by themselves, when the gateway's host gets another address.
func TestTourOutlivesAMoveOfTheGatewaysHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, original())
	settle(t, w)
	w.awaitDirect(t, pathPatience)
	begin := time.Now()
	site := w.net.Gateway
	if err := w.movePublic(site, gatewaysNext); err != nil {
		t.Fatal(err)
	}
	if _, err := moveHost(site); err != nil {
		t.Fatal(err)
	}
	w.awaitTrafficWithin(t, files4, gatewayMoveBound)
	t.Logf("traffic %.1f s after the move", time.Since(begin).Seconds())
	require(t, w, pingAnswered, gatewayLeaves)
}
