package actors

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// transportRig is a stage with the transport actor and fake relays.
type transportRig struct {
	*stage
	pid    actorkit.PID
	relays chan toRelay
}

// toRelay is one message to a relay actor.
type toRelay struct {
	cfg portal.DualStackRelay
	pid actorkit.PID
	msg any
}

func newTransportRig(t testing.TB) *transportRig {
	t.Helper()
	r := &transportRig{stage: newStage(t, newTestPlane(t, "")), relays: make(chan toRelay, 1024)}
	r.plane.players.relay = func(_ *Plane, cfg portal.DualStackRelay) actorkit.Actor {
		return faulty{actorkit.ActorFunc(func(ctx actorkit.Context) {
			switch m := ctx.Message().(type) {
			case *actorkit.Stopping, *actorkit.Restarting:
			default:
				r.relays <- toRelay{cfg, ctx.Self(), m}
			}
		})}
	}
	r.introduce()
	r.pid = r.root.spawn(KindTransport, "transport", func() actorkit.Actor { return faulty{newTransport(r.plane.Plane)} })
	return r
}

func relayConfig(id string, change ...func(*portal.DualStackRelay)) portal.DualStackRelay {
	place := fnv.New32a() // each at its own address
	_, _ = place.Write([]byte(id))
	sum := place.Sum32()
	at := netip.AddrFrom4([4]byte{127, byte(sum >> 16), byte(sum >> 8), byte(sum)})
	cfg := portal.DualStackRelay{ID: id, V4: netip.AddrPortFrom(at, 3478), Username: "1:user", Password: "s3cret-relay-password"}
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

// update sends UpdateRelays and waits for the reply.
func (r *transportRig) update(disconnected []string, connected ...portal.DualStackRelay) {
	r.t.Helper()
	r.root.do(func(ctx actorkit.Context) {
		ctx.Request(r.pid, messages.UpdateRelays{Disconnected: disconnected, Connected: connected})
	})
	next[messages.RelaysUpdated](r.t, r.root)
}

// started returns the relays that start next, in the order of ids.
func (r *transportRig) started(ids ...string) []actorkit.PID {
	r.t.Helper()
	pids := make([]actorkit.PID, len(ids))
	for range ids {
		select {
		case m := <-r.relays:
			i := slices.Index(ids, m.cfg.ID)
			if _, ok := m.msg.(*actorkit.Started); !ok || i < 0 {
				r.t.Fatalf("%s got %T", m.cfg.ID, m.msg)
			}
			pids[i] = m.pid
		case <-time.After(patience):
			r.t.Fatalf("%q do not start", ids)
		}
	}
	return pids
}

func relayGot[M any](r *transportRig, id string) toRelay {
	r.t.Helper()
	select {
	case m := <-r.relays:
		if _, ok := m.msg.(M); !ok || m.cfg.ID != id {
			var want M
			r.t.Fatalf("%s got %T, want %T for %s", m.cfg.ID, m.msg, want, id)
		}
		return m
	case <-time.After(patience):
		var want M
		r.t.Fatalf("no %T comes to %s", want, id)
		return toRelay{}
	}
}

// report is what a relay says.
func (r *transportRig) report(pid actorkit.PID, m messages.RelayChanged) {
	r.t.Helper()
	m.Reporter = pid
	r.system.Send(r.pid, m)
	r.settle(r.pid)
}

// told returns the ids that peers hears of last, with "!" for unusable ones.
func (r *transportRig) told() (ids []string) {
	r.t.Helper()
	r.settle(r.pid)
	r.peers.do(func(actorkit.Context) {})
	var last messages.RelaysChanged
	for {
		select {
		case m := <-r.peers.got:
			if m := m.(messages.RelaysChanged); m.Version <= last.Version {
				r.t.Errorf("version %d follows %d", m.Version, last.Version)
			} else {
				last = m
			}
			continue
		default:
		}
		break
	}
	if now := r.plane.offers.load(); now.Version != last.Version {
		r.t.Errorf("peers that start see version %d, others %d", now.Version, last.Version)
	}
	for _, o := range last.Relays {
		id := o.RelayID
		if !o.Usable {
			id += "!"
		}
		ids = append(ids, id)
	}
	return ids
}

// Transport §4.6, T-51.
func TestUpdatesAddReplaceAndDropRelays(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"), relayConfig("b"))
	pids := r.started("a", "b")
	a, b := pids[0], pids[1]
	if got := r.told(); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("relays %q", got)
	}
	// Unchanged: kept, as in the init after a re-connect.
	r.update(nil, relayConfig("a"), relayConfig("b"))
	// The one that is not named is asked whether it is still there.
	r.update(nil, relayConfig("a"))
	if m := relayGot[messages.ProbeRelay](r, "b"); !actorkit.Same(m.pid, b) {
		t.Error("another relay was probed")
	}
	// Changed: replaced, and the old one's reports mean nothing any more.
	r.update(nil, relayConfig("a", func(c *portal.DualStackRelay) { c.Password = "another" }), relayConfig("b"))
	r.expectBoth(relayStopped("a"), relayStarted("a"))
	r.report(a, messages.RelayChanged{RelayID: "a"})
	if got := r.told(); !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("relays %q", got)
	}
	// Disconnected: dropped.
	r.update([]string{"b", "unknown"}, relayConfig("c"))
	r.expectBoth(relayStopped("b"), relayStarted("c"), relayProbed("a"))
	if got := r.told(); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("relays %q", got)
	}
	if cfgs := r.plane.relays.load(); len(cfgs) != 2 {
		t.Errorf("%d relays are remembered", len(cfgs))
	}
	if strings.Contains(r.plane.log.String(), "s3cret") {
		t.Error("a password is in the log")
	}
}

// A relay that was started again has another id, and the portal that learned of
// it after we were cut off names the new one only.
func TestARelayAtTheAddressOfAnotherTakesItsPlace(t *testing.T) {
	for name, same := range map[string]func(c *portal.DualStackRelay){
		"IPv4": func(c *portal.DualStackRelay) { c.V4 = relayConfig("old").V4 },
		"IPv6": func(c *portal.DualStackRelay) { c.V6 = addr("[::1]:3478") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newTransportRig(t)
			r.update(nil, relayConfig("old", func(c *portal.DualStackRelay) { c.V6 = addr("[::1]:3478") }), relayConfig("other"))
			r.started("old", "other")
			r.update(nil, relayConfig("new", same))
			r.expectBoth(relayStopped("old"), relayStarted("new"), relayProbed("other"))
		})
	}
}

func relayStarted(id string) string { return id + " *actor.Started" }
func relayStopped(id string) string { return id + " *actor.Stopped" }
func relayProbed(id string) string  { return id + " messages.ProbeRelay" }

// expectBoth expects messages to different relays, in any order.
func (r *transportRig) expectBoth(want ...string) {
	r.t.Helper()
	var got []string
	for range want {
		select {
		case m := <-r.relays:
			got = append(got, m.cfg.ID+" "+typeOf(m.msg))
		case <-time.After(patience):
			r.t.Fatalf("got %q, want %q", got, want)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.t.Fatalf("got %q, want %q", got, want)
	}
}

func TestARelayThatTheGatewayGaveUpIsTriedAgainWhenNamedAgain(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"))
	a := r.started("a")[0]
	r.report(a, messages.RelayChanged{RelayID: "a"})
	r.update(nil, relayConfig("a"))
	r.expectBoth(relayStopped("a"), relayStarted("a"))
	if got := r.told(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("relays %q", got)
	}
}

func TestReportsOfRelaysReachPeersAndReadiness(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"))
	a := r.started("a")[0]
	if r.plane.relayUp.Load() {
		t.Error("ready without an allocation")
	}
	r.report(a, relayOffer("a", "127.0.0.9:50001"))
	if !r.plane.relayUp.Load() || len(r.plane.offers.load().Relays[0].Shared) != 2 {
		t.Errorf("offers %+v", r.plane.offers.load())
	}
	r.told()
	r.report(a, messages.RelayChanged{RelayID: "unknown"})
	r.peers.quiet("nothing changed")
}

// Portal §4.4.
func TestTheLossOfTheLastRelayIsReportedOnce(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"), relayConfig("b"))
	pids := r.started("a", "b")
	a, b := pids[0], pids[1]
	r.report(a, messages.RelayChanged{RelayID: "a"})
	r.portal.do(func(actorkit.Context) {})
	r.portal.quiet("one relay is left")
	r.report(b, messages.RelayChanged{RelayID: "b"})
	if m := next[messages.SendToPortal](t, r.portal); m.Message != (portal.NoRelays{}) || m.Connection != 0 {
		t.Errorf("sent %+v", m)
	}
	r.report(b, messages.RelayChanged{RelayID: "b"})
	r.portal.do(func(actorkit.Context) {})
	r.portal.quiet("it was reported before")
}

func TestChannelsAreBoundAtTheirRelay(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"), relayConfig("b"))
	r.started("a", "b")
	r.system.Send(r.pid, messages.BindChannels{RelayID: "gone"})
	r.system.Send(r.pid, messages.BindChannels{RelayID: "b"})
	relayGot[messages.BindChannels](r, "b")
}

func TestTheNumberOfRelaysIsBounded(t *testing.T) {
	r := newTransportRig(t)
	var cfgs []portal.DualStackRelay
	for i := range maxRelays + 2 {
		cfgs = append(cfgs, relayConfig(resourceID(byte(i))))
	}
	r.update(nil, cfgs...)
	if n := len(r.told()); n != maxRelays {
		t.Errorf("%d relays", n)
	}
	if got := r.dropped(drop.ElementMalformed); got != 2 {
		t.Errorf("%d dropped, want 2", got)
	}
}

func TestTransportStartsTheKnownRelaysAgainAfterACrash(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"))
	r.report(r.started("a")[0], relayOffer("a", "127.0.0.9:50001"))
	r.told()
	r.system.Send(r.pid, boom{})
	r.expectBoth(relayStopped("a"), relayStarted("a"))
	// Peers hear of no loss before the relay's next actor has found one.
	if got := r.told(); !slices.Equal(got, []string{"a"}) || !r.plane.relayUp.Load() {
		t.Errorf("relays %q", got)
	}
	r.update(nil, relayConfig("a"))
}

func TestARelayThatKeepsFailingIsDroppedAlone(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"), relayConfig("b"))
	a := r.started("a", "b")[0]
	for range Table[KindRelay].Intensity.Max + 1 {
		r.system.Send(a, boom{})
	}
	eventually(t, func() bool { return len(r.plane.relays.load()) == 1 }, "the relay is given up")
	if got := r.told(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("relays %q", got)
	}
	// The portal may name it again.
	r.update(nil, relayConfig("a"))
	if got := r.told(); !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("relays %q", got)
	}
}

func TestTransportStopsWithItsRelays(t *testing.T) {
	r := newTransportRig(t)
	r.update(nil, relayConfig("a"))
	r.started("a")
	r.root.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	relayGot[*actorkit.Stopped](r, "a")
	next[*actorkit.Terminated](t, r.root)
}

// The ids of relays change when they restart; those that vanished while the
// portal was away are never named again.
func TestRelaysThatVanishedTakeNoPlace(t *testing.T) {
	r := newTransportRig(t)
	r.plane.players.relay = func(*Plane, portal.DualStackRelay) actorkit.Actor {
		return actorkit.ActorFunc(func(actorkit.Context) {})
	}
	for n := range maxRelays + 6 {
		r.update(nil, relayConfig(fmt.Sprint("relay-", n)))
	}
	var pids []actorkit.PID
	r.look(r.pid, func(ctx actorkit.Context) { pids = ctx.Children() })
	if len(pids) != maxRelays {
		t.Fatalf("%d relays, want %d", len(pids), maxRelays)
	}
	refused := r.dropped(drop.ElementMalformed)
	if refused != 6 {
		t.Errorf("%d refused while all work, want 6", refused)
	}
	fail := func(pid actorkit.PID) {
		id := actorkit.Path(pid)
		id = id[strings.LastIndex(id, "/")+1 : strings.LastIndex(id, ".")]
		r.system.Send(r.pid, messages.RelayChanged{RelayID: id, Reporter: pid})
		r.settle(r.pid)
	}
	fail(pids[5])
	r.update(nil, relayConfig("new"))
	if got := r.dropped(drop.ElementMalformed); got != refused {
		t.Error("a relay that does not work keeps its place")
	}
	// A full list ends those that do not work and are not in it.
	fail(pids[7])
	r.root.do(func(ctx actorkit.Context) {
		ctx.Request(r.pid, messages.UpdateRelays{All: true, Connected: []portal.DualStackRelay{relayConfig("new")}})
	})
	next[messages.RelaysUpdated](t, r.root)
	if got := len(r.plane.offers.load().Relays); got != maxRelays-1 {
		t.Errorf("%d relays are left", got)
	}
}
