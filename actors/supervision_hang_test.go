package actors

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/admin"
	labportal "firezone-gateway/internal/lab/portal"
)

// impatient is the table with short delays, and actors that are stuck after half a
// second.
func impatient() actorkit.Table {
	t := maps.Clone(quick(Table))
	for kind, spec := range t {
		spec.Stuck = 500 * time.Millisecond
		t[kind] = spec
	}
	return t
}

// newImpatientTree is newRunningTree with the table impatient.
func newImpatientTree(t *testing.T) *treeRig {
	t.Helper()
	r := newTreeRig(t, labportal.Config{})
	tree, err := start(r.plane.Plane, actorkit.Config{Logger: r.plane.log.logger(t), Table: impatient()})
	if err != nil {
		t.Fatal(err)
	}
	r.tree = tree
	t.Cleanup(func() { stopTree(t, tree) })
	r.ready()
	r.tun = receive(t, r.plane.host.opened, "device")
	return r
}

// totals returns what was counted about a kind.
func (r *treeRig) totals(kind string) actorkit.Totals {
	for _, k := range r.tree.system.Stats().Kinds {
		if k.Kind == kind {
			return k.Totals
		}
	}
	return actorkit.Totals{}
}

func TestAnyActorMayHang(t *testing.T) {
	for _, kind := range []string{KindPeer, KindPeers, KindRelay, KindTransport, KindPortal, KindTUN, KindDNS, KindDNSServer, KindResolver} {
		t.Run(kind, func(t *testing.T) {
			r := newImpatientTree(t)
			id, other := r.resource(10), r.resource(11)
			wg := newWireGuard(t)
			c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
			g := c.access(id)
			wg.connect(r.plane, g)
			wg.passes(r.tun, c.ipv4, 10)
			client, _ := r.plane.Tunnel.Lookup([32]byte(wg.key.PublicKey().Bytes()))
			handshake := client.Counters().LastHandshake.Load()

			release, returned := make(chan struct{}), make(chan struct{})
			r.tree.system.Send(r.pid(kind), act(func(actorkit.Context) {
				<-release
				close(returned)
			}))
			eventually(t, func() bool { got := r.totals(kind); return got.Restarts >= 1 && got.Stuck == 1 }, "%s is replaced", kind)
			select { // a TUN device that its actor could not hand on was made anew
			case r.tun = <-r.plane.host.opened:
			default:
			}
			r.ready()
			wg.passes(r.tun, c.ipv4, 10)
			eventually(t, func() bool {
				s := r.lab.State().Gateways
				return len(s) > 0 && len(s[0].Sessions) > 0 && s[0].Sessions[len(s[0].Sessions)-1].Joined
			}, "joined")
			close(release)
			<-returned
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

func TestAGatewayThatHangsEndsTheProcess(t *testing.T) {
	r := newImpatientTree(t)
	if paths, err := r.tree.Inject(admin.Fault{Actor: "gateway", Fault: "hang"}); err != nil || !slices.Equal(paths, []string{"gateway"}) {
		t.Fatalf("injected into %q, %v", paths, err)
	}
	code, cause := r.wait(t.Context())
	if code != ExitGaveUp || !errors.Is(cause, actorkit.ErrStuck) {
		t.Errorf("exit code %d, %v", code, cause)
	}
}

func TestInjectedFaultsShow(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	dialClient(t, r.lab, "client", nil).access(r.resource(10))
	paths, err := r.tree.Inject(admin.Fault{Actor: "gateway/peers/*", Fault: "crash", Messages: 2})
	if err != nil || len(paths) != 1 || !strings.HasPrefix(paths[0], "gateway/peers/") {
		t.Fatalf("injected into %q, %v", paths, err)
	}
	eventually(t, func() bool {
		for _, a := range r.tree.Status(time.Now()).Actors {
			if a.Path == paths[0] && a.Injected == 2 && a.Restarts == 2 && a.State == admin.ActorRunning && a.LastFailure == "injected crash" {
				return true
			}
		}
		return false
	}, "two crashes in the status")
	if _, err := r.tree.Inject(admin.Fault{Actor: "gateway/[", Fault: "crash"}); err == nil {
		t.Error("a bad pattern is taken")
	}
}
