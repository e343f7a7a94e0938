package actors

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// Rule 34, T-33 and T-55.
func TestCandidatesAreTakenOneByOneAndGetTheirChannels(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.tell(messages.AddCandidates{Candidates: []string{remoteBad, remoteHost, "rubbish", remoteSrflx, remoteHost}})
	if got := r.dropped(drop.CandidateUnusable); got != 2 {
		t.Errorf("%d candidates dropped, want 2", got)
	}
	if got := r.plane.store.get(clientID(1)).Remote; len(got) != 2 {
		t.Errorf("candidates %v", got)
	}
	// The made-up one is the public address with the port of the host (T-32).
	bind := seek[messages.BindChannels](t, r.transport)
	if bind.RelayID != "relay-1" || len(bind.Peers) != 2 || bind.Peers[0] != addr("127.0.0.5:6001") || bind.Peers[1] != addr("127.0.0.5:5001") {
		t.Errorf("channels %+v", bind)
	}
	r.tell(messages.RemoveCandidates{Candidates: []string{remoteHost, "rubbish"}})
	if got := r.plane.store.get(clientID(1)).Remote; len(got) != 1 || got[0].Type != ice.ServerReflexive {
		t.Errorf("candidates %v", got)
	}
	if got := r.dropped(drop.CandidateUnusable); got != 3 {
		t.Errorf("%d candidates dropped, want 3", got)
	}
}

func TestCandidatesOfOneClientAreBounded(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	var lines []string
	for i := range maxRemoteCandidates + 5 {
		c := ice.Candidate{Type: ice.Host, Addr: addr(fmt.Sprintf("127.0.0.1:%d", 1000+i)), Priority: 1}
		lines = append(lines, c.Marshal(""))
	}
	r.tell(messages.AddCandidates{Candidates: lines})
	if got := len(r.plane.store.get(clientID(1)).Remote); got != maxRemoteCandidates {
		t.Errorf("%d candidates are kept", got)
	}
	if got := r.dropped(drop.CandidateUnusable); got != 5 {
		t.Errorf("%d dropped", got)
	}
}

// T-31.
func TestCandidatesWithoutAConnectionAreDropped(t *testing.T) {
	r := newPeerRig(t)
	r.tell(messages.AddCandidates{Candidates: []string{remoteHost}}, messages.RemoveCandidates{Candidates: []string{remoteHost}})
	if got := r.dropped(drop.ClientUnknown); got != 2 {
		t.Errorf("%d dropped, want 2", got)
	}
}

// Transport §6 row 8, T-61.
func TestAClientWithoutCandidatesLosesItsConnectionAndKeepsItsGrants(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.expectTimer(candidateTimer, true, "waits for the first candidate")
	r.tell(messages.AddCandidates{Candidates: []string{remoteBad}})
	r.expectTimer(candidateTimer, true, "waits for a candidate that can be used")
	r.tell(candidatesMissed{})
	if r.client() != nil || len(r.grants()) != 1 {
		t.Errorf("client %v, grants %q", r.client(), r.grants())
	}
	// The next authorization makes a new connection, as the state is kept.
	r.tell(authorize(authorization(1, 11)))
	if out := r.sent(); len(out) != 2 || r.client() == nil || !admits(t, r.plane, 1, 10) {
		t.Errorf("sent %+v", out)
	}
	r.tell(messages.AddCandidates{Candidates: []string{remoteHost}})
	r.expectTimer(candidateTimer, false, "has a candidate")
}

// Transport §6 rows 13 and 19, T-61.
func TestAClientThatIsGoneLosesItsConnectionAndKeepsItsGrants(t *testing.T) {
	for name, lose := range map[string]func(*connection){
		"its keys were wiped":     func(c *connection) { c.client.Counters().LastHandshake.Store(1) },
		"its agent heard nothing": func(c *connection) { c.failed.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newPeerRig(t)
			r.tell(messages.ClientChanged{})
			r.granted()
			r.tell(messages.ClientChanged{})
			if r.client() == nil {
				t.Fatal("dropped for nothing")
			}
			r.look(r.pid, func(actorkit.Context) { lose(r.peer.conn) })
			r.tell(messages.ClientChanged{})
			if r.client() != nil || len(r.grants()) != 1 {
				t.Errorf("client %v, grants %q", r.client(), r.grants())
			}
			r.expectTimer(candidateTimer, false, "has no connection")
			r.expectTimer(expiryTimer, true, "has a grant")
		})
	}
}

// T-26, T-27, T-53.
func TestChangesOfRelaysAreSignalled(t *testing.T) {
	other := func(relayed string) messages.RelayChanged { return relayOffer("relay-2", relayed) }
	failed := relayOffer("relay-1", "")
	failed.Usable = false
	noShared := relayOffer("relay-1", "127.0.0.9:50001")
	noShared.Shared = nil
	for _, tc := range []struct {
		name        string
		relays      []messages.RelayChanged
		gone, fresh []string
		relay       string
	}{
		{"nothing changed", []messages.RelayChanged{relayOffer("relay-1", "127.0.0.9:50001")}, nil, nil, "relay-1"},
		{"the allocation was lost", []messages.RelayChanged{relayOffer("relay-1", "")}, []string{asRelay}, nil, "relay-1"},
		{"it was made again", []messages.RelayChanged{relayOffer("relay-1", "127.0.0.9:50002")},
			[]string{asRelay}, []string{"relay 127.0.0.9:50002"}, "relay-1"},
		{"the relay was replaced by another one", []messages.RelayChanged{other("127.0.0.8:50001")},
			[]string{asRelay}, []string{"relay 127.0.0.8:50001"}, "relay-2"},
		{"another one takes over from a relay that failed", []messages.RelayChanged{failed, other("127.0.0.8:50001")},
			[]string{asRelay}, []string{"relay 127.0.0.8:50001"}, "relay-2"},
		{"another relay is nobody's business", []messages.RelayChanged{relayOffer("relay-1", "127.0.0.9:50001"), other("127.0.0.8:50001")},
			nil, nil, "relay-1"},
		{"host and reflexive addresses are never taken back", []messages.RelayChanged{noShared}, nil, nil, "relay-1"},
		{"no relay is left", nil, []string{asRelay}, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newPeerRig(t)
			before := r.granted()
			r.tell(offersAfter(r, tc.relays...))
			var gone, fresh []string
			for _, m := range r.sent() {
				switch m.Message.(type) {
				case portal.BroadcastInvalidatedICECandidates:
					gone = append(gone, candidatesOf(m.Message)...)
					if fresh != nil {
						t.Error("announced before taken back")
					}
				case portal.BroadcastICECandidates:
					fresh = append(fresh, candidatesOf(m.Message)...)
				}
			}
			if !slices.Equal(gone, tc.gone) || !slices.Equal(fresh, tc.fresh) {
				t.Errorf("gone %q, fresh %q", gone, fresh)
			}
			s := r.plane.store.get(clientID(1))
			if s.RelayID != tc.relay || r.client() != before {
				t.Errorf("relay %q, session kept: %v", s.RelayID, r.client() == before)
			}
			if !contains(s.Signalled, hostShared) {
				t.Error("the host address is not served any more")
			}
		})
	}
}

func TestAnOlderStateOfTheRelaysIsIgnored(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	r.tell(offers(1, relayOffer("relay-9", "127.0.0.7:50001")), offers(0))
	if out := r.sent(); len(out) != 0 {
		t.Errorf("sent %+v", out)
	}
}

// T-60.
func TestAGoodbyeDropsConnectionAndGrants(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	key := authorization(1, 0).Client.PublicKey
	r.tell(messages.ControlReceived{Key: portal.PublicKey{99}, Packet: packet.AppendGoodbye(nil)})
	if r.client() == nil || r.dropped(drop.ControlUnknown) != 1 {
		t.Error("a goodbye of another session counts")
	}
	r.tell(messages.ControlReceived{Key: key, Packet: packet.AppendGoodbye(nil)})
	if r.client() != nil || len(r.grants()) != 0 || len(r.plane.store.ids()) != 0 {
		t.Error("something is left of the client")
	}
	if e := next[messages.PeerEmpty](t, r.peers); e.ClientID != clientID(1) || e.Last != 0 {
		t.Errorf("reported %+v", e)
	}
}

func TestControlPacketsThatMeanNothingAreCounted(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	key := authorization(1, 0).Client.PublicKey
	for _, pkt := range [][]byte{nil, {1, 2, 3}, packet.AppendControl(nil, 77, nil), packet.AppendControl(nil, packet.AssignedIPs, []byte("{"))} {
		r.tell(messages.ControlReceived{Key: key, Packet: pkt})
	}
	if got := r.dropped(drop.ControlUnknown); got != 4 {
		t.Errorf("%d counted, want 4", got)
	}
	// A set-up of a domain is refused; without a session the answer has no way.
	body, err := packet.AppendAssignedIPs(nil, packet.AssignedIPsEvent{Resource: "0ab3a3a7-6a49-4b1c-8c0f-0a3d9ac7c2f4", Domain: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	r.tell(messages.ControlReceived{Key: key, Packet: body})
	if got := r.client().Drops().Load(drop.NotConnected); got != 1 {
		t.Errorf("%d answers without a session, want 1", got)
	}
}

// A client cannot fill the mailbox of its peer.
func TestFloodsFromThePacketPathAreBounded(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	var callbacks tunnel.Callbacks
	r.look(r.pid, func(ctx actorkit.Context) { callbacks = r.peer.callbacks(ctx) })
	held, free := make(chan struct{}), make(chan struct{})
	r.system.Send(r.pid, act(func(actorkit.Context) { close(held); <-free }))
	await(t, held, "the turn before")
	for range 10 * controlLimit {
		callbacks.Path(nil)
		callbacks.Session(tunnel.SessionEstablished)
		callbacks.Control([]byte("x"))
	}
	pending := 0
	for _, a := range r.system.Stats().Actors {
		if a.Path == "peers/"+clientID(1) {
			pending = a.Pending
		}
	}
	close(free)
	if want := controlLimit + changesLimit; pending != want {
		t.Errorf("%d messages wait, want %d", pending, want)
	}
	r.settle(r.pid)
	r.look(r.pid, func(actorkit.Context) { r.peer.rate.full.Store(0) })
	if !callbacks.Control([]byte("x")) || r.peer.control.Pending() > 1 {
		t.Error("no place was given back")
	}
	r.settle(r.pid)
}

// expectTimer checks whether a timer of the peer is armed.
func (r *peerRig) expectTimer(key timerKey, armed bool, why string) {
	r.t.Helper()
	r.look(r.pid, func(actorkit.Context) {
		if r.peer.timers.Armed(key) != armed {
			r.t.Errorf("%s: timer armed is %v", why, !armed)
		}
	})
}

// A portal may hand the client our candidates before the connection that they
// belong to.
func TestCandidatesAreRepeatedForAClientThatIsNotHeard(t *testing.T) {
	r := newPeerRig(t)
	began := time.Now()
	r.tell(authorize(authorization(1, 10)))
	var batches [][]string
	eventually(t, func() bool {
		for _, m := range r.sent() {
			if c, ok := m.Message.(portal.BroadcastICECandidates); ok {
				batches = append(batches, c.Candidates)
			}
		}
		return len(batches) == 2
	}, "the candidates are repeated")
	if took := time.Since(began); took < repeatAfter {
		t.Errorf("after %v", took)
	}
	if !slices.Equal(batches[0], batches[1]) {
		t.Errorf("at first %q, then %q", batches[0], batches[1])
	}

	r.look(r.pid, func(actorkit.Context) { r.peer.conn.checked.Store(true) })
	r.tell(repeatCandidates{})
	if sent := r.sent(); len(sent) != 0 {
		t.Errorf("a client that was heard is told %+v", sent)
	}
}
