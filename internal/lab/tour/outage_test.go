package tour

import (
	"net/netip"
	"testing"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
)

// TestTourOutlivesAPortalOutage promises that the death of the portal is no
// business of the clients: what runs goes on undisturbed, the gateway returns by
// itself, and a revocation made meanwhile takes effect as soon as it knows.
func TestTourOutlivesAPortalOutage(t *testing.T) {
	t.Parallel()
	outage := time.Minute
	if testing.Short() || raceDetector {
		outage = 10 * time.Second
	}
	w := newWorld(t, alone())
	settle(t, w)
	w.mustAccess(t, revocable)
	flow, err := w.openFlow(t.Context(), revocable)
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	feed := startFeed(t, w)

	after, at := w.lastEvent(), w.portal.Addr()
	w.suspend(t)
	begin := time.Now()
	if err := w.portal.Revoke("", w.resources[revocable].ID); err != nil {
		t.Fatal(err)
	}
	if err := pause(t.Context(), outage); err != nil {
		t.Fatal(err)
	}
	// The gateway cannot know of the revocation, and keeps its word.
	if err := echoOnce(flow, time.Now().Add(pingPatience)); err != nil {
		t.Errorf("flow without portal: %v", err)
	}
	if err := w.portal.Resume(w.mustListen(t, netip.MustParseAddrPort(at.String()))); err != nil {
		t.Fatal(err)
	}
	resumed := time.Now()
	// The last delay may be as long as the outage, a minute at most.
	init := w.awaitReturn(t, after, min(2*outage, time.Minute)+returnLimit)
	refused, err := w.untilRefused(within(t, stepLimit), 0, places[revocable].address)
	if err != nil {
		t.Fatal(err)
	}
	delay := refused.Sub(init.At)
	t.Logf("portal away for %.1f s, gateway back %.1f s later, revoked access cut %s after init",
		resumed.Sub(begin).Seconds(), init.At.Sub(resumed).Seconds(), milliseconds(delay))
	if delay > time.Second {
		t.Errorf("revoked access went on for %v", delay)
	}
	if err := echoOnce(flow, time.Now().Add(300*time.Millisecond)); err == nil {
		t.Error("the flow that ran goes on")
	}
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}

// TestTourFollowsThePortalToAnotherAddress promises that the portal's name is
// looked up for every attempt: a gateway that has lost its portal finds it where
// it has moved to.
func TestTourFollowsThePortalToAnotherAddress(t *testing.T) {
	t.Parallel()
	o := alone()
	hosts := newHostsFile(t, &o)
	other := netip.MustParseAddr("203.0.113.3")
	o.scene.prepare = func(w *World) error {
		hosts.set(t, w.net.Portal.IPv4)
		return w.net.AddAddress(w.net.Portal, other)
	}
	w := newWorld(t, o)
	settle(t, w)
	feed := startFeed(t, w)
	after, failed := w.lastEvent(), w.attemptsFailed()
	w.suspend(t)
	w.awaitFailures(t, failed, 2) // the loss, and an attempt at the old address
	if err := w.portal.Resume(w.mustListen(t, netip.AddrPortFrom(other, portalPort))); err != nil {
		t.Fatal(err)
	}
	hosts.set(t, other)
	moved := time.Now()
	e := w.awaitReturn(t, after, returnLimit)
	t.Logf("found the portal at %v, %.1f s after its name had changed", other, e.At.Sub(moved).Seconds())
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}

// deadAddressBound is the time from the start of the daemon within which it has
// to be with the live portal. One address after the other would take the five
// seconds of the time limit for TCP.
const deadAddressBound = 4 * time.Second

// TestTourFindsTheLivePortalAmongDeadOnes promises that addresses of the
// portal's name at which nobody answers cost no time.
func TestTourFindsTheLivePortalAmongDeadOnes(t *testing.T) {
	t.Parallel()
	refuses, swallows := netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")
	unrouted, swallows6 := netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::4")
	o := alone()
	o.NAT, o.IPv4Only = labnet.PortRestricted, false
	hosts := newHostsFile(t, &o)
	o.scene.prepare = func(w *World) error {
		hosts.set(t, w.net.Portal.IPv4)
		if err := w.net.AddAddress(w.net.Portal, refuses); err != nil {
			return err
		}
		if err := w.net.Swallow(swallows); err != nil {
			return err
		}
		return w.net.Swallow(swallows6)
	}
	w := newWorld(t, o)
	require(t, w, gatewayJoins)
	live := w.net.Portal.IPv4
	for _, c := range []struct {
		name string
		dead []netip.Addr
	}{
		{"none is dead", nil},
		{"one refuses", []netip.Addr{refuses}},
		{"one swallows", []netip.Addr{swallows}},
		{"one has no route", []netip.Addr{unrouted}},
		{"IPv6 swallows", []netip.Addr{swallows6}},
		{"all of them", []netip.Addr{swallows6, unrouted, swallows, refuses}},
	} {
		for order, addresses := range map[string][]netip.Addr{"live one last": append(c.dead[:len(c.dead):len(c.dead)], live), "live one first": append([]netip.Addr{live}, c.dead...)} {
			if len(c.dead) == 0 && order == "live one last" {
				continue
			}
			t.Run(c.name+", "+order, func(t *testing.T) {
				if _, err := w.gateway.Stop(stopGrace); err != nil {
					t.Fatal(err)
				}
				hosts.set(t, addresses...)
				after, begin := w.lastEvent(), time.Now()
				if err := w.startGateway(); err != nil {
					t.Fatal(err)
				}
				e := w.awaitEvent(t, "gateway does not connect", after, returnLimit, func(e portal.Event) bool {
					return e.Kind == portal.PeerConnected && e.Role == portal.Gateway
				})
				took := e.At.Sub(begin)
				t.Logf("connected %s after the start of the process", milliseconds(took))
				if took > deadAddressBound {
					t.Errorf("took %v", took)
				}
				w.awaitReturn(t, after, returnLimit)
			})
		}
	}
}
