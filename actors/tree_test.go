package actors

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	labrelay "firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// treeRig is the whole tree, with a portal and a relay of the lab on loopback
// and a TUN device in memory.
type treeRig struct {
	t     testing.TB
	lab   *labportal.Server
	relay labportal.Relay
	turn  *labrelay.Server // that relay
	rows  actorkit.Table
	plane *testPlane
	tree  *Tree
	tun   *memoryTUN
	peer  *peer // the last one; touched in its turn only
}

func newTreeRig(t testing.TB, cfg labportal.Config) *treeRig {
	t.Helper()
	relay, secret := startRelay(t)
	r := &treeRig{
		t: t, lab: startPortal(t, cfg), rows: quick(Table), turn: relay,
		relay: labportal.Relay{V4: relay.Addrs()[0], StampSecret: secret},
	}
	if err := r.lab.SetRelays([]labportal.Relay{r.relay}); err != nil {
		t.Fatal(err)
	}
	r.plane = newTestPlane(t, r.lab.URL())
	actual := r.plane.players
	r.plane.players = players{
		portal:    func(p *Plane) actorkit.Actor { return faulty{actual.portal(p)} },
		tun:       func(p *Plane) actorkit.Actor { return faulty{actual.tun(p)} },
		transport: func(p *Plane) actorkit.Actor { return faulty{actual.transport(p)} },
		peers:     func(p *Plane) actorkit.Actor { return faulty{actual.peers(p)} },
		relay:     func(p *Plane, c portal.DualStackRelay) actorkit.Actor { return faulty{actual.relay(p, c)} },
		peer: func(env peerEnv) actorkit.Actor {
			r.peer = newPeer(env)
			return faulty{r.peer}
		},
		nat:      func(p *Plane, n *tunnel.NAT) actorkit.Actor { return faulty{actual.nat(p, n)} },
		dns:      func(p *Plane) actorkit.Actor { return faulty{actual.dns(p)} },
		resolver: func(p *Plane) actorkit.Actor { return faulty{actual.resolver(p)} },
		dnsServer: func(p *Plane, n dns.Network, a netip.AddrPort) actorkit.Actor {
			return faulty{actual.dnsServer(p, n, a)}
		},
	}
	return r
}

func (r *treeRig) start(tracer trace.Tracer) {
	r.t.Helper()
	tree, err := start(r.plane.Plane, actorkit.Config{Logger: r.plane.log.logger(r.t), Tracer: tracer, Table: r.rows})
	if err != nil {
		r.t.Fatal(err)
	}
	r.tree = tree
	r.t.Cleanup(func() { stopTree(r.t, tree) })
}

func stopTree(t testing.TB, tree *Tree) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := tree.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// newRunningTree is joined, and has its allocation and its device.
func newRunningTree(t testing.TB, cfg labportal.Config) *treeRig {
	t.Helper()
	r := newTreeRig(t, cfg)
	r.start(nil)
	r.ready()
	r.tun = receive(t, r.plane.host.opened, "device")
	return r
}

func (r *treeRig) ready() {
	r.t.Helper()
	eventually(r.t, func() bool { return len(r.plane.Missing()) == 0 }, "ready, but for %q", r.plane.Missing())
}

// resource adds n.0.0.0/8 and grants it to everybody.
func (r *treeRig) resource(n byte) string {
	r.t.Helper()
	res, err := r.lab.AddResource(labportal.Resource{
		ID: uuid.NewString(), Type: labportal.CIDR, Name: "network", Address: network(n).String(), SiteID: labportal.DefaultSiteID,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.lab.Grant("", res.ID, time.Hour); err != nil {
		r.t.Fatal(err)
	}
	return res.ID
}

// pid finds the only actor of a kind.
func (r *treeRig) pid(kind string) actorkit.PID {
	r.t.Helper()
	siblings := r.plane.siblings.load()
	parent := siblings.Peers
	switch kind {
	case KindPeers:
		return siblings.Peers
	case KindPortal:
		return siblings.Portal
	case KindTUN:
		return siblings.TUN
	case KindTransport:
		return siblings.Transport
	case KindDNS:
		return siblings.DNS
	case KindRelay:
		parent = siblings.Transport
	case KindDNSServer, KindResolver:
		parent = siblings.DNS
	}
	found := make(chan actorkit.PID, 1)
	r.tree.system.Send(parent, act(func(ctx actorkit.Context) {
		for _, child := range ctx.Children() {
			if strings.HasSuffix(actorkit.Path(child), "/"+KindResolver) == (kind == KindResolver) {
				found <- child
				return
			}
		}
	}))
	return receive(r.t, found, "child")
}

func (r *treeRig) wait(ctx context.Context) (code int, cause error) {
	r.t.Helper()
	ended := make(chan struct{})
	go func() {
		code, cause = r.tree.Wait(ctx)
		close(ended)
	}()
	await(r.t, ended, "the tree")
	return code, cause
}

func TestAClientReachesAResourceThroughTheTree(t *testing.T) {
	for _, v1 := range []bool{false, true} {
		r := newRunningTree(t, labportal.Config{V1Only: v1})
		id, other := r.resource(10), r.resource(11)
		wg := newWireGuard(t)
		c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
		g := c.access(id)
		// The acknowledgement came first, then our candidates (rule 28).
		acked := waitEvent(t, r.lab, 0, labportal.AuthorizationAcked, nil)
		announced := waitEvent(t, r.lab, 0, labportal.CandidatesAdded, func(e labportal.Event) bool { return e.Role == labportal.Gateway })
		if acked.Seq > announced.Seq || len(announced.Candidates) != 3 {
			t.Errorf("acknowledged %d, announced %d: %q", acked.Seq, announced.Seq, announced.Candidates)
		}
		c.signal(g.GatewayID, remoteHost, remoteBad, "candidate:x", 7)
		wg.connect(r.plane, g)
		wg.passes(r.tun, c.ipv4, 10)
		eventually(t, func() bool { return r.plane.Drops.Load(drop.CandidateUnusable) == 3 }, "bad candidates are counted")

		c.access(other)
		wg.passes(r.tun, c.ipv4, 11)
		// The last revocation comes with a goodbye.
		for i, resource := range []string{id, other} {
			if wg.goodbyes.Load() != 0 {
				t.Errorf("goodbye after %d revocations", i)
			}
			if err := r.lab.Revoke("", resource); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, func() bool { return wg.goodbyes.Load() == 1 }, "a goodbye")
		eventually(t, func() bool { return len(r.plane.store.ids()) == 0 && len(r.tree.peers()) == 0 }, "nothing is left")
	}
}

// peers lists the paths of the clients' actors.
func (t *Tree) peers() (paths []string) {
	for _, a := range t.system.Stats().Actors {
		if a.Kind == KindPeer {
			paths = append(paths, a.Path)
		}
	}
	return paths
}

func TestAGoodbyeOfTheClientEndsItsPeer(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	wg.sayGoodbye()
	eventually(t, func() bool { return len(r.plane.store.ids()) == 0 && len(r.tree.peers()) == 0 }, "nothing is left")
	if wg.goodbyes.Load() != 0 {
		t.Error("the goodbye was answered")
	}
	// The client is welcome again, on a new session.
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
}

// T-15: a client that is heard keeps its session although its agent gave up.
func TestAnAgentThatGaveUpDoesNotEndASession(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(r.resource(10)))
	wg.passes(r.tun, c.ipv4, 10)
	pid, done := r.pid(KindPeer), make(chan struct{})
	r.tree.system.Send(pid, act(func(ctx actorkit.Context) {
		defer close(done)
		conn := r.peer.conn
		conn.note(ice.StateFailed, r.peer.callbacks(ctx))
		r.peer.Receive(received{ctx, messages.ClientChanged{}})
		if r.peer.conn != conn || !conn.failed.Load() {
			t.Error("the connection was replaced")
		}
		conn.note(ice.StateConnected, r.peer.callbacks(ctx))
		if conn.failed.Load() {
			t.Error("an agent that hears its client again counts as failed")
		}
	}))
	await(t, done, "the peer's turn")
	wg.passes(r.tun, c.ipv4, 10)
}

// An authorization may come in the same batch of frames as the init whose
// relays it needs.
func TestAnAuthorizationRightAfterInitFindsItsRelays(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	id := r.resource(10)
	c := dialClient(t, r.lab, "client", nil)
	r.start(nil)
	waitEvent(t, r.lab, 0, labportal.PeerJoined, func(e labportal.Event) bool { return e.Role == labportal.Gateway })
	c.access(id)
	for _, e := range r.lab.Events(0) {
		if e.Kind == labportal.NoRelays || e.Kind == labportal.AuthorizationFailed {
			t.Errorf("event %+v", e)
		}
	}
}

func TestABadPortalDoesNoHarmToTheTree(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	for _, raw := range []string{"rubbish", `{"topic":"gateway","event":"init","payload":{},"ref":null}`, `{"topic":"gateway","event":"?","payload":{},"ref":null}`} {
		if err := r.lab.PushRaw("", []byte(raw)); err != nil {
			t.Fatal(err)
		}
	}
	dialClient(t, r.lab, "client", nil).access(id)
	for _, reason := range []drop.Reason{drop.FrameMalformed, drop.PayloadMalformed, drop.EventUnknown} {
		if got := r.plane.Drops.Load(reason); got != 1 {
			t.Errorf("%s counted %d times, want once", reason, got)
		}
	}
}

// Rule 41.
func TestAShutdownSaysGoodbyeToEverybody(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code, cause := r.wait(ctx); code != 0 || cause != nil {
		t.Errorf("exit code %d, %v", code, cause)
	}
	eventually(t, func() bool { return wg.goodbyes.Load() == 1 }, "a goodbye")
	left := waitEvent(t, r.lab, 0, labportal.PeerLeft, func(e labportal.Event) bool { return e.Role == labportal.Gateway })
	if left.Status != 1000 {
		t.Errorf("close code %d", left.Status)
	}
	if log := r.plane.log.String(); strings.Contains(log, " WARN ") || strings.Contains(log, " ERROR ") {
		t.Error("a clean run has a warning")
	}
}

func TestARefusedTokenExitsWithOne(t *testing.T) {
	r := newTreeRig(t, labportal.Config{GatewayToken: "another"})
	r.start(nil)
	if code, cause := r.wait(t.Context()); code != 1 || cause == nil {
		t.Errorf("exit code %d, %v", code, cause)
	}
}
