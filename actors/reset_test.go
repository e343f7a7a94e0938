package actors

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

func TestAResetGivesANewKeyToThePortalAndSendsClientsAway(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	old := c.access(id)
	wg.connect(r.plane, old)
	wg.passes(r.tun, c.ipv4, 10)
	sockets, seen := r.plane.Bind.Sockets(), lastEvent(r.lab)

	if err := r.tree.Reset(t.Context(), "the test"); err != nil {
		t.Fatal(err)
	}
	gateway := func(e labportal.Event) bool { return e.Role == labportal.Gateway }
	if left := waitEvent(t, r.lab, seen, labportal.PeerLeft, gateway); left.Status != 1000 {
		t.Errorf("close code %d, want 1000", left.Status)
	}
	joined := waitEvent(t, r.lab, seen, labportal.PeerJoined, gateway)
	key := portal.PublicKey(r.plane.PublicKey())
	if joined.PublicKey != key.String() || joined.PublicKey == "" {
		t.Error("the portal was not told the new key")
	}
	eventually(t, func() bool { return wg.goodbyes.Load() == 1 }, "a goodbye")
	if len(r.plane.store.ids()) != 0 || len(r.tree.peers()) != 0 {
		t.Errorf("left: %q, %q", r.plane.store.ids(), r.tree.peers())
	}
	r.plane.Tunnel.Each(func(*tunnel.Client) { t.Error("a client is left in the packet path") })
	if r.plane.Bind.Sockets() == sockets {
		t.Error("the sockets are the old ones")
	}

	r.ready()
	fresh := c.access(id)
	if string(fresh.GatewayPublicKey) != string(key[:]) || string(fresh.GatewayPublicKey) == string(old.GatewayPublicKey) {
		t.Error("the client was told another key")
	}
	wg.connect(r.plane, fresh)
	wg.passes(r.tun, c.ipv4, 10)
}

func lastEvent(lab *labportal.Server) uint64 {
	events := lab.Events(0)
	return events[len(events)-1].Seq
}

func TestResetsAtOnceAreOne(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10), authorization(2, 20))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) && admits(t, r.plane, 2, 20) }, "connected")
	free := make(chan struct{})
	r.system.Send(r.pid, act(func(actorkit.Context) { <-free }))
	for range 5 {
		r.system.Send(r.pid, messages.Reset{Cause: "the test"})
	}
	r.root.do(func(ctx actorkit.Context) {
		ctx.Request(r.pid, messages.Reset{Cause: "one"})
		ctx.Request(r.pid, messages.Reset{Cause: "another"})
	})
	close(free)
	next[messages.ResetDone](t, r.root)
	next[messages.ResetDone](t, r.root)
	seek[messages.Rebind](t, r.transport)
	seek[messages.Reconnect](t, r.portal)
	r.settle(r.pid)
	if got := r.plane.keys.load().epoch; got != 2 {
		t.Errorf("key pair %d, want 2", got)
	}
}

// What was said about the old key pair is refused as a whole, however late it
// comes.
func TestAuthorizationsForTheOldKeyAreRefused(t *testing.T) {
	r := newFamily(t)
	r.portalSays(portal.Init{IPv4: ownAddresses.V4, IPv6: ownAddresses.V6}, authorization(1, 10))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) }, "connected")
	r.sent()
	r.look(r.pid, func(ctx actorkit.Context) {
		ctx.Send(r.pid, messages.Reset{Cause: "the test"})
		ctx.Send(r.pid, said(authorization(1, 11))) // during
	})
	seek[messages.Reconnect](t, r.portal)
	r.portalSays(authorization(1, 12)) // afterwards
	if got := r.dropped(drop.KeyReplaced); got != 2 {
		t.Errorf("%d refused, want 2", got)
	}
	if len(r.plane.store.ids()) != 0 || len(r.sent()) != 0 {
		t.Errorf("applied: %q", r.plane.store.ids())
	}
	fresh := said(authorization(1, 13))
	fresh.Epoch = 2
	r.system.Send(r.pid, fresh)
	eventually(t, func() bool { return admits(t, r.plane, 1, 13) }, "the new key admits")
	if admits(t, r.plane, 1, 10) {
		t.Error("an old grant is back")
	}
}

func TestAResetSurvivesACrash(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) }, "connected")
	r.look(r.pid, func(ctx actorkit.Context) {
		ctx.Send(r.pid, messages.Reset{Cause: "the test"})
		ctx.Send(r.pid, boom{})
	})
	seek[messages.Reconnect](t, r.portal)
	if got := r.plane.keys.load().epoch; got < 2 || r.plane.resetting.Load() {
		t.Errorf("key pair %d", got)
	}
	r.settle(r.pid)
	if len(r.plane.store.ids()) != 0 {
		t.Errorf("left: %q", r.plane.store.ids())
	}
}

// A peer that hangs does not hold up a reset.
func TestAResetDoesNotWaitForAPeerThatHangs(t *testing.T) {
	r := newFamily(t)
	r.portalSays(authorization(1, 10))
	eventually(t, func() bool { return admits(t, r.plane, 1, 10) }, "connected")
	held, free := make(chan struct{}), make(chan struct{})
	defer close(free)
	r.look(r.pid, func(ctx actorkit.Context) {
		ctx.Send(ctx.Children()[0], act(func(actorkit.Context) { close(held); <-free }))
	})
	await(t, held, "the peer's turn")
	r.root.do(func(ctx actorkit.Context) { ctx.Request(r.pid, messages.Reset{Cause: "the test"}) })
	next[messages.ResetDone](t, r.root)
	r.plane.Tunnel.Each(func(*tunnel.Client) { t.Error("its client is left in the packet path") })
}

func TestReconnectGivesUpADialThatHangs(t *testing.T) {
	r := newPortalRig(t, labportal.Config{})
	// The first portal accepts and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r.plane.Login = login(t, "ws://"+silent.Addr().String())
	r.dial()
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.look(r.pid, func(actorkit.Context) { r.plane.Login = login(t, r.lab.URL()) })
	began := time.Now()
	r.system.Send(r.pid, messages.Reconnect{})
	r.init()
	if took := time.Since(began); took > patience/2 {
		t.Errorf("took %v", took)
	}
	r.settle(r.pid)
	if got := len(r.lab.State().Gateways[0].Sessions); got != 1 {
		t.Errorf("%d sessions, want 1", got)
	}
}

func TestReconnectForgetsWhatWasMeantForTheOldConnection(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	if err := r.plane.rotateKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.lab.SetFaults(labportal.Faults{JoinDelay: 200 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	held := portal.BroadcastICECandidates{ClientIDs: []string{clientID(1)}, Candidates: []string{remoteHost}}
	r.system.Send(r.pid, messages.Reconnect{})
	r.event(labportal.PeerLeft)
	r.send(held, 0)
	r.system.Send(r.pid, messages.Reconnect{})
	r.send(portal.Acknowledge{Generation: portal.V2, Ref: "old"}, 1)
	r.init()
	r.push("reject_access", reject(10))
	if m := next[messages.FromPortal](t, r.peers); m.Epoch != 2 || m.Connection < 2 {
		t.Errorf("epoch %d on connection %d", m.Epoch, m.Connection)
	}
	for _, e := range r.lab.Events(0) {
		if e.Kind == labportal.CandidatesAdded || e.Kind == labportal.AuthorizationAcked {
			t.Errorf("event %+v", e)
		}
	}
}

func TestRebindReplacesTheSocketsAndAllocatesAgain(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("relay-1"))
	r.started("relay-1")
	old := r.plane.Bind.Sockets()
	port := old.LocalPort(transport.IPv4)
	r.plane.sockets.Port = port

	// The first attempt finds no socket.
	var once sync.Once
	tried := make(chan struct{})
	actual := r.plane.Plane.host.sockets
	r.look(r.pid, func(actorkit.Context) {
		r.plane.Plane.host.sockets = func(cfg transport.Config) (*transport.Sockets, error) {
			var err error
			once.Do(func() { err = errors.New("no network"); close(tried) })
			if err != nil {
				return nil, err
			}
			return actual(cfg)
		}
	})
	r.system.Send(r.pid, messages.Rebind{})
	await(t, tried, "the first attempt")
	// A crash meanwhile changes nothing.
	r.system.Send(r.pid, boom{})
	eventually(t, func() bool { return r.plane.Bind.Sockets() != old }, "other sockets")
	if got := r.plane.Bind.Sockets().LocalPort(transport.IPv4); got != port {
		t.Errorf("port %d, want %d again", got, port)
	}
	if err := old.SendTo([]byte("x"), old.Path(netip.Addr{}, addr("127.0.0.1:9"))); err == nil {
		t.Error("the old sockets are open")
	}
	r.settle(r.pid)
	if o := r.plane.offers.load().Relays; len(o) != 1 || !o[0].Usable {
		t.Errorf("relays %+v", o)
	}
}
