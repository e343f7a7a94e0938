package actors

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// peerRig is a stage with the peer of client 1.
type peerRig struct {
	*stage
	pid  actorkit.PID
	peer *peer // of the last incarnation; touched in its turn only
}

func newPeerRig(t testing.TB, relays ...messages.RelayChanged) *peerRig {
	t.Helper()
	if relays == nil {
		relays = []messages.RelayChanged{relayOffer("relay-1", "127.0.0.9:50001")}
	}
	r := &peerRig{stage: newStage(t, newTestPlane(t, ""))}
	r.plane.offers.store(offers(1, relays...))
	r.plane.players.nat = func(p *Plane, n *tunnel.NAT) actorkit.Actor { return faulty{newNAT(p, n)} }
	env := peerEnv{Plane: r.plane.Plane, id: clientID(1), portal: r.portal.pid, transport: r.transport.pid, dns: r.dns.pid}
	r.pid = r.peers.spawn(KindPeer, clientID(1), func() actorkit.Actor {
		r.peer = newPeer(env)
		return faulty{r.peer}
	})
	if e := next[messages.PeerEmpty](t, r.peers); e.Last != 0 {
		t.Error("a new peer confirms that it is empty")
	}
	return r
}

func (r *peerRig) tell(msgs ...any) {
	r.t.Helper()
	for _, m := range msgs {
		r.system.Send(r.pid, m)
	}
	r.settle(r.pid)
}

// grants are those in the store, by resource.
func (r *peerRig) grants() []string {
	var ids []string
	for _, g := range r.plane.store.get(clientID(1)).Grants.List() {
		ids = append(ids, g.Resource.ID)
	}
	return ids
}

// sent takes everything that went to the portal.
func (s *stage) sent() (out []messages.SendToPortal) {
	s.t.Helper()
	s.portal.do(func(actorkit.Context) {})
	for {
		select {
		case m := <-s.portal.got:
			if sent, ok := m.(messages.SendToPortal); ok {
				out = append(out, sent)
			}
		default:
			return out
		}
	}
}

// granted has client 1 connected with a grant for resource 10.
func (r *peerRig) granted() *tunnel.Client {
	r.t.Helper()
	r.tell(authorize(authorization(1, 10)))
	r.sent()
	return r.client()
}

func (r *peerRig) client() *tunnel.Client {
	c, ok := r.plane.Tunnel.Lookup(authorization(1, 0).Client.PublicKey)
	if !ok {
		return nil
	}
	return c
}

// candidatesOf returns types and addresses of the lines of m.
func candidatesOf(m portal.Outgoing) (out []string) {
	var lines []string
	switch m := m.(type) {
	case portal.BroadcastICECandidates:
		lines = m.Candidates
	case portal.BroadcastInvalidatedICECandidates:
		lines = m.Candidates
	}
	for _, l := range lines {
		f := strings.Fields(l)
		out = append(out, f[7]+" "+f[4]+":"+f[5])
	}
	return out
}

const (
	asHost  = "host 127.0.0.1:52625"
	asSrflx = "srflx 127.0.0.3:40000"
	asRelay = "relay 127.0.0.9:50001"
)

// Rules 27 and 28, T-23.
func TestAnAuthorizationIsAcknowledgedBeforeTheCandidates(t *testing.T) {
	for _, generation := range []portal.Generation{portal.V1, portal.V2} {
		r := newPeerRig(t)
		a := authorization(1, 10, func(a *portal.Authorize) { a.Generation = generation })
		r.tell(authorize(a))
		out := r.sent()
		if len(out) != 2 {
			t.Fatalf("%d messages to the portal, want 2", len(out))
		}
		if ack, ok := out[0].Message.(portal.Acknowledge); !ok || ack != a.Acknowledge() || out[0].Connection != 7 {
			t.Errorf("first %T %v on connection %d", out[0].Message, out[0].Message, out[0].Connection)
		}
		if got := candidatesOf(out[1].Message); !slices.Equal(got, []string{asHost, asSrflx, asRelay}) || out[1].Connection != 0 {
			t.Errorf("candidates %q on connection %d", got, out[1].Connection)
		}
		if !admits(t, r.plane, 1, 10) || admits(t, r.plane, 1, 11) {
			t.Error("the policy does not follow the grant")
		}
		if s := r.plane.store.get(clientID(1)); !s.serves(a) || !slices.Equal(r.grants(), []string{resourceID(10)}) {
			t.Errorf("store holds %v", s)
		}
	}
}

// Rule 30 and T-28.
func TestTheSameParametersKeepTheSessionAndSignalEverythingAgain(t *testing.T) {
	r := newPeerRig(t)
	before := r.granted()
	r.tell(authorize(authorization(1, 11)))
	if r.client() != before {
		t.Error("the session was replaced")
	}
	out := r.sent()
	if len(out) != 2 {
		t.Fatalf("%d messages to the portal, want 2", len(out))
	}
	if got := candidatesOf(out[1].Message); !slices.Equal(got, []string{asHost, asSrflx, asRelay}) {
		t.Errorf("candidates %q", got)
	}
	if got := r.grants(); !slices.Equal(got, []string{resourceID(10), resourceID(11)}) {
		t.Errorf("grants %q", got)
	}
}

// Rule 31: filters and end of a grant are those of the last authorization.
func TestAuthorizingAResourceAgainReplacesItsGrant(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	again := authorization(1, 10, func(a *portal.Authorize) {
		a.Resource.Filters = []portal.Filter{{Protocol: portal.FilterTCP, First: 443, Last: 443}}
		a.ExpiresAt = a.ExpiresAt.Add(1)
	})
	r.tell(authorize(again))
	g := r.plane.store.get(clientID(1)).Grants.List()
	if len(g) != 1 || len(g[0].Resource.Filters) != 1 || !g[0].ExpiresAt.Equal(again.ExpiresAt) || admits(t, r.plane, 1, 10) {
		t.Errorf("grants %+v", g)
	}
}

// Rule 30 and T-29.
func TestAnyChangedParameterReplacesTheConnection(t *testing.T) {
	for _, tc := range []struct {
		name      string
		change    func(*portal.Authorize)
		keepOther bool // grants of other resources
	}{
		{"public key", func(a *portal.Authorize) { a.Client.PublicKey[31] = 1 }, true},
		{"preshared key", func(a *portal.Authorize) { a.Client.PresharedKey[31] = 1 }, true},
		{"remote ufrag", func(a *portal.Authorize) { a.ClientICE.Username = "else" }, true},
		{"remote password", func(a *portal.Authorize) { a.ClientICE.Password = "another-password-of-the-client" }, true},
		{"local ufrag", func(a *portal.Authorize) { a.GatewayICE.Username = "else" }, true},
		{"local password", func(a *portal.Authorize) { a.GatewayICE.Password = "another-password-of-the-gateway" }, true},
		// Dataplane rule 43: another address is another peer.
		{"tunnel address", func(a *portal.Authorize) { a.Client.IPv4 = netip.MustParseAddr("100.64.9.9") }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newPeerRig(t)
			before := r.granted()
			r.tell(messages.AddCandidates{Candidates: []string{remoteHost}})
			a := authorization(1, 11, tc.change)
			r.tell(authorize(a))
			after, ok := r.plane.Tunnel.Lookup(a.Client.PublicKey)
			if !ok || after == before {
				t.Fatal("the session was not replaced")
			}
			clients := 0
			r.plane.Tunnel.Each(func(*tunnel.Client) { clients++ })
			if clients != 1 {
				t.Errorf("%d clients in the packet path", clients)
			}
			if len(r.plane.store.get(clientID(1)).Remote) != 0 {
				t.Error("candidates of the old connection are kept")
			}
			if got := slices.Contains(r.grants(), resourceID(10)); got != tc.keepOther {
				t.Errorf("the other grant is kept: %v", got)
			}
			if out := r.sent(); len(out) != 2 {
				t.Errorf("%d messages to the portal", len(out))
			}
		})
	}
}

// Rule 29 and T-54.
func TestWithoutAUsableRelayNothingIsAcknowledged(t *testing.T) {
	failed := relayOffer("relay-1", "")
	failed.Usable = false
	r := newPeerRig(t, failed)
	r.tell(authorize(authorization(1, 10)))
	if out := r.sent(); len(out) != 0 {
		t.Fatalf("sent %+v", out)
	}
	next[messages.WantRelays](t, r.transport) // who knows when the portal was asked last
	if r.client() != nil || len(r.grants()) != 0 {
		t.Error("something was granted")
	}
	// Nothing is left of it: the peer can end.
	next[messages.PeerEmpty](t, r.peers)

	r.tell(offersAfter(r, relayOffer("relay-2", "")), authorize(authorization(1, 10)))
	if out := r.sent(); len(out) == 0 || out[0].Message.Event() != "authorization_created" {
		t.Errorf("sent %+v", out)
	}
}

// A resource inside the tunnel's own range grants nothing, which somebody should
// hear of.
func TestAResourceThatCannotBeReachedIsReported(t *testing.T) {
	r := newPeerRig(t)
	r.tell(authorize(authorization(1, 10, func(a *portal.Authorize) { a.Resource.Network = policy.TunnelV4 })))
	if !strings.Contains(r.plane.log.String(), "resource cannot be reached") {
		t.Error("nothing is logged")
	}
	if out := r.sent(); len(out) != 2 {
		t.Errorf("%d messages to the portal", len(out))
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.tell(messages.AddCandidates{Candidates: []string{remoteHost, remoteBad}}, messages.Revoke{ResourceID: resourceID(10)})
	if log := r.plane.log.String(); strings.Contains(log, "s3cret") || !strings.Contains(log, "INFO peer: access granted") {
		t.Errorf("log:\n%s", log)
	}
}

func offersAfter(r *peerRig, relays ...messages.RelayChanged) messages.RelaysChanged {
	m := offers(r.plane.offers.load().Version+1, relays...)
	r.plane.offers.store(m)
	return m
}

func (s *stage) dropped(reason drop.Reason) uint64 { return s.plane.Drops.Load(reason) }
