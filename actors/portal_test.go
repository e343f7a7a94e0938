package actors

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// portalRig is a stage with the portal actor and a portal for it.
type portalRig struct {
	*stage
	pid   actorkit.PID
	actor *portalActor // of the last incarnation; touched in its turn only
	lab   *labportal.Server
	seen  uint64 // sequence number of the last event waited for
}

func startPortal(t testing.TB, cfg labportal.Config) *labportal.Server {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	s, err := labportal.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the portal: %v", err)
		}
	})
	return s
}

// newPortalRig has the actor dial as soon as dial is called.
func newPortalRig(t testing.TB, cfg labportal.Config) *portalRig {
	t.Helper()
	lab := startPortal(t, cfg)
	r := &portalRig{lab: lab, stage: newStage(t, newTestPlane(t, lab.URL()))}
	r.introduce()
	return r
}

func (r *portalRig) dial() {
	r.t.Helper()
	r.pid = r.root.spawn(KindPortal, "portal", func() actorkit.Actor {
		r.actor = newPortal(r.plane.Plane)
		return faulty{r.actor}
	})
}

// joined dials and waits until init has been passed on.
func newJoinedRig(t testing.TB, cfg labportal.Config) *portalRig {
	t.Helper()
	r := newPortalRig(t, cfg)
	r.dial()
	r.init()
	return r
}

// init waits for the parts of an init.
func (r *portalRig) init() portal.Init {
	r.t.Helper()
	next[messages.ConfigureTUN](r.t, r.tun)
	next[messages.UpdateRelays](r.t, r.transport)
	m := next[messages.FromPortal](r.t, r.peers)
	msg, ok := m.Message.(portal.Init)
	if !ok {
		r.t.Fatalf("peers got %T", m.Message)
	}
	r.event(labportal.PeerJoined)
	return msg
}

// event waits for the next event of a kind.
func (r *portalRig) event(kind labportal.EventKind) labportal.Event {
	r.t.Helper()
	e := waitEvent(r.t, r.lab, r.seen, kind, nil)
	r.seen = e.Seq
	return e
}

func waitEvent(t testing.TB, lab *labportal.Server, after uint64, kind labportal.EventKind, match func(labportal.Event) bool) labportal.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e, err := lab.WaitEvent(ctx, after, func(e labportal.Event) bool {
		return e.Kind == kind && (match == nil || match(e))
	})
	if err != nil {
		t.Fatalf("no event %s in %+v: %v", kind, lab.Events(after), err)
	}
	return e
}

// push has the portal send an event.
func (r *portalRig) push(event string, payload any) {
	r.t.Helper()
	if err := r.lab.Push("", event, payload); err != nil {
		r.t.Fatal(err)
	}
}

// fromPortal returns the next message to peers, which must be an M.
func fromPortal[M portal.Message](r *portalRig) (M, messages.Connection) {
	r.t.Helper()
	m := next[messages.FromPortal](r.t, r.peers)
	msg, ok := m.Message.(M)
	if !ok {
		r.t.Fatalf("peers got %T, want %T", m.Message, msg)
	}
	return msg, m.Connection
}

func (r *portalRig) send(m portal.Outgoing, connection messages.Connection) {
	r.t.Helper()
	r.system.Send(r.pid, messages.SendToPortal{Message: m, Connection: connection})
	r.settle(r.pid)
}

func reject(n byte) map[string]string {
	return map[string]string{"client_id": clientID(1), "resource_id": resourceID(n)}
}

// grantPayload is an authorization on the wire.
func grantPayload(a portal.Authorize) map[string]any {
	b64 := func(k [32]byte) string { return base64.StdEncoding.EncodeToString(k[:]) }
	return map[string]any{
		"ref":      string(a.Ref),
		"resource": map[string]any{"id": a.Resource.ID, "type": "cidr", "name": a.Resource.Name, "address": a.Resource.Address, "filters": []any{}},
		"client": map[string]any{
			"id": a.Client.ID, "public_key": b64(a.Client.PublicKey), "preshared_key": b64(a.Client.PresharedKey),
			"ipv4": a.Client.IPv4.String(), "ipv6": a.Client.IPv6.String(),
		},
		"client_ice_credentials":  map[string]string{"username": a.ClientICE.Username, "password": a.ClientICE.Password},
		"gateway_ice_credentials": map[string]string{"username": a.GatewayICE.Username, "password": a.GatewayICE.Password},
		"expires_at":              a.ExpiresAt.Unix(),
	}
}

func TestJoiningPassesOnInit(t *testing.T) {
	for _, v1 := range []bool{false, true} {
		r := newPortalRig(t, labportal.Config{V1Only: v1})
		if slices.Contains(r.plane.Missing(), "portal") != true {
			t.Error("ready before the join")
		}
		r.dial()
		m := r.init()
		if own := r.plane.addresses.load(); own.V4 != m.IPv4 || own.V6 != m.IPv6 || !own.V4.IsValid() {
			t.Errorf("addresses %v, init %+v", own, m)
		}
		want := "/gateway/v2/websocket"
		if v1 {
			want = "/gateway/websocket"
		}
		if e := waitEvent(t, r.lab, 0, labportal.PeerJoined, nil); e.Path != want {
			t.Errorf("joined on %s, want %s", e.Path, want)
		}
		if slices.Contains(r.plane.Missing(), "portal") {
			t.Error("not ready after the join")
		}
		if log := r.plane.log.String(); !strings.Contains(log, "INFO portal: joined the portal") || strings.Contains(log, "s3cret") {
			t.Errorf("log:\n%s", log)
		}
	}
}

func TestMessagesOfThePortalArePassedOnInOrder(t *testing.T) {
	for _, tc := range []struct {
		v1         bool
		event      string
		generation portal.Generation
	}{{false, "create_authorization", portal.V2}, {true, "authorize_flow", portal.V1}} {
		r := newJoinedRig(t, labportal.Config{V1Only: tc.v1})
		r.push(tc.event, grantPayload(authorization(1, 10)))
		r.push("ice_candidates", map[string]any{"client_id": clientID(1), "candidates": []any{remoteHost, 7}})
		r.push("reject_access", reject(10))
		a, connection := fromPortal[portal.Authorize](r)
		if a.Generation != tc.generation || a.Ref != authorization(1, 10).Ref || connection != 1 {
			t.Errorf("got %+v on connection %d", a, connection)
		}
		if m, _ := fromPortal[portal.ICECandidates](r); len(m.Candidates) != 1 {
			t.Errorf("candidates %q", m.Candidates)
		}
		fromPortal[portal.RejectAccess](r)
		if got := r.dropped(drop.CandidateUnusable); got != 1 {
			t.Errorf("%d candidates counted, want 1", got)
		}
	}
}

// Rule 23.
func TestBadFramesAreCountedAndEndNothing(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	for _, raw := range []string{"", "rubbish", "{}", `{"topic":"gateway"}`, "\x00\xff", strings.Repeat("[", 10_000)} {
		if err := r.lab.PushRaw("", []byte(raw)); err != nil {
			t.Fatal(err)
		}
	}
	for _, payload := range []any{nil, 7, []int{1}, map[string]any{"client_id": 7}, map[string]any{"client_id": "a/b", "resource_id": "r"}} {
		r.push("reject_access", payload)
	}
	r.push("no_such_event", map[string]any{"a": 1})
	r.push("disconnect", map[string]any{"reason": "whatever"})
	r.push("reject_access", reject(10))
	fromPortal[portal.RejectAccess](r)
	for reason, want := range map[drop.Reason]uint64{drop.FrameMalformed: 6, drop.PayloadMalformed: 5, drop.EventUnknown: 1} {
		if got := r.dropped(reason); got != want {
			t.Errorf("%s counted %d times, want %d", reason, got, want)
		}
	}
	if len(r.lab.State().Gateways[0].Sessions) != 1 {
		t.Error("the connection ended")
	}
}

// An authorization behind new relays must find them: it waits for the transport.
func TestWhatFollowsNewRelaysWaitsUntilTheyAreKnown(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	held, free := make(chan struct{}), make(chan struct{})
	r.system.Send(r.transport.pid, act(func(actorkit.Context) { close(held); <-free }))
	await(t, held, "the transport's turn")
	r.push("relays_presence", map[string]any{"disconnected_ids": []string{"old"}, "connected": []any{
		map[string]any{"type": "turn", "id": "new", "addr": "127.0.0.1:3478", "username": "u", "password": "p", "expires_at": 1},
	}})
	r.push("reject_access", reject(10))
	for n := range byte(200) {
		r.push("reject_access", reject(n))
	}
	eventually(t, func() bool {
		waits := false
		r.look(r.pid, func(actorkit.Context) { waits = r.actor.waiting.Len() > 0 })
		return waits
	}, "the message waits")
	r.peers.quiet("the transport is not ready")
	close(free)
	if m := next[messages.UpdateRelays](t, r.transport); len(m.Connected) != 1 || !slices.Equal(m.Disconnected, []string{"old"}) {
		t.Errorf("relays %+v", m)
	}
	if m, _ := fromPortal[portal.RejectAccess](r); m.ResourceID != resourceID(10) {
		t.Errorf("first %+v", m)
	}
	for n := range byte(200) {
		if m, _ := fromPortal[portal.RejectAccess](r); m.ResourceID != resourceID(n) {
			t.Fatalf("%s is not %d. in order", m.ResourceID, n)
		}
	}
	if got := r.dropped(drop.MailboxFull); got != 0 {
		t.Errorf("%d lost", got)
	}
}

func TestATransportThatDoesNotAnswerHoldsNothingUpForLong(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	free := make(chan struct{})
	defer close(free)
	r.system.Send(r.transport.pid, act(func(actorkit.Context) { <-free }))
	r.push("relays_presence", map[string]any{"disconnected_ids": []string{}, "connected": []any{}})
	r.push("reject_access", reject(10))
	fromPortal[portal.RejectAccess](r)
}
