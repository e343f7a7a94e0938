package actors

import (
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/messages"
)

// channelled waits for the allocation with a channel to peer, and returns both.
func (r *relayRig) channelled(peer netip.AddrPort) (relayed netip.AddrPort, path *transport.Path) {
	r.t.Helper()
	relayed = r.allocated().Relayed[0]
	r.system.Send(r.pid, messages.BindChannels{Peers: []netip.AddrPort{peer}})
	return relayed, r.bound(relayed, peer)
}

func (r *relayRig) restarted() messages.RelayChanged {
	r.t.Helper()
	return r.until("anything", func(messages.RelayChanged) bool { return true })
}

func TestACrashOfItsActorLeavesAnAllocationAsItIs(t *testing.T) {
	r := newRelayRig(t)
	peer := addr("127.0.0.1:9")
	relayed, path := r.channelled(peer)
	wire := r.relay.wire
	r.system.Send(r.pid, boom{})
	if again := r.restarted(); len(again.Relayed) != 1 || again.Relayed[0] != relayed || !again.Usable {
		t.Fatalf("the next actor offers %+v", again)
	}
	if now := r.bound(relayed, peer); now != path || r.relay.wire != wire {
		t.Error("the packet path has got another channel")
	}
	if n := r.server.Stats().Allocated; n != 1 {
		t.Errorf("%d allocations", n)
	}
	// The new actor has taken the machine's timers and mailbox over.
	other := addr("127.0.0.1:10")
	r.system.Send(r.pid, messages.BindChannels{Peers: []netip.AddrPort{other}})
	r.bound(relayed, other)
}

func TestAnAllocationThatIsNotIntactIsMadeAnew(t *testing.T) {
	peer := addr("127.0.0.1:9")
	for name, corrupt := range map[string]func(*relay){
		"a channel that nobody knows":             func(a *relay) { a.bound[0x4FFF] = addr("127.0.0.1:8") },
		"a channel that the packet path has not":  func(a *relay) { a.wire.ClearChannel(a.channel(peer)) },
		"a channel to somebody else":              func(a *relay) { a.wire.SetChannel(a.channel(peer), addr("127.0.0.1:8"), a.state.Relayed[0]) },
		"a channel that agents do not find":       func(a *relay) { a.legs[0].paths.Delete(peer) },
		"an address that the machine has not":     func(a *relay) { a.state.Relayed[0] = addr("127.0.0.9:9") },
		"an address that agents do not find":      func(a *relay) { a.plane.sinks.legs.Delete(a.state.Relayed[0]) },
		"an actor that dies of what it took over": func(a *relay) { a.adopted = time.Now() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelayRig(t)
			relayed, _ := r.channelled(peer)
			r.system.Send(r.pid, act(func(actorkit.Context) { corrupt(r.relay) }))
			r.system.Send(r.pid, boom{})
			if again := r.restarted(); len(again.Relayed) != 0 {
				t.Errorf("the next actor offers %+v", again)
			}
			if leg, ok := r.plane.sinks.legs.Load(relayed); ok {
				if _, ok := leg.(*relayLeg).paths.Load(peer); ok {
					t.Error("its channel is still on the packet path")
				}
			}
			r.allocated()
		})
	}
}

// channel returns the number of the channel to peer.
func (a *allocation) channel(peer netip.AddrPort) uint16 {
	for number, p := range a.bound {
		if p == peer {
			return number
		}
	}
	return 0
}

// realRelays is a transport actor with one real relay, whose allocation it
// waits for.
func realRelays(t *testing.T) (r *transportRig, cfg portal.DualStackRelay, relayed netip.AddrPort) {
	t.Helper()
	server, secret := startRelay(t)
	r = newTransportRig(t)
	actors, second := 0, make(chan struct{})
	r.plane.players.relay = func(p *Plane, cfg portal.DualStackRelay) actorkit.Actor {
		a := newRelay(p, cfg)
		actors++
		n := actors
		return faulty{actorkit.ActorFunc(func(ctx actorkit.Context) {
			if _, ended := ctx.Message().(*actorkit.Stopped); ended && n == 1 {
				select {
				case <-second:
				case <-time.After(time.Second): // there may be none
				}
			}
			a.Receive(ctx)
			if _, started := ctx.Message().(*actorkit.Started); started && n == 2 {
				close(second)
			}
		})}
	}
	cfg = portal.DualStackRelay{ID: "relay-1", V4: server.Addrs()[0]}
	cfg.Username, cfg.Password = startedCredentials(secret, r.plane)
	r.update(nil, cfg)
	eventually(t, func() bool {
		for _, offer := range r.plane.offers.load().Relays {
			if len(offer.Relayed) > 0 {
				relayed = offer.Relayed[0]
			}
		}
		return relayed.IsValid()
	}, "an allocation")
	return r, cfg, relayed
}

func TestACrashOfTheTransportLeavesAllocationsAsTheyAre(t *testing.T) {
	r, _, relayed := realRelays(t)
	leg, _ := r.plane.sinks.legs.Load(relayed)
	version := r.plane.offers.load().Version
	r.system.Send(r.pid, boom{})
	// The restart says what is offered, and the relay that adopted once more.
	eventually(t, func() bool { return r.plane.offers.load().Version >= version+2 }, "what the next ones offer")
	if offers := r.plane.offers.load().Relays; len(offers) != 1 || len(offers[0].Relayed) != 1 || offers[0].Relayed[0] != relayed {
		t.Errorf("they offer %+v", offers)
	}
	if now, _ := r.plane.sinks.legs.Load(relayed); now != leg {
		t.Error("the packet path has got other channels")
	}
}

// The actor of the relay that was dropped ends at the worst moment: it has left its
// allocation, and the transport has not heard of its end.
func TestARelayThatIsDroppedLeavesNothing(t *testing.T) {
	r, cfg, relayed := realRelays(t)
	leg, _ := r.plane.sinks.legs.Load(relayed)
	r.update([]string{cfg.ID})
	r.update(nil, cfg)
	var next netip.AddrPort
	eventually(t, func() bool {
		for _, offer := range r.plane.offers.load().Relays {
			if len(offer.Relayed) > 0 {
				next = offer.Relayed[0]
			}
		}
		return next.IsValid()
	}, "another allocation")
	if now, _ := r.plane.sinks.legs.Load(next); now == leg {
		t.Error("a relay that was dropped goes on with its allocation")
	}
	r.update([]string{cfg.ID})
	eventually(t, func() bool {
		_, ok := r.plane.sinks.legs.Load(next)
		return !ok && len(r.plane.allocations.left()) == 0
	}, "that nothing is left")
}
