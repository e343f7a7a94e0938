package actors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// exhaust has an actor fail until it is given up.
func (s *stage) exhaust(pid actorkit.PID, kind string) {
	for range Table[kind].Intensity.Max + 1 {
		s.system.Send(pid, boom{})
	}
}

// company is a family of client 1 and 50 others, with what must not change about them.
type company struct {
	*peersRig
	others map[byte]*tunnel.Client
}

func newCompany(t *testing.T) *company {
	t.Helper()
	r := &company{newFamily(t), map[byte]*tunnel.Client{}}
	r.plane.players.nat = func(p *Plane, n *tunnel.NAT) actorkit.Actor { return faulty{newNAT(p, n)} }
	for c := byte(1); c <= 51; c++ {
		r.portalSays(authorization(c, 10))
	}
	r.portalSays(site(siteID, "*.example.com"))
	for c := byte(1); c <= 51; c++ {
		eventually(t, func() bool { return admits(t, r.plane, c, 10) }, "client %d is connected", c)
		if c > 1 {
			r.others[c], _ = r.plane.Tunnel.Lookup(authorization(c, 0).Client.PublicKey)
		}
	}
	r.calm()
	r.sent()
	return r
}

func (r *company) child(c byte) actorkit.PID {
	r.t.Helper()
	for _, pid := range r.childrenOf(r.pid) {
		if strings.HasSuffix(actorkit.Path(pid), "/"+clientID(c)) {
			return pid
		}
	}
	r.t.Fatalf("client %d has no actor", c)
	return nil
}

// undisturbed checks that the others noticed nothing.
func (r *company) undisturbed() {
	r.t.Helper()
	for c, client := range r.others {
		now, _ := r.plane.Tunnel.Lookup(authorization(c, 0).Client.PublicKey)
		if now != client || !admits(r.t, r.plane, c, 10) {
			r.t.Errorf("client %d lost its connection", c)
		}
	}
	for _, a := range r.system.Stats().Actors {
		if a.Kind == KindPeer && !strings.HasSuffix(a.Path, "/"+clientID(1)) && (a.Restarts > 0 || a.Failures > 0) {
			r.t.Errorf("%s failed", a.Path)
		}
	}
	for _, m := range r.sent() {
		r.t.Errorf("the portal hears %s", m.Message.Event())
	}
}

// forgotten waits until nothing is left of client 1.
func (r *company) forgotten() {
	r.t.Helper()
	eventually(r.t, func() bool {
		_, known := r.plane.Tunnel.Lookup(authorization(1, 0).Client.PublicKey)
		return !known && !slices.Contains(r.plane.store.ids(), clientID(1)) && r.plane.store.get(clientID(1)).NAT == nil
	}, "client 1 is forgotten")
	eventually(r.t, func() bool {
		return !slices.ContainsFunc(r.system.Stats().Actors, func(a actorkit.ActorStats) bool {
			return strings.Contains(a.Path+"/", "/"+clientID(1)+"/")
		})
	}, "its actors have ended")
}

func TestAPeerThatIsGivenUpTroublesNobody(t *testing.T) {
	r := newCompany(t)
	r.exhaust(r.child(1), KindPeer)
	r.forgotten()
	r.calm()
	r.undisturbed()
	r.portalSays(authorization(1, 11))
	eventually(t, func() bool { return admits(t, r.plane, 1, 11) }, "the client is back")
	if admits(t, r.plane, 1, 10) {
		t.Error("with its old grants")
	}
	// As many failures as its row admits, right after it was made anew.
	pid := r.child(1)
	for range Table[KindPeer].Intensity.Max {
		r.system.Send(pid, boom{})
	}
	r.calm()
	if !admits(t, r.plane, 1, 11) || strings.Count(r.plane.log.String(), "client dropped") != 1 {
		t.Error("given up with the history of its predecessor")
	}
}

// What the portal says while the client is told goodbye is not lost.
func TestAnAuthorizationDuringTheGiveUpIsAnswered(t *testing.T) {
	r := newCompany(t)
	pid := r.child(1)
	r.look(r.pid, func(ctx actorkit.Context) {
		for range Table[KindPeer].Intensity.Max + 1 {
			ctx.Send(pid, boom{})
		}
	})
	eventually(t, func() bool { return strings.Contains(r.plane.log.String(), "client dropped") }, "it is given up")
	a := authorization(1, 12)
	r.portalSays(a)
	eventually(t, func() bool { return admits(t, r.plane, 1, 12) }, "the authorization is in force")
	eventually(t, func() bool {
		return slices.ContainsFunc(r.sent(), func(m messages.SendToPortal) bool {
			ack, ok := m.Message.(portal.Acknowledge)
			return ok && ack == a.Acknowledge()
		})
	}, "it is acknowledged")
}

func TestATranslationThatIsGivenUpTroublesOneClient(t *testing.T) {
	r := newCompany(t)
	r.visit(r.child(1), func(ctx actorkit.Context) {
		ctx.Send(ctx.Self(), messages.Resolved{Setup: setUp("www.example.com"), Addresses: []netip.Addr{real4}})
	})
	var translator actorkit.PID
	eventually(t, func() bool {
		list := r.childrenOf(r.child(1))
		if len(list) == 1 {
			translator = list[0]
		}
		return translator != nil
	}, "the client has a translation")
	r.sent()
	r.exhaust(translator, KindNAT)
	r.forgotten()
	r.calm()
	r.undisturbed()
	r.portalSays(site(siteID, "*.example.com"))
	eventually(t, func() bool { return slices.Contains(r.plane.store.ids(), clientID(1)) }, "the client is back")
	if r.plane.store.get(clientID(1)).NAT != nil {
		t.Error("with its old domains")
	}
}

// A translation whose table had faults is as good as none, once a domain is lost.
func TestAClientThatLostDomainsIsSentAway(t *testing.T) {
	r := newPeerRig(t)
	r.hasDomain()
	var nat actorkit.PID
	r.look(r.pid, func(ctx actorkit.Context) { nat = ctx.Children()[0] })
	r.tell(messages.DomainsLost{NAT: r.pid}) // of a translation that was replaced
	if r.client() == nil {
		t.Fatal("sent away for nothing")
	}
	r.tell(messages.DomainsLost{NAT: nat})
	eventually(t, func() bool { return r.client() == nil && len(r.plane.store.ids()) == 0 }, "the client is sent away")
}

// With the real tree and a real session: the client is told.
func TestAPeerThatIsGivenUpSaysGoodbye(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	pid := r.pid(KindPeer)
	for range Table[KindPeer].Intensity.Max + 1 {
		r.tree.system.Send(pid, boom{})
	}
	eventually(t, func() bool { return wg.goodbyes.Load() == 1 }, "a goodbye")
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
}

func TestClientsGoOnWithTheOtherRelayWhenOneIsGivenUp(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	second, secret := startRelay(t)
	relays := []labportal.Relay{r.relay, {V4: second.Addrs()[0], StampSecret: secret}}
	if err := r.lab.SetRelays(relays); err != nil {
		t.Fatal(err)
	}
	r.start(nil)
	r.ready()
	r.tun = receive(t, r.plane.host.opened, "device")
	eventually(t, func() bool {
		n := 0
		for _, o := range r.plane.offers.load().Relays {
			n += len(o.Relayed)
		}
		return n == 2
	}, "both relays are allocated")
	g := dialClient(t, r.lab, "client", nil)
	g.access(r.resource(10))
	var used string
	eventually(t, func() bool {
		for _, id := range r.plane.store.ids() {
			used = r.plane.store.get(id).RelayID
		}
		return used != ""
	}, "a relay is in use")
	for _, pid := range r.children(r.plane.siblings.load().Transport) {
		if strings.Contains(actorkit.Path(pid), used) {
			for range Table[KindRelay].Intensity.Max + 1 {
				r.tree.system.Send(pid, boom{})
			}
		}
	}
	eventually(t, func() bool {
		s := r.plane.store.get(r.plane.store.ids()[0])
		return s.RelayID != "" && s.RelayID != used
	}, "the client is given the other relay")
	if got := r.plane.offers.load().Relays; len(got) != 1 || len(r.plane.Missing()) != 0 {
		t.Errorf("%d relays are offered, missing %q", len(got), r.plane.Missing())
	}
	waitEvent(t, r.lab, 0, labportal.CandidatesInvalidated, func(e labportal.Event) bool { return e.Role == labportal.Gateway })
}

// children lists the children of an actor of the tree.
func (r *treeRig) children(of actorkit.PID) []actorkit.PID {
	r.t.Helper()
	found := make(chan []actorkit.PID, 1)
	r.tree.system.Send(of, act(func(ctx actorkit.Context) { found <- ctx.Children() }))
	return receive(r.t, found, "children")
}

func TestDNSServersServeWithoutTheOneThatCannot(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	listen := r.plane.Plane.host.listenDNS
	r.plane.Plane.host.listenDNS = func(cfg dns.ServerConfig) (*dns.Server, error) {
		if cfg.Network == dns.TCP && cfg.Addr.Addr().Is4() {
			return nil, errors.New("address in use")
		}
		return listen(cfg)
	}
	r.start(nil)
	r.ready()
	working := func() (n int) {
		for _, a := range r.tree.system.Stats().Actors {
			if a.Kind == KindDNSServer && a.Failures == 0 {
				n++
			}
		}
		return n
	}
	eventually(t, func() bool { return working() == 3 && strings.Contains(r.plane.log.String(), "address in use") }, "three serve, one tries")
}

// One that is given up is tried again with the next configuration.
func TestADNSServerThatIsGivenUpIsTriedAgainLater(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	r.table(KindDNSServer, func(s *actorkit.Spec) { s.Intensity = actorkit.Intensity{Max: 1, Within: time.Minute} })
	r.start(nil)
	r.ready()
	servers := func() (paths []string) {
		for _, a := range r.tree.system.Stats().Actors {
			if a.Kind == KindDNSServer {
				paths = append(paths, a.Path)
			}
		}
		return paths
	}
	eventually(t, func() bool { return len(servers()) == 4 }, "four servers")
	pid := r.pid(KindDNSServer)
	for range 2 {
		r.tree.system.Send(pid, boom{})
	}
	eventually(t, func() bool { return !slices.Contains(servers(), actorkit.Path(pid)) && len(servers()) == 3 }, "one is given up, the others serve")
	r.tree.system.Send(r.plane.siblings.load().TUN, messages.ConfigureTUN{})
	eventually(t, func() bool { return len(servers()) == 4 }, "four servers again")
}

func TestAResolverThatIsGivenUpTakesDNSAlongAndComesBack(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	r.table(KindResolver, func(s *actorkit.Spec) { s.Intensity = actorkit.Intensity{Max: 1, Within: time.Minute} })
	r.start(nil)
	r.ready()
	for range 2 {
		r.tree.system.Send(r.pid(KindResolver), boom{})
	}
	eventually(t, func() bool {
		restarts, servers, resolvers := uint64(0), 0, 0
		for _, a := range r.tree.system.Stats().Actors {
			switch a.Kind {
			case KindDNS:
				restarts = a.Restarts
			case KindDNSServer:
				servers++
			case KindResolver:
				resolvers++
			}
		}
		return restarts == 1 && servers == 4 && resolvers == 1
	}, "dns was restarted, with its servers and a resolver")
	select {
	case e := <-r.tree.system.ExitRequests():
		t.Errorf("exit %+v", e)
	default:
	}
}

// The process ends, and whoever depends on it hears of that.
func TestClientsAndPortalHearOfAnEndThatSupervisionDecides(t *testing.T) {
	for _, kind := range []string{KindTUN, KindPeers, KindGateway} {
		t.Run(kind, func(t *testing.T) {
			r := newTreeRig(t, labportal.Config{})
			r.table(kind, func(s *actorkit.Spec) { s.Restart = actorkit.Never })
			r.start(nil)
			r.ready()
			r.tun = receive(t, r.plane.host.opened, "device")
			wg := newWireGuard(t)
			c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
			wg.connect(r.plane, c.access(r.resource(10)))
			wg.passes(r.tun, c.ipv4, 10)
			pid, fatal := r.tree.root, any(messages.GoodbyeDone{Err: errors.New("missed")})
			if kind != KindGateway {
				pid, fatal = r.pid(kind), boom{}
			}
			r.plane.log.breakAt("not every client heard the goodbye")
			r.tree.system.Send(pid, fatal)
			begin := time.Now()
			code, cause := r.wait(t.Context())
			if took := time.Since(begin); took > farewellPatience+time.Second {
				t.Errorf("took %v", took)
			}
			if code != ExitGaveUp || !strings.HasPrefix(cause.Error(), actorkit.Path(pid)+": ") {
				t.Errorf("exit code %d, %v", code, cause)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := r.tree.Stop(ctx); err != nil {
				t.Error(err)
			}
			eventually(t, func() bool { return wg.goodbyes.Load() == 1 }, "one goodbye")
			left := waitEvent(t, r.lab, 0, labportal.PeerLeft, func(e labportal.Event) bool { return e.Role == labportal.Gateway })
			if left.Status != 1000 {
				t.Errorf("the portal saw %d", left.Status)
			}
		})
	}
}

// table has the tree start with a changed row.
func (r *treeRig) table(kind string, change func(*actorkit.Spec)) {
	r.t.Helper()
	spec, ok := r.rows[kind]
	if !ok {
		r.t.Fatal(fmt.Errorf("no row for %q", kind))
	}
	change(&spec)
	r.rows[kind] = spec
}

func TestRelaysFreeWhatTheGatewayLeaves(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	eventually(t, func() bool { return r.plane.relayUp.Load() && r.turn.Stats().Allocations == 1 }, "an allocation")
	stopTree(t, r.tree)
	r.plane.giveBack(time.Now())
	eventually(t, func() bool { return r.turn.Stats().Allocations == 0 }, "the allocation is gone")
	r.plane.giveBack(time.Now()) // nothing is left
}
