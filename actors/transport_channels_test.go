package actors

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	labrelay "firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// Transport §4.3: a datagram without a channel is dropped and triggers a bind.
func TestAChannelIsBoundOnDemand(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"), relayConfig("b"))
	pids := r.started("a", "b")
	relayed, peer := addr("127.0.0.9:50001"), addr("203.0.113.5:1000")
	r.report(pids[0], relayOffer("a", "127.0.0.8:50001"))
	r.report(pids[1], relayOffer("b", relayed.String()))
	r.plane.sinks.legs.Store(relayed, &relayLeg{relayed: relayed})
	began := time.Now()
	check := func() {
		t.Helper()
		if err := r.plane.sinks.SendSTUN([]byte("check"), relayed, peer); err != errNoChannel {
			t.Fatalf("sent without a channel: %v", err)
		}
		r.settle(r.pid)
	}
	eventually(t, func() bool { check(); return len(r.relays) > 0 }, "the channel is asked for")
	if took := time.Since(began); took < demandDelay {
		t.Errorf("asked for after %v, it may be on its way", took)
	}
	asked := time.Now()
	m := relayGot[messages.BindChannels](r, "b").msg.(messages.BindChannels)
	if m.RelayID != "b" || len(m.Peers) != 1 || m.Peers[0] != peer {
		t.Errorf("asked for %+v", m)
	}
	for range 20 {
		check()
	}
	if n := len(r.relays); n != 0 && time.Since(asked) < demandRepeat {
		t.Errorf("%d messages more for one peer", n)
	}
}

func TestDemandsNeverFloodTheTransport(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"))
	relayed := addr("127.0.0.9:50001")
	r.report(r.started("a")[0], relayOffer("a", relayed.String()))
	r.plane.sinks.legs.Store(relayed, &relayLeg{relayed: relayed})
	began := time.Now()
	r.look(r.pid, func(actorkit.Context) { // it is busy meanwhile
		for i := range 10 * demandLimit {
			_ = r.plane.sinks.SendSTUN([]byte("check"), relayed, wantedPeer(i))
		}
		if n := r.plane.sinks.demand.Load().gate.Pending(); n != demandLimit {
			t.Errorf("%d demands wait", n)
		}
	})
	eventually(t, func() bool {
		for i := range 2 * demandBurst {
			_ = r.plane.sinks.SendSTUN([]byte("check"), relayed, wantedPeer(i))
			r.settle(r.pid)
		}
		return len(r.relays) >= demandBurst
	}, "the first demands reach the relay")
	most := demandBurst + int(time.Since(began)/demandInterval)
	if n := len(r.relays); n > most {
		t.Errorf("%d demands reach the relay, want %d at most", n, most)
	}
}

func wantedPeer(i int) netip.AddrPort {
	return netip.AddrPortFrom(addr("203.0.113.5:1").Addr(), uint16(i))
}

func TestDemandsOfARelayAreLimited(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	t.Run("for one peer", func(t *testing.T) {
		var b demandBudget
		for _, tt := range []struct {
			after time.Duration
			want  bool
		}{
			{0, false}, {demandDelay - 1, false}, {demandDelay, true}, {demandDelay + 1, false},
			{demandDelay + demandRepeat - 1, false}, {demandDelay + demandRepeat, true}, {time.Hour, true},
		} {
			if got := b.admit(wantedPeer(1), now.Add(tt.after)); got != tt.want {
				t.Errorf("after %v: %v", tt.after, got)
			}
		}
	})
	t.Run("for many peers", func(t *testing.T) {
		var b demandBudget
		count := func() (admitted int) {
			for i := range 2 * demandPeers {
				if b.admit(wantedPeer(i), now) {
					admitted++
				}
			}
			if len(b.due) > demandPeers {
				t.Fatalf("%d peers are remembered", len(b.due))
			}
			return admitted
		}
		if got := count(); got != 0 {
			t.Errorf("%d before any channel can be there", got)
		}
		now = now.Add(demandDelay)
		if got := count(); got != demandBurst {
			t.Errorf("%d at once", got)
		}
		all := 0
		for range 900 {
			now = now.Add(demandInterval / 2)
			all += count()
		}
		if all != 450 {
			t.Errorf("%d in 450 seconds", all)
		}
	})
	t.Run("peers that are not wanted any more make room", func(t *testing.T) {
		var b demandBudget
		for i := range demandPeers {
			b.admit(wantedPeer(i), now)
		}
		late := wantedPeer(demandPeers)
		if b.admit(late, now); len(b.due) != demandPeers {
			t.Fatalf("%d peers are remembered", len(b.due))
		}
		now = now.Add(time.Minute)
		if b.admit(late, now); len(b.due) != 1 || !b.admit(late, now.Add(demandDelay)) {
			t.Errorf("%d peers are remembered", len(b.due))
		}
	})
}

// TestADemandEndsInAChannel has no candidate announced: the first check is lost,
// a later one arrives at the peer.
func TestADemandEndsInAChannel(t *testing.T) {
	server, secret := startRelay(t)
	s := newStage(t, newTestPlane(t, ""))
	s.introduce()
	pid := s.root.spawn(KindTransport, "transport", func() actorkit.Actor { return faulty{newTransport(s.plane.Plane)} })
	cfg := portal.DualStackRelay{ID: "relay-1", V4: server.Addrs()[0]}
	cfg.Username, cfg.Password = labrelay.Credentials(secret, portal.PublicKey(s.plane.PublicKey()).String(), time.Now().Add(time.Hour))
	s.root.do(func(ctx actorkit.Context) {
		ctx.Request(pid, messages.UpdateRelays{Connected: []portal.DualStackRelay{cfg}})
	})
	var relayed netip.AddrPort
	eventually(t, func() bool {
		for _, r := range s.plane.offers.load().Relays {
			if len(r.Relayed) > 0 {
				relayed = r.Relayed[0]
			}
		}
		return relayed.IsValid()
	}, "an allocation")
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	to := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := s.plane.sinks.SendSTUN([]byte("first"), relayed, to); err != errNoChannel {
		t.Fatalf("the first check: %v", err)
	}
	eventually(t, func() bool { return s.plane.sinks.SendSTUN([]byte("later"), relayed, to) == nil }, "a channel")
	buf := make([]byte, 64)
	if err := peer.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, from, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "later" || from != relayed {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
}

// T-54, and a portal that has nothing to offer but what does not work.
func TestThePortalIsNotAskedForRelaysInALoop(t *testing.T) {
	r := newTransportRig(t)
	began := time.Now()
	for range 50 {
		r.update(nil, relayConfig("a"))
		var pid actorkit.PID
		for m := range r.relays {
			if _, ok := m.msg.(*actorkit.Started); ok {
				pid = m.pid
				break
			}
		}
		r.report(pid, messages.RelayChanged{RelayID: "a"})
	}
	// One ask at once, and another not before a second has passed.
	next[messages.SendToPortal](t, r.portal)
	if took := time.Since(began); took < firstAskGap {
		r.portal.do(func(actorkit.Context) {})
		r.portal.quiet("the portal was asked just before")
	}
	if m := next[messages.SendToPortal](t, r.portal); m.Message != (portal.NoRelays{}) {
		t.Errorf("sent %+v", m)
	}
	if took := time.Since(began); took < firstAskGap {
		t.Errorf("asked twice within %v", took)
	}
}

// Authorizations that cannot be answered do not have the portal asked more often.
func TestAuthorizationsWithoutRelayRespectTheGaps(t *testing.T) {
	r := newTransportRig(t)
	began := time.Now()
	for range 200 {
		r.system.Send(r.pid, messages.WantRelays{})
	}
	r.settle(r.pid)
	if m := next[messages.SendToPortal](t, r.portal); m.Message != (portal.NoRelays{}) {
		t.Errorf("sent %+v", m)
	}
	if time.Since(began) < firstAskGap {
		r.portal.do(func(actorkit.Context) {})
		r.portal.quiet("the portal was asked just before")
	}
	next[messages.SendToPortal](t, r.portal) // the one that waited
	if took := time.Since(began); took < firstAskGap {
		t.Errorf("asked twice within %v", took)
	}
}

func TestTheGapsBetweenRequestsForRelaysGrow(t *testing.T) {
	r := newTransportRig(t)
	var a *transportActor
	r.pid = r.root.spawn(KindTransport, "another", func() actorkit.Actor { a = newTransport(r.plane.Plane); return faulty{a} })
	ask := func(after time.Duration) {
		r.look(r.pid, func(ctx actorkit.Context) {
			a.asked = a.asked.Add(-after)
			a.askIfNone(ctx)
		})
	}
	gap := func() (d time.Duration) {
		r.look(r.pid, func(actorkit.Context) { d = a.askGap })
		return d
	}
	for _, seconds := range []float64{1, 2, 4, 8, 16, 32, 60, 60} {
		ask(longestAskGap)
		next[messages.SendToPortal](t, r.portal)
		if got := gap().Seconds(); got != seconds {
			t.Fatalf("the next one is due after %v s, want %v s", got, seconds)
		}
	}
	ask(longestAskGap / 2)
	r.portal.do(func(actorkit.Context) {})
	r.portal.quiet("the last one was half a minute ago")
	// A relay that works makes gaps short again.
	r.update(nil, relayConfig("a"))
	pid := r.started("a")[0]
	r.report(pid, relayOffer("a", "127.0.0.9:50001"))
	if got := gap(); got != firstAskGap {
		t.Errorf("the gap is %v with an allocation", got)
	}
	r.report(pid, messages.RelayChanged{RelayID: "a"})
	next[messages.SendToPortal](t, r.portal)
}
