package actors

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// script plays the portal on one connection after the other; the last part is
// played for all further ones.
type script []func(*scripted)

// scripted is one connection of a script.
type scripted struct {
	t  testing.TB
	ws *websocket.Conn
}

// read returns the next frame, with an empty event at the end.
func (s *scripted) read() (f clientFrame) {
	if err := s.ws.ReadJSON(&f); err != nil {
		return clientFrame{}
	}
	return f
}

// join takes the join and answers it.
func (s *scripted) join() {
	if f := s.read(); f.Event == "phx_join" {
		_ = s.ws.WriteMessage(websocket.TextMessage, []byte(`{"topic":"gateway","event":"phx_reply","ref":0,"payload":{"status":"ok","response":{}}}`))
	}
}

// push writes an event.
func (s *scripted) push(event string, payload any) {
	text, err := json.Marshal(map[string]any{"topic": "gateway", "event": event, "ref": nil, "payload": payload})
	if err != nil {
		s.t.Error(err)
	}
	_ = s.ws.WriteMessage(websocket.TextMessage, text)
}

// newScriptedRig has the actor dial the script.
func newScriptedRig(t testing.TB, parts script) *portalRig {
	t.Helper()
	connections := make(chan int, 1)
	connections <- 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		n := <-connections
		connections <- n + 1
		parts[min(n, len(parts)-1)](&scripted{t, ws})
	}))
	t.Cleanup(server.Close)
	r := &portalRig{stage: newStage(t, newTestPlane(t, "ws"+strings.TrimPrefix(server.URL, "http")))}
	r.introduce()
	return r
}

func announcement(n int) messages.SendToPortal {
	return messages.SendToPortal{Message: portal.BroadcastICECandidates{ClientIDs: []string{fmt.Sprint("client-", n)}, Candidates: []string{"a"}}}
}

// announced reads n announcements and returns their clients.
func (s *scripted) announced(n int) []string {
	var clients []string
	for len(clients) < n {
		f := s.read()
		switch f.Event {
		case "":
			return clients
		case "broadcast_ice_candidates":
			var p struct {
				ClientIDs []string `json:"client_ids"`
			}
			if err := json.Unmarshal(f.Payload, &p); err != nil {
				s.t.Error(err)
			}
			clients = append(clients, p.ClientIDs...)
		}
	}
	return clients
}

const crowd = 3000 // above every queue between the actor and the socket

// Rule 40, for a gateway with many clients.
func TestWhatWasHeldBackForManyClientsAllLeaves(t *testing.T) {
	got := make(chan []string, 1)
	r := newScriptedRig(t, script{func(s *scripted) {
		s.join()
		got <- s.announced(crowd)
		s.read()
	}})
	r.pid = r.root.spawn(KindPortal, "portal", func() actorkit.Actor { return faulty{newPortal(r.plane.Plane)} })
	for n := range crowd {
		r.system.Send(r.pid, announcement(n))
	}
	checkCrowd(t, r, receive(t, got, "announcements"))
}

// A relay that is replaced makes two messages for each client at once.
func TestABurstOfCandidatesDoesNotEndTheConnection(t *testing.T) {
	got, joined, read := make(chan []string, 1), make(chan struct{}, 8), make(chan struct{})
	r := newScriptedRig(t, script{func(s *scripted) {
		s.join()
		joined <- struct{}{}
		<-read // a slow portal
		got <- s.announced(crowd)
		s.read()
	}})
	r.dial()
	receive(t, joined, "join")
	for n := range crowd {
		r.system.Send(r.pid, announcement(n))
	}
	r.settle(r.pid)
	close(read)
	checkCrowd(t, r, receive(t, got, "announcements"))
	if len(joined) != 0 {
		t.Error("there was another connection")
	}
}

func checkCrowd(t *testing.T, r *portalRig, clients []string) {
	t.Helper()
	slices.Sort(clients)
	if got := len(slices.Compact(clients)); got != crowd {
		t.Errorf("%d of %d clients are announced", got, crowd)
	}
	if n := r.dropped(drop.MailboxFull); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// Relay messages that follow each other hold up the rest, and lose none of it.
func TestNothingIsLostBehindSeveralUpdatesOfRelays(t *testing.T) {
	const rejects = 400
	r := newScriptedRig(t, script{func(s *scripted) {
		s.join()
		for n := range rejects {
			if n < 12 && n%4 == 0 {
				s.push("relays_presence", map[string]any{"disconnected_ids": []string{}, "connected": []any{}})
			}
			s.push("reject_access", map[string]string{"client_id": "client", "resource_id": fmt.Sprint(n)})
		}
		s.read()
	}})
	// Transport needs its time.
	r.plane.siblings.store(messages.Siblings{Peers: r.peers.pid, TUN: r.tun.pid, Portal: r.portal.pid, Transport: r.slowTransport(20 * time.Millisecond)})
	r.dial()
	for n := range rejects {
		m, _ := fromPortal[portal.RejectAccess](r)
		if m.ResourceID != fmt.Sprint(n) {
			t.Fatalf("%s is not number %d", m.ResourceID, n)
		}
	}
	if n := r.dropped(drop.MailboxFull); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// slowTransport answers after a while.
func (r *portalRig) slowTransport(delay time.Duration) actorkit.PID {
	r.t.Helper()
	pid, err := r.system.Spawn(KindTransport, "slow", func() actorkit.Actor {
		return actorkit.ActorFunc(func(ctx actorkit.Context) {
			if m, ok := ctx.Message().(messages.UpdateRelays); ok {
				time.Sleep(delay) // the delay is the subject
				ctx.Respond(messages.RelaysUpdated{Number: m.Number})
			}
		})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

// Rules 9 and 12.
func TestAJoinThatIsNotAnsweredIsTriedOnAnotherConnection(t *testing.T) {
	again := make(chan struct{}, 8)
	r := newScriptedRig(t, script{
		func(s *scripted) { s.read(); s.read() },
		func(s *scripted) { s.join(); again <- struct{}{}; s.read() },
	})
	began := time.Now()
	r.dial()
	select {
	case <-again:
	case <-time.After(3 * patience):
		t.Fatal("no second connection")
	}
	if took := time.Since(began); took < portal.JoinTimeout {
		t.Errorf("given up after %v", took)
	}
}

// Rules 28 and 40: what was said while a join failed is said after the next.
func TestCandidatesOutliveAJoinThatFails(t *testing.T) {
	joining, end, got := make(chan struct{}), make(chan struct{}), make(chan []string, 1)
	r := newScriptedRig(t, script{
		func(s *scripted) { s.read(); close(joining); <-end },
		func(s *scripted) { s.join(); got <- s.announced(1); s.read() },
	})
	r.dial()
	receiveClosed(t, joining, "join")
	eventually(t, func() bool {
		open := false
		r.look(r.pid, func(actorkit.Context) { open = r.actor.conn != nil })
		return open
	}, "the connection is open")
	r.system.Send(r.pid, announcement(1))
	r.settle(r.pid)
	close(end)
	if clients := receive(t, got, "announcement"); !slices.Equal(clients, []string{"client-1"}) {
		t.Errorf("announced %q", clients)
	}
}

func receiveClosed(t testing.TB, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("no %s", what)
	}
}

// Rules 18 and 19: a success is a join, not an open socket, and the time without
// one is bounded.
func TestSocketsWithoutAJoinUseUpThePartitionTime(t *testing.T) {
	r := newScriptedRig(t, script{
		func(s *scripted) { s.join() },
		func(s *scripted) {},
	})
	r.plane.memory.backoff = portal.NewBackoff(3 * time.Second)
	r.dial()
	if m := next[messages.PortalGaveUp](t, r.root); m.Cause == nil {
		t.Error("without a cause")
	}
}

// Rule 17.
func TestTheTimeThatThePortalAsksForIsWaited(t *testing.T) {
	r := newPortalRig(t, labportal.Config{})
	refusal := &labportal.Refusal{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"3"}}, Times: 1}
	if err := r.lab.SetFaults(labportal.Faults{Refuse: refusal}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.dial()
	r.init()
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("came back after %v", took)
	}
}

// Rule 36.
func TestTheFamiliesOfARelayAreOne(t *testing.T) {
	r := newJoinedRig(t, labportal.Config{})
	entry := func(address string) map[string]any {
		return map[string]any{"type": "turn", "id": "one", "addr": address, "username": "u", "password": "p", "expires_at": 1}
	}
	r.push("relays_presence", map[string]any{"disconnected_ids": []string{}, "connected": []any{entry("127.0.0.1:3478"), entry("[::1]:3478")}})
	m := next[messages.UpdateRelays](t, r.transport)
	if len(m.Connected) != 1 || m.Connected[0].V4 != addr("127.0.0.1:3478") || m.Connected[0].V6 != addr("[::1]:3478") || m.All {
		t.Errorf("relays %+v", m)
	}
}
