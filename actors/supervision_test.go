package actors

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	labportal "firezone-gateway/internal/lab/portal"
)

func TestAnyActorMayCrash(t *testing.T) {
	for _, kind := range []string{KindPeer, KindPeers, KindRelay, KindTransport, KindPortal, KindTUN, KindDNS, KindDNSServer, KindResolver} {
		t.Run(kind, func(t *testing.T) {
			r := newRunningTree(t, labportal.Config{})
			id, other := r.resource(10), r.resource(11)
			wg := newWireGuard(t)
			c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
			g := c.access(id)
			wg.connect(r.plane, g)
			wg.passes(r.tun, c.ipv4, 10)
			client, _ := r.plane.Tunnel.Lookup([32]byte(wg.key.PublicKey().Bytes()))
			handshake := client.Counters().LastHandshake.Load()

			r.tree.system.Send(r.pid(kind), boom{})
			eventually(t, func() bool {
				for _, k := range r.tree.system.Stats().Kinds {
					if k.Kind == kind {
						return k.Restarts == 1
					}
				}
				return false
			}, "%s restarts", kind)
			r.ready()
			wg.passes(r.tun, c.ipv4, 10)
			if kind == KindPortal {
				waitEvent(t, r.lab, 0, labportal.PeerLeft, nil)
				eventually(t, func() bool { s := r.lab.State().Gateways; return len(s[0].Sessions) == 1 && s[0].Sessions[0].Joined }, "joined again")
			}
			c.access(other)
			wg.passes(r.tun, c.ipv4, 11)
			now, _ := r.plane.Tunnel.Lookup([32]byte(wg.key.PublicKey().Bytes()))
			if now != client || now.Counters().LastHandshake.Load() != handshake || wg.goodbyes.Load() != 0 {
				t.Error("the session did not survive")
			}
			select {
			case e := <-r.tree.system.ExitRequests():
				t.Errorf("exit %+v", e)
			default:
			}
		})
	}
}

func TestAnActorThatCannotBeKeptAliveExitsWithOne(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	r.plane.host.fail = errors.New("no such device")
	r.start(nil)
	code, cause := r.wait(t.Context())
	if code != ExitGaveUp || cause == nil || !strings.Contains(cause.Error(), "gateway/tun: open TUN device: no such device") {
		t.Errorf("exit code %d, %v", code, cause)
	}
}

func TestEveryKindHasARowAndIsSpawnedWithIt(t *testing.T) {
	kinds := []string{KindGateway, KindPortal, KindTUN, KindTransport, KindRelay, KindPeers, KindPeer, KindNAT, KindDNS, KindDNSServer, KindResolver}
	if len(Table) != len(kinds) {
		t.Errorf("%d rows for %d kinds", len(Table), len(kinds))
	}
	r := newRunningTree(t, labportal.Config{})
	dialClient(t, r.lab, "client", nil).access(r.resource(10))
	done := make(chan struct{})
	r.tree.system.Send(r.plane.siblings.load().Peers, act(func(ctx actorkit.Context) {
		ctx.Send(ctx.Children()[0], act(func(ctx actorkit.Context) {
			r.peer.ensureNAT(ctx)
			close(done)
		}))
	}))
	await(t, done, "a translation for the client")
	for _, a := range r.tree.system.Stats().Actors {
		path := strings.Split(a.Path, "/")
		want := path[len(path)-1] // top-level actors and the resolver are named after their kind
		switch {
		case len(path) == 4:
			want = KindNAT
		case len(path) == 3 && path[2] != KindResolver:
			want = map[string]string{"peers": KindPeer, "transport": KindRelay, "dns": KindDNSServer}[path[1]]
		}
		if a.Kind != want {
			t.Errorf("%s is of kind %q", a.Path, a.Kind)
		}
		kinds = slices.DeleteFunc(kinds, func(k string) bool { return k == a.Kind })
	}
	if len(kinds) != 0 {
		t.Errorf("no actor of kinds %q", kinds)
	}
}

// A row whose delays, added up, are longer than the span of its intensity would
// never give up.
func TestEveryRowWithAnIntensityGivesUp(t *testing.T) {
	for kind, s := range Table {
		if s.Survives == "" {
			t.Errorf("%s does not say what survives", kind)
		}
		if s.Intensity.Max == 0 {
			continue
		}
		var sum time.Duration
		delay := s.Backoff.Start
		for range s.Intensity.Max {
			sum += delay
			delay = min(time.Duration(float64(delay)*s.Backoff.Factor), s.Backoff.Cap)
		}
		if sum >= s.Intensity.Within {
			t.Errorf("%s: %d restarts take %s of %s", kind, s.Intensity.Max, sum, s.Intensity.Within)
		}
	}
}
