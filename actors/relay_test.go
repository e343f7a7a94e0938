package actors

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	labrelay "firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/messages"
)

func startRelay(t testing.TB) (*labrelay.Server, string) {
	t.Helper()
	secret := labrelay.NewSecret()
	s, err := labrelay.Start(labrelay.Options{
		Secret: secret, IPv4: netip.MustParseAddr("127.0.0.1"), ListenPacket: net.ListenPacket,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the relay: %v", err)
		}
	})
	return s, secret
}

// startedCredentials are those of a relay that startRelay started.
func startedCredentials(secret string, p *testPlane) (username, password string) {
	return labrelay.Credentials(secret, portal.PublicKey(p.PublicKey()).String(), time.Now().Add(time.Hour))
}

// relayRig is a stage with a relay actor and a relay for it.
type relayRig struct {
	*stage
	pid    actorkit.PID
	relay  *relay // of the last incarnation; touched in its turn only
	server *labrelay.Server
}

func newRelayRig(t testing.TB, change ...func(*portal.DualStackRelay)) *relayRig {
	t.Helper()
	server, secret := startRelay(t)
	r := &relayRig{stage: newStage(t, newTestPlane(t, "")), server: server}
	cfg := portal.DualStackRelay{ID: "relay-1", V4: server.Addrs()[0]}
	cfg.Username, cfg.Password = startedCredentials(secret, r.plane)
	for _, f := range change {
		f(&cfg)
	}
	r.pid = r.transport.spawn(KindRelay, "relay-1", func() actorkit.Actor {
		r.relay = newRelay(r.plane.Plane, cfg)
		return faulty{r.relay}
	})
	return r
}

// until waits for a report that is as wanted.
func (r *relayRig) until(what string, ok func(messages.RelayChanged) bool) messages.RelayChanged {
	r.t.Helper()
	expiry := time.After(patience)
	for {
		select {
		case got := <-r.transport.got:
			if m, is := got.(messages.RelayChanged); is && ok(m) {
				return m
			}
		case <-expiry:
			r.t.Fatalf("the relay never reports %s", what)
		}
	}
}

func (r *relayRig) allocated() messages.RelayChanged {
	r.t.Helper()
	return r.until("an allocation", func(m messages.RelayChanged) bool { return len(m.Relayed) > 0 })
}

// bound waits for the channel to peer.
func (r *relayRig) bound(relayed, peer netip.AddrPort) *transport.Path {
	r.t.Helper()
	var path *transport.Path
	eventually(r.t, func() bool {
		leg, ok := r.plane.sinks.legs.Load(relayed)
		if !ok {
			return false
		}
		p, ok := leg.(*relayLeg).paths.Load(peer)
		if ok {
			path = p.(*transport.Path)
		}
		return ok
	}, "a channel to %s", peer)
	return path
}

func TestARelayYieldsCandidatesAndAnAllocation(t *testing.T) {
	r := newRelayRig(t)
	first := next[messages.RelayChanged](t, r.transport)
	if !first.Usable || first.RelayID != "relay-1" || !actorkit.Same(first.Reporter, r.pid) || len(first.Relayed) != 0 {
		t.Errorf("first report %+v", first)
	}
	m := r.allocated()
	port := r.plane.Bind.Sockets().LocalPort(transport.IPv4)
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	if len(m.Shared) != 2 || m.Shared[0].Type != ice.Host || m.Shared[0].Addr != own || m.Shared[1].Type != ice.ServerReflexive {
		t.Errorf("shared %+v", m.Shared)
	}
	if r.server.Stats().Allocations != 1 {
		t.Error("the relay knows no allocation")
	}
	log := r.plane.log.String()
	if !strings.Contains(log, "INFO relay: relay allocated") || strings.Contains(log, r.relay.cfg.Password) {
		t.Errorf("log:\n%s", log)
	}
}

func TestChannelsCarryDatagramsOfAgents(t *testing.T) {
	r := newRelayRig(t)
	relayed := r.allocated().Relayed[0]
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	to := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := r.plane.sinks.SendSTUN([]byte("too early"), relayed, to); err != errNoChannel {
		t.Errorf("sending without a channel: %v", err)
	}
	r.system.Send(r.pid, messages.BindChannels{RelayID: "relay-1", Peers: []netip.AddrPort{to}})
	path := r.bound(relayed, to)
	if path.Local() != relayed || path.Remote() != to {
		t.Errorf("path %v", path)
	}
	if err := r.plane.sinks.SendSTUN([]byte("through the relay"), relayed, to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if err := peer.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, from, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "through the relay" || from != relayed {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
}

func TestARelayWithoutAnAddressOfOursIsNotUsable(t *testing.T) {
	r := newRelayRig(t, func(c *portal.DualStackRelay) { c.V4 = netip.AddrPort{} })
	r.until("that it is not usable", func(m messages.RelayChanged) bool { return !m.Usable })
	// Asking a relay that was given up changes nothing.
	r.system.Send(r.pid, messages.ProbeRelay{})
	r.settle(r.pid)
	for len(r.transport.got) > 0 {
		if m := next[messages.RelayChanged](t, r.transport); m.Usable {
			t.Errorf("reported %+v", m)
		}
	}
}

func TestAProbeKeepsAnAllocationThatExists(t *testing.T) {
	r := newRelayRig(t)
	r.allocated()
	r.system.Send(r.pid, messages.ProbeRelay{})
	eventually(t, func() bool {
		var pending int
		r.look(r.pid, func(actorkit.Context) { pending = r.relay.machine.State().Pending })
		return pending == 0
	}, "the answer to the probe")
	r.transport.quiet("nothing changed")
}

// A new address of ours takes the place of the old one, or the list would grow
// for as long as the process lives.
func TestANewReflexiveAddressReplacesTheOldOne(t *testing.T) {
	r := newRelayRig(t)
	r.allocated()
	r.look(r.pid, func(actorkit.Context) {
		six := ice.Candidate{Type: ice.ServerReflexive, Addr: addr("[::1]:1")}
		for _, c := range []ice.Candidate{srflx, six, srflx} {
			r.relay.share(c)
		}
		if shared := r.relay.state.Shared; len(shared) != 3 || shared[1] != srflx || shared[2] != six {
			t.Errorf("shared %+v", shared)
		}
		if r.relay.share(six) {
			t.Error("what is known is news")
		}
	})
}

func TestAStoppedRelayLeavesThePacketPath(t *testing.T) {
	r := newRelayRig(t)
	relayed := r.allocated().Relayed[0]
	wire := r.relay.wire
	r.transport.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	seek[*actorkit.Terminated](t, r.transport)
	r.plane.allocations.retain(r.plane.Plane, nil)
	if _, ok := r.plane.sinks.legs.Load(relayed); ok {
		t.Error("the relayed address is known")
	}
	r.plane.sinks.Relay(wire, []byte("late"), netip.MustParseAddr("127.0.0.1"))
	if got := r.dropped(drop.STUNUnknown); got != 1 {
		t.Errorf("%d late datagrams counted, want 1", got)
	}
}

// A relay, or who sends in its name, cannot fill the mailbox.
func TestDatagramsForABusyRelayActorAreBounded(t *testing.T) {
	r := newRelayRig(t)
	r.allocated()
	held, free := make(chan struct{}), make(chan struct{})
	r.system.Send(r.pid, act(func(actorkit.Context) { close(held); <-free }))
	await(t, held, "the turn before")
	wire := r.relay.wire
	for range relayLimit + 5 {
		r.plane.sinks.Relay(wire, []byte("rubbish"), netip.MustParseAddr("127.0.0.1"))
	}
	close(free)
	if got := r.dropped(drop.STUNOverflow); got != 5 {
		t.Errorf("%d dropped, want 5", got)
	}
	r.settle(r.pid)
}
