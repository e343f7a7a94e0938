package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/device"
	"go.uber.org/goleak"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/transport"
)

func TestOnlyAdmittedClientsConnect(t *testing.T) {
	r := newRig(t)
	stranger := r.start(t, 1, newKey(t), 1)
	wrongSecret := r.start(t, 2, newKey(t), 99)
	r.admit(t, wrongSecret, 2, usualGrants()...)
	good := r.join(t, 3, usualGrants()...)

	stranger.tun.send(t, stranger.request(1))
	wrongSecret.tun.send(t, wrongSecret.request(1))
	eventually(t, "the answer to the client with the wrong secret", func() bool {
		return wrongSecret.client.Counters().LastHandshake.Load() != 0
	})
	r.exchange(t, good, 1)
	r.exchange(t, good, 2)
	r.tun.expectNothing(t)
	if stranger.connected(t) || wrongSecret.connected(t) || !good.connected(t) {
		t.Errorf("connected: stranger %v, wrong secret %v, good %v", stranger.connected(t), wrongSecret.connected(t), good.connected(t))
	}
	if wrongSecret.client.connected() || wrongSecret.client.Path() != nil {
		t.Error("the gateway takes the client with the wrong secret for connected")
	}
	if !good.client.connected() || good.client.Session() != SessionEstablished || good.client.Path() == nil {
		t.Error("the good client is not connected")
	}
	if p := <-good.heard.paths; !p.Same(good.client.Path()) {
		t.Errorf("told about %v, path is %v", p, good.client.Path())
	}
	if s := <-good.heard.sessions; s != SessionEstablished {
		t.Errorf("told that the session is %v", s)
	}
	n := good.client.Counters()
	if n.ToResourcePackets.Load() != 2 || n.ToClientPackets.Load() != 2 || n.LastHandshake.Load() == 0 || n.LastActive.Load() == 0 {
		t.Errorf("counted %d to resources, %d to the client", n.ToResourcePackets.Load(), n.ToClientPackets.Load())
	}

	// Admitted later, the stranger gets in.
	again := r.start(t, 1, stranger.key, 1)
	r.admit(t, again, 1, usualGrants()...)
	r.exchange(t, again, 1)
}

func TestControlPacketsOfSeveralClients(t *testing.T) {
	r := newRig(t)
	const clients, each = 5, 8
	remotes := make([]*remote, clients)
	for i := range remotes {
		remotes[i] = r.join(t, i+1)
	}
	body := func(i, k int) []byte { return fmt.Appendf(nil, "client %d packet %d", i, k) }
	var senders sync.WaitGroup
	for i, m := range remotes {
		senders.Go(func() {
			for k := range each {
				m.tun.send(t, packet.AppendControl(nil, packet.AssignedIPs, body(i, k)))
			}
		})
	}
	senders.Wait()
	for i, m := range remotes {
		for k := range each {
			want := string(packet.AppendControl(nil, packet.AssignedIPs, body(i, k)))
			select {
			case got := <-m.heard.control:
				if got != want {
					t.Errorf("client %d: got %q, want %q", i, got, want)
				}
			case <-time.After(patience):
				t.Fatalf("client %d: control packet %d does not arrive", i, k)
			}
		}
	}
	// The other direction: each status reaches its own client.
	for i, m := range remotes {
		e := packet.DomainStatusEvent{Resource: "27f4f4d2-6a1f-4a84-9b1b-3f3f2e2d1c0b", Domain: fmt.Sprintf("%d.example.com", i)}
		want, err := packet.AppendDomainStatus(nil, e)
		if err != nil || !r.SendDomainStatus(m.client, e) {
			t.Fatal("not queued", err)
		}
		m.tun.expect(t, want)
	}
	r.tun.expectNothing(t)
}

func TestAnswersReachTheSenderWhateverItsSource(t *testing.T) {
	r := newRig(t)
	spoofer, victim := r.join(t, 1, usualGrants()...), r.join(t, 2, usualGrants()...)
	r.exchange(t, spoofer, 1)
	r.exchange(t, victim, 1)
	for _, c := range []struct {
		name   string
		packet []byte
	}{
		{"no grant", udp(address4(1), other4, 1, 1000, 0)},
		{"no grant over IPv6", udp(address6(1), other6, 1, 1000, 0)},
		{"foreign source", udp(foreign4, server4, 1, 1000, 0)},
		{"foreign source over IPv6", udp(foreign6, server6, 1, 1000, 0)},
		{"source of another client", udp(address4(2), server4, 1, 1000, 0)},
	} {
		spoofer.tun.send(t, c.packet)
		got := spoofer.tun.receive(t)
		if source(got) != destination(c.packet) || destination(got) != source(c.packet) {
			t.Errorf("%s: answer from %v to %v", c.name, source(got), destination(got))
		}
		if typ, code := icmpOf(t, got); [2]byte{typ, code} != [2]byte{3, 13} && [2]byte{typ, code} != [2]byte{1, 1} {
			t.Errorf("%s: answer is %d/%d", c.name, typ, code)
		}
	}
	r.exchange(t, victim, 2)
	victim.tun.expectNothing(t)
	r.tun.expectNothing(t)
}

func TestPolicyIsInForceWithTheNextPacket(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	for round := range uint16(5) {
		r.exchange(t, m, round)
		m.client.SetPolicy(snapshot(1))
		m.tun.send(t, m.request(round))
		if got := m.tun.receive(t); source(got) != server4 || got[9] != byte(packet.ICMP) {
			t.Fatalf("revoked, got %x", got)
		}
		before := m.client.Drops().Load(drop.NotAllowed)
		r.tun.send(t, m.reply(round))
		eventually(t, "the reply to be dropped", func() bool { return m.client.Drops().Load(drop.NotAllowed) == before+1 })
		m.client.SetPolicy(snapshot(1, usualGrants()...))
	}
	r.exchange(t, m, 99)
	r.tun.expectNothing(t)
}

func TestGoodbyeAllReachesEveryClient(t *testing.T) {
	r := newRig(t)
	const clients = 5
	var remotes []*remote
	for i := range clients {
		m := r.join(t, i+1, usualGrants()...)
		r.exchange(t, m, 1)
		remotes = append(remotes, m)
	}
	idle := r.join(t, clients+1) // never connected, not waited for
	// Packets that look like a goodbye from outside.
	for _, m := range remotes {
		for range 20 {
			r.tun.send(t, packettest.IP(server4, address4(m.n), byte(packet.UDP), append([]byte{0x3, 0xe8, 0, 1, 0, 20, 0, 0}, make([]byte, 12)...)))
		}
	}
	begin := time.Now()
	if err := r.GoodbyeAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("took %v", d)
	}
	want := string(packet.AppendGoodbye(nil))
	for _, m := range remotes {
		for m.tun.receiveUntilGoodbye(t) != want {
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("client %d knows after %v", m.n, d)
		}
	}
	// Nothing passes any more.
	m := remotes[0]
	r.tun.send(t, m.reply(2))
	eventually(t, "the reply to be dropped", func() bool { return m.client.Drops().Load(drop.NotConnected) == 1 })
	m.tun.send(t, m.request(2))
	eventually(t, "the request to be dropped", func() bool { return m.client.Drops().Load(drop.NoResource) == 1 })
	r.tun.expectNothing(t)
	if _, ok := r.Lookup(m.client.PublicKey()); ok {
		t.Error("a client that was said goodbye to is found")
	}
	if !idle.client.closing.Load() {
		t.Error("the idle client is not closed")
	}
}

// receiveUntilGoodbye returns the next packet that is no UDP over IPv4.
func (m *memoryTUN) receiveUntilGoodbye(t testing.TB) string {
	for {
		if pkt := m.receive(t); pkt[0]>>4 != 4 {
			return string(pkt)
		}
	}
}

func TestGoodbyeIsNotTakenForAnother(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	if err := r.Goodbye(t.Context(), m.client); err != nil {
		t.Fatal(err)
	}
	m.tun.expect(t, packet.AppendGoodbye(nil))

	// The client may be authorised anew at once, before Remove.
	again := r.start(t, 1, m.key, 7)
	r.admit(t, again, 7, usualGrants()...)
	r.exchange(t, again, 1)
	r.Remove(m.client)
	r.exchange(t, again, 2)
	if c, ok := r.Lookup(again.client.PublicKey()); !ok || c != again.client {
		t.Error("the successor was removed")
	}
}

func TestRemovedClientIsCutOff(t *testing.T) {
	r := newRig(t)
	gone, stays := r.join(t, 1, usualGrants()...), r.join(t, 2, usualGrants()...)
	r.exchange(t, gone, 1)
	r.exchange(t, stays, 1)
	r.Remove(gone.client)
	r.Remove(gone.client)
	if _, ok := r.Lookup(gone.client.PublicKey()); ok {
		t.Error("still found")
	}
	if gone.client.Session() != SessionNone {
		t.Errorf("session is %v", gone.client.Session())
	}
	path := gone.client.Path()
	r.sockets.Path(netip.Addr{}, netip.MustParseAddrPort("127.0.0.1:9")).FromPeer(gone.client.PublicKey())
	if gone.client.Path() != path {
		t.Error("the path still follows")
	}
	for i := range uint16(20) {
		gone.tun.send(t, gone.request(i))
	}
	r.tun.send(t, gone.reply(1))
	r.exchange(t, stays, 2)
	eventually(t, "the reply to be dropped", func() bool { return r.Drops().Load(drop.NoPeerState) == 1 })
	r.exchange(t, stays, 3)
	r.tun.expectNothing(t)
	gone.tun.expectNothing(t)
	if r.SendDomainStatus(gone.client, packet.DomainStatusEvent{}) {
		t.Error("a status was queued")
	}
	if err := r.Goodbye(t.Context(), gone.client); err != nil {
		t.Errorf("goodbye: %v", err)
	}
}

func TestReplacedPresharedKey(t *testing.T) {
	r := newRig(t)
	old := r.join(t, 1, usualGrants()...)
	r.exchange(t, old, 1)
	r.Remove(old.client)
	renewed := r.start(t, 1, old.key, 42)
	r.admit(t, renewed, 42, usualGrants()...)
	r.exchange(t, renewed, 2)
	old.tun.send(t, old.request(3)) // the old session is gone
	r.exchange(t, renewed, 3)
	r.tun.expectNothing(t)
}

// A peer that the engine makes from an answer that Remove has overtaken must not
// stand in the way of the next client with this key.
func TestPeerMadeBehindRemoveIsReaped(t *testing.T) {
	r := newRig(t)
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.engine.SetPeerLookupFunc(func(key device.NoisePublicKey) (*device.NewPeerConfig, bool) {
		cfg, ok := r.lookupPeer(key)
		once.Do(func() {
			close(asked)
			<-answer
		})
		return cfg, ok
	})
	old := r.join(t, 1, usualGrants()...)
	old.tun.send(t, old.request(1))
	<-asked
	r.Remove(old.client)
	renewed := r.start(t, 1, old.key, 42)
	r.admit(t, renewed, 42, usualGrants()...)
	close(answer)
	key := device.NoisePublicKey(renewed.client.PublicKey())
	eventually(t, "the peer to be reaped", func() bool {
		_, ok := r.engine.LookupActivePeer(key)
		return !ok && old.client.reaped.Load()
	})
	r.exchange(t, renewed, 2)
}

func TestPathFollowsARoamingClient(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	var previous *transport.Path
	for round := range uint16(4) {
		path := <-m.heard.paths
		if !path.Same(m.client.Path()) || path.Same(previous) {
			t.Fatalf("told about %v, path is %v, was %v", path, m.client.Path(), previous)
		}
		previous = path
		if err := m.device.IpcSet("listen_port=0\n"); err != nil {
			t.Fatal(err)
		}
		r.exchange(t, m, 10+round)
	}
	if n := m.client.Counters().ToResourcePackets.Load(); n != 5 {
		t.Errorf("%d packets passed", n)
	}
}

// Roaming says nothing about a handshake of the client's to come; a nomination of
// another path does.
func TestOnlyAMoveToAnotherPathMakesTheEngineYield(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	if m.client.yields() {
		t.Error("after authenticated traffic")
	}
	at := m.client.Path()
	if m.client.Move(at); m.client.yields() {
		t.Error("after a nomination of the path in use")
	}
	elsewhere := r.sockets.Path(at.Local().Addr(), netip.AddrPortFrom(at.Remote().Addr(), at.Remote().Port()^1))
	if m.client.Move(elsewhere); !m.client.yields() {
		t.Error("not after a nomination of another path")
	}
}

func TestDeviceIsReplacedUnderTraffic(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := uint16(0); ; i++ {
			select {
			case <-stop:
				return
			case m.tun.toEngine <- m.request(i):
			case <-time.After(patience):
				t.Error("the client's engine does not read")
				return
			}
		}
	}()
	for range 20 {
		old := r.AttachTUN(nil)
		if old != r.tun {
			t.Fatalf("detached %v", old)
		}
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		before := r.Drops().Load(drop.TUNWrite)
		eventually(t, "packets without a device to be counted", func() bool { return r.Drops().Load(drop.TUNWrite) > before })
		r.tun = newGatewayTUN()
		r.AttachTUN(r.tun)
		r.tun.receive(t)
		id := uint16(60000)
		r.tun.send(t, m.reply(id))
		m.tun.expect(t, m.reply(id))
	}
	close(stop)
	<-ended
	select {
	case err := <-r.lost:
		t.Errorf("a detached device was reported lost: %v", err)
	default:
	}
}

func TestLostDeviceIsReportedOnce(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	for round := range uint16(3) {
		r.tun.close()
		select {
		case err := <-r.lost:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("lost by %v", err)
			}
		case <-time.After(patience):
			t.Fatal("not reported")
		}
		if old := r.AttachTUN(nil); old != nil {
			t.Error("a lost device is still attached")
		}
		r.tun = newGatewayTUN()
		r.AttachTUN(r.tun)
		r.exchange(t, m, 2+round)
	}
	if len(r.lost) != 0 {
		t.Error("reported twice")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	for name, prepare := range map[string]func(*rig){
		"with a device":    func(*rig) {},
		"without a device": func(r *rig) { r.AttachTUN(nil); r.tun.close() },
		"after a loss":     func(r *rig) { r.tun.close(); <-r.lost },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			m := r.join(t, 1, usualGrants()...)
			r.exchange(t, m, 1)
			prepare(r)
			r.close()
			r.close()
			m.device.Close()
			goleak.VerifyNone(t, before)
			select {
			case <-r.tun.closed:
			default:
				t.Error("the device is open")
			}
			if _, err := r.Add(m.config(1)); !errors.Is(err, ErrKeyTaken) {
				t.Errorf("add after close: %v", err)
			}
			r.Remove(m.client)
		})
	}
}

func TestClientsComeAndGoUnderTraffic(t *testing.T) {
	r := newRig(t)
	stays := r.join(t, 1, usualGrants()...)
	r.exchange(t, stays, 1)
	stop := make(chan struct{})
	var churn sync.WaitGroup
	for n := range 3 {
		cfg := configOf(100+n, newHeardBy(), usualGrants()...)
		churn.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := r.Add(cfg)
				if err != nil {
					t.Error(err)
					return
				}
				var both sync.WaitGroup
				both.Go(func() { r.Remove(c) })
				both.Go(func() { r.Remove(c) })
				both.Wait()
			}
		})
	}
	for i := range uint16(200) {
		r.exchange(t, stays, i)
	}
	close(stop)
	churn.Wait()
	clients := 0
	r.Each(func(*Client) { clients++ })
	if clients != 1 {
		t.Errorf("%d clients left", clients)
	}
}

func TestAddRefusesWhatIsTaken(t *testing.T) {
	r := newRig(t)
	present := configOf(1, newHeardBy(), usualGrants()...)
	c, err := r.Add(present)
	if err != nil {
		t.Fatal(err)
	}
	fresh := configOf(2, newHeardBy())
	for _, x := range []struct {
		name   string
		change func(*ClientConfig)
	}{
		{"key", func(c *ClientConfig) { c.PublicKey = present.PublicKey }},
		{"flow", func(c *ClientConfig) { copy(c.PublicKey[:4], present.PublicKey[:4]) }},
		{"IPv4 address", func(c *ClientConfig) { c.TunnelV4 = present.TunnelV4 }},
		{"IPv6 address", func(c *ClientConfig) { c.TunnelV6 = present.TunnelV6 }},
	} {
		cfg := fresh
		x.change(&cfg)
		if _, err := r.Add(cfg); !errors.Is(err, ErrKeyTaken) {
			t.Errorf("%s: %v", x.name, err)
		}
		if got, ok := r.Lookup(present.PublicKey); !ok || got != c || r.byAddr.get(present.TunnelV4) != c {
			t.Errorf("%s: the present client suffered", x.name)
		}
	}
	if other, err := r.Add(fresh); err != nil || !other.Serves(fresh.TunnelV4, fresh.TunnelV6) {
		t.Errorf("nothing is taken: %v", err)
	}
	// Two rivals that are on their way out make room.
	r.Each(func(c *Client) { c.closing.Store(true) })
	cfg := configOf(3, newHeardBy())
	cfg.PublicKey, cfg.TunnelV6 = present.PublicKey, fresh.TunnelV6
	if _, err := r.Add(cfg); err != nil {
		t.Fatal(err)
	}
	clients := 0
	r.Each(func(*Client) { clients++ })
	if clients != 1 {
		t.Errorf("%d clients left", clients)
	}
}

func TestAddressesThatCannotBeOwned(t *testing.T) {
	r := newRig(t)
	for _, a := range []netip.Addr{
		netip.IPv4Unspecified(), netip.IPv6Unspecified(), server4, server6, netip.AddrFrom16(address4(1).As16()),
		policy.ProxyV4.Addr(), policy.ProxyV6.Addr(),
	} {
		cfg := configOf(1, newHeardBy())
		cfg.TunnelV6 = a
		if _, err := r.Add(cfg); !errors.Is(err, ErrAddress) {
			t.Errorf("%v: %v", a, err)
		}
	}
	for i := range 2 { // without addresses
		cfg := configOf(i+1, newHeardBy())
		cfg.TunnelV4, cfg.TunnelV6 = netip.Addr{}, netip.Addr{}
		if _, err := r.Add(cfg); err != nil {
			t.Error(err)
		}
	}
}

func TestAdoptTakesOverCallbacks(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	successor := newHeardBy()
	m.client.Adopt(successor.callbacks())
	pkt := packet.AppendControl(nil, packet.AssignedIPs, nil)
	m.tun.send(t, pkt)
	select {
	case got := <-successor.control:
		if got != string(pkt) {
			t.Errorf("got %x", got)
		}
	case <-time.After(patience):
		t.Fatal("the successor hears nothing")
	}
	if len(m.heard.control) != 0 {
		t.Error("the predecessor heard it")
	}
}

func TestLargestPacketsPassBothWays(t *testing.T) {
	r := newRig(t)
	m := r.join(t, 1, usualGrants()...)
	r.exchange(t, m, 1)
	for size := packet.MaxSize - 20; size <= packet.MaxSize; size++ {
		there, back := udp(address4(1), server4, 1, 1000, size-28), udp(server4, address4(1), 1000, 1, size-28)
		for _, p := range [][]byte{there, back} {
			for i := 28; i+2 <= len(p); i += 2 {
				binary.BigEndian.PutUint16(p[i:], uint16(i*size))
			}
		}
		m.tun.send(t, there)
		r.tun.expect(t, there)
		r.tun.send(t, back)
		m.tun.expect(t, back)
	}
}
