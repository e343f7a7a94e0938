package actors

import (
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// newFamily has real children, which can be told to panic.
func newFamily(t testing.TB) *peersRig {
	t.Helper()
	r := &peersRig{stage: newStage(t, newTestPlane(t, ""))}
	r.plane.players.peer = func(env peerEnv) actorkit.Actor { return faulty{newPeer(env)} }
	r.plane.offers.store(offers(1, relayOffer("relay-1", "127.0.0.9:50001")))
	r.start()
	return r
}

func TestPeersComeBackFromTheStoreAfterACrash(t *testing.T) {
	r := newFamily(t)
	r.portalSays(portal.Init{IPv4: ownAddresses.V4, IPv6: ownAddresses.V6}, authorization(1, 10), authorization(2, 20))
	var before [2]*tunnel.Client
	for i := range before {
		c := byte(i + 1)
		eventually(t, func() bool { return admits(t, r.plane, c, 10*c) }, "client %d is connected", c)
		before[i], _ = r.plane.Tunnel.Lookup(authorization(c, 0).Client.PublicKey)
	}
	// What was on its way is not lost either.
	r.look(r.pid, func(ctx actorkit.Context) {
		ctx.Send(ctx.Self(), boom{})
		ctx.Send(ctx.Self(), said(authorization(1, 11)))
	})
	eventually(t, func() bool { return admits(t, r.plane, 1, 11) }, "the authorization is in force")
	for i, b := range before {
		c := byte(i + 1)
		eventually(t, func() bool { return admits(t, r.plane, c, 10*c) }, "client %d is connected again", c)
		if now, _ := r.plane.Tunnel.Lookup(authorization(c, 0).Client.PublicKey); now != b {
			t.Errorf("client %d lost its session", c)
		}
	}
	acks := 0
	eventually(t, func() bool {
		for _, m := range r.sent() {
			if _, ok := m.Message.(portal.Acknowledge); ok {
				acks++
			}
		}
		return acks == 3
	}, "three acknowledgements")
}

// A crash of one peer is no business of another.
func TestAPeerThatKeepsFailingIsDroppedAlone(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10), authorization(2, 20))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) && admits(t, r.plane, 2, 20) }, "both are connected")
	limit := Table[KindPeer].Intensity.Max
	r.look(r.pid, func(ctx actorkit.Context) {
		for _, pid := range ctx.Children() {
			if strings.HasSuffix(actorkit.Path(pid), clientID(1)) {
				for range limit + 1 {
					ctx.Send(pid, boom{})
				}
			}
		}
	})
	eventually(t, func() bool { return strings.Contains(r.plane.log.String(), "client dropped") }, "one is given up")
	r.settle(r.pid)
	if got := r.plane.store.ids(); !slices.Equal(got, []string{clientID(2)}) || !admits(t, r.plane, 2, 20) {
		t.Errorf("store %q", got)
	}
	r.portalSays(authorization(1, 11))
	eventually(t, func() bool { return admits(t, r.plane, 1, 11) }, "the client comes back")
	if admits(t, r.plane, 1, 10) {
		t.Error("with its old grants")
	}
}

func TestGoodbyeAllIsAnswered(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) }, "connected")
	r.root.do(func(ctx actorkit.Context) { ctx.Request(r.pid, messages.GoodbyeAll{}) })
	if m := next[messages.GoodbyeDone](t, r.root); m.Err != nil {
		t.Error(m.Err)
	}
}

func TestPeersStopWithTheirChildren(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10), authorization(2, 20))
	r.root.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	next[*actorkit.Terminated](t, r.root)
	for _, a := range r.system.Stats().Actors {
		if strings.HasPrefix(a.Path, "gateway/peers") {
			t.Errorf("%s is left", a.Path)
		}
	}
}
