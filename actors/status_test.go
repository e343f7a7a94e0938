package actors

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/messages"
)

func TestStatusOfARunningGateway(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	r.plane.Drops.Add(drop.NoPath, 2)
	r.plane.Tunnel.Drops().Add(drop.NoPath, 1)

	var s admin.Status
	eventually(t, func() bool {
		s = r.tree.Status(time.Now())
		return len(s.Peers) == 1 && s.Peers[0].Path != nil && s.Peers[0].ToResources.Packets > 0
	}, "the client in the status")
	if !s.Ready || s.Missing == nil || len(s.Missing) != 0 || s.Phase != admin.PhaseRunning || !s.Portal.Joined {
		t.Errorf("ready %v, missing %q, phase %s, portal %+v", s.Ready, s.Missing, s.Phase, s.Portal)
	}
	if s.Portal.Route != "v2" || s.Portal.Generation != "v2" || time.Since(s.Portal.Since) > patience {
		t.Errorf("portal %+v", s.Portal)
	}
	if key := portal.PublicKey(r.plane.PublicKey()); s.Key.Epoch != 1 || s.Key.Public != key.String() {
		t.Errorf("key %+v", s.Key)
	}
	if len(s.Tunnel) == 0 || len(s.Relays) != 1 || !s.Relays[0].Usable || len(s.Relays[0].Relayed) == 0 || !s.Relays[0].Server.IsValid() {
		t.Errorf("tunnel %v, relays %+v", s.Tunnel, s.Relays)
	}
	if s.Drops["no_path"] < 3 {
		t.Errorf("drops %v", s.Drops)
	}
	p := s.Peers[0]
	if p.ClientID != c.id || p.Session != "established" || !slices.Contains(p.Addresses, c.ipv4) ||
		p.PublicKey != portal.PublicKey(wg.key.PublicKey().Bytes()).String() {
		t.Errorf("peer %+v", p)
	}
	if p.Path.Kind != admin.Direct || !p.Path.Remote.IsValid() || p.Path.Local.Port() != r.plane.Bind.Sockets().LocalPort(transport.IPv4) {
		t.Errorf("path %+v", p.Path)
	}
	if p.HandshakeAge == nil || *p.HandshakeAge < 0 || *p.HandshakeAge > patience.Seconds() || p.LastActive.IsZero() || p.ToResources.Bytes == 0 {
		t.Errorf("handshake %v, active %v, traffic %+v", p.HandshakeAge, p.LastActive, p.ToResources)
	}
	if len(p.Grants) != 1 || p.Grants[0].ResourceID != id || p.Grants[0].Name != "network" || p.Grants[0].Kind != "cidr" ||
		p.Grants[0].Address != network(10).String() || p.Grants[0].ExpiresAt.IsZero() {
		t.Errorf("grants %+v", p.Grants)
	}
	if s.NAT.Clients != 0 || len(s.DNS.Serving) == 0 {
		t.Errorf("nat %+v, dns %+v", s.NAT, s.DNS)
	}
	for _, path := range []string{"gateway", "gateway/portal", "gateway/peers/" + c.id} {
		i := slices.IndexFunc(s.Actors, func(a admin.Actor) bool { return a.Path == path })
		if i < 0 || s.Actors[i].State != admin.ActorRunning || s.Actors[i].Handled == 0 && path != "gateway" {
			t.Errorf("actor %s is missing or not well", path)
		}
	}
	noSecrets(t, r.plane, s)
}

// noSecrets checks that nothing of what opens something is in a text form of v.
func noSecrets(t *testing.T, p *testPlane, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"s3cret", "gateway-token", publicKeyText(p.keys.load().private)}
	for _, id := range p.store.ids() {
		c := p.store.get(id)
		secrets = append(secrets, publicKeyText(c.Client.PresharedKey), c.ClientICE.Password, c.GatewayICE.Password,
			c.ClientICE.Username, c.GatewayICE.Username)
	}
	for _, r := range p.relays.load() {
		secrets = append(secrets, r.Username, r.Password)
	}
	for _, secret := range secrets {
		if secret != "" && strings.Contains(string(text), secret) {
			t.Errorf("%q is in it", secret)
		}
	}
}

func TestStatusShowsAFailureAndTheRestart(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	r.tree.system.Send(r.pid(KindPeers), boom{})
	eventually(t, func() bool {
		for _, a := range r.tree.Status(time.Now()).Actors {
			if a.Path == "gateway/peers" {
				return a.Restarts == 1 && a.Failures == 1 && a.State == admin.ActorRunning &&
					strings.Contains(a.LastFailure, "told to panic") && time.Since(a.FailedAt) < patience
			}
		}
		return false
	}, "the restart in the status")
}

func TestStatusBeforeTheFirstActor(t *testing.T) {
	p := newTestPlane(t, "")
	system := actorkit.NewSystem(actorkit.Config{Table: Table})
	t.Cleanup(func() { stopSystem(t, system) })
	s := (&Tree{plane: p.Plane, system: system}).Status(time.Now())
	if s.Phase != admin.PhaseStarting || s.Ready || !slices.Equal(s.Missing, []string{"portal", "tun", "relay"}) {
		t.Errorf("phase %s, ready %v, missing %q", s.Phase, s.Ready, s.Missing)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"peers", "relays", "actors", "tunnel_addresses", "missing", "drops"} {
		if strings.Contains(string(text), `"`+list+`":null`) {
			t.Errorf("%s is null", list)
		}
	}
}

func TestStatusDuringTheEndAndAfterwards(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	var asking sync.WaitGroup
	ended := make(chan struct{})
	asking.Go(func() {
		for {
			if s := r.tree.Status(time.Now()); s.Key.Public == "" {
				t.Error("a status without a key")
			}
			select {
			case <-ended:
				return
			default:
			}
		}
	})
	stopTree(t, r.tree)
	close(ended)
	asking.Wait()
	if s := r.tree.Status(time.Now()); len(s.Actors) != 0 || s.Portal.Joined || s.Portal.Route != "" || s.Portal.Since.IsZero() || s.Ready {
		t.Errorf("after the end: %d actors, portal %+v, ready %v", len(s.Actors), s.Portal, s.Ready)
	}
}

func TestStatusDuringAReset(t *testing.T) {
	p := newTestPlane(t, "")
	newStage(t, p).introduce()
	if got := p.phase(); got != admin.PhaseRunning {
		t.Errorf("phase %s", got)
	}
	p.resetting.Store(true)
	if got := p.phase(); got != admin.PhaseResetting {
		t.Errorf("phase %s, want resetting", got)
	}
	p.resetting.Store(false)
	p.rebinding.Store(true)
	if got := p.phase(); got != admin.PhaseResetting {
		t.Errorf("phase %s while sockets are bound, want resetting", got)
	}
}

// populate puts n clients with g grants each into the store.
func populate(p *testPlane, n, g int) {
	for i := range n {
		state := clientState{Client: portal.Client{IPv4: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})}}
		for j := range g {
			state.Grants = state.Grants.Upsert(policy.Grant{Resource: policy.Resource{
				ID: fmt.Sprintf("resource-%d", j), Name: "name", Kind: policy.CIDR, Network: network(byte(j)),
			}})
		}
		p.store.put(fmt.Sprintf("client-%05d", i), state)
	}
}

func TestStatusOfAThousandClients(t *testing.T) {
	p := newTestPlane(t, "")
	populate(p, 1000, 3)
	system := actorkit.NewSystem(actorkit.Config{Table: Table})
	t.Cleanup(func() { stopSystem(t, system) })
	s := (&Tree{plane: p.Plane, system: system}).Status(time.Now())
	if len(s.Peers) != 1000 || s.Omitted != (admin.Omitted{}) {
		t.Errorf("%d clients, omitted %+v", len(s.Peers), s.Omitted)
	}
	for _, peer := range s.Peers {
		if len(peer.Grants) != 3 || peer.Session != admin.SessionAbsent || peer.PublicKey != "" || peer.Path != nil || peer.HandshakeAge != nil {
			t.Fatalf("%+v", peer)
		}
	}
}

func TestStatusCountsTranslations(t *testing.T) {
	tree, p := explainable(t)
	before := tree.Status(time.Now())
	if want := (admin.NAT{Clients: 1, Proxies: 2}); before.NAT != want || len(before.Peers) != 1 || *before.Peers[0].NAT != want {
		t.Errorf("nat %+v", before.NAT)
	}
	var v packet.View
	from, to := netip.AddrPortFrom(authorization(1, 10).Client.IPv4, 4000), netip.AddrPortFrom(proxy4, 443)
	if r := v.Parse(packettest.UDP(from, to, nil)); r != drop.None {
		t.Fatal(r)
	}
	p.store.get(clientID(1)).NAT.Table().Open(&v, time.Now().UnixNano())
	if want := (admin.NAT{Clients: 1, Proxies: 2, Sessions: 1, Opened: 1}); tree.Status(time.Now()).NAT != want {
		t.Errorf("nat %+v, want %+v", tree.Status(time.Now()).NAT, want)
	}
}

func TestAStatusIsBounded(t *testing.T) {
	p := newTestPlane(t, "")
	populate(p, maxStatusPeers+7, 11)
	peers, omitted, grants := p.describePeers(time.Now(), messages.RelaysChanged{})
	total := 0
	for _, peer := range peers {
		total += len(peer.Grants)
	}
	if len(peers) != maxStatusPeers || omitted != 7 || total != maxStatusGrants || grants != 11*maxStatusPeers-maxStatusGrants {
		t.Errorf("%d clients and %d grants, left out %d and %d", len(peers), total, omitted, grants)
	}

	actors := []actorkit.ActorStats{{Path: "gateway", Kind: KindGateway, Phase: "running"}}
	for i := range maxStatusActors + 5 {
		actors = append(actors, actorkit.ActorStats{Path: fmt.Sprintf("gateway/peers/%05d", i), Kind: KindPeer, Phase: "running"})
	}
	actors[len(actors)-1].Phase = "failed"
	actors = append(actors, actorkit.ActorStats{Path: "gateway/tun", Kind: KindTUN, Phase: "running", LastFailure: strings.Repeat("é", maxFailureText)})
	shown, left := describeActors(actors)
	if len(shown) != maxStatusActors || left != 7 {
		t.Errorf("%d actors, left out %d", len(shown), left)
	}
	if shown[0].Path != "gateway" || shown[len(shown)-2].State != "failed" || shown[len(shown)-1].Path != "gateway/tun" {
		t.Errorf("not the actors that matter: %+v, %+v", shown[0], shown[len(shown)-2:])
	}
	if n := len(shown[len(shown)-1].LastFailure); n > maxFailureText+len("…") {
		t.Errorf("the last failure has %d bytes", n)
	}
}

func TestARelayedPathNamesItsRelay(t *testing.T) {
	p := newTestPlane(t, "")
	relay := p.Bind.Sockets().AddRelay(addr("127.0.0.7:3478"))
	t.Cleanup(func() { p.Bind.Sockets().RemoveRelay(relay) })
	path := relay.SetChannel(transport.MinChannel, addr("127.0.0.8:6001"), addr("127.0.0.9:50001"))
	known := offers(1, relayOffer("relay-0", "127.0.0.9:50000"), relayOffer("relay-1", "127.0.0.9:50001"))
	want := admin.Path{Kind: admin.Relayed, Local: addr("127.0.0.9:50001"), Remote: addr("127.0.0.8:6001"), Relay: "relay-1"}
	if got := describePath(path, known); *got != want {
		t.Errorf("path %+v, want %+v", *got, want)
	}
	want.Relay = ""
	if got := describePath(path, messages.RelaysChanged{}); *got != want {
		t.Errorf("when the relay is gone: %+v, want %+v", *got, want)
	}
}

func BenchmarkStatusOfAThousandClients(b *testing.B) {
	p := newTestPlane(b, "")
	populate(p, 1000, 3)
	system := actorkit.NewSystem(actorkit.Config{Table: Table})
	b.Cleanup(func() { stopSystem(b, system) })
	tree := &Tree{plane: p.Plane, system: system}
	b.ReportAllocs()
	for b.Loop() {
		tree.Status(time.Now())
	}
}
