package portal

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestRepliesOfTheChannel(t *testing.T) {
	for _, c := range []struct {
		name, topic, event string
		payload            any
		status, why        string
	}{
		{"heartbeat", "phoenix", "heartbeat", struct{}{}, "ok", ""},
		{"unknown topic", "lobby", "phx_join", nil, "error", "unmatched topic"},
		{"topic of another role", "client", "no_relays", struct{}{}, "error", "unmatched topic"},
		{"unknown event", "gateway", "reboot", struct{}{}, "error", "unknown_message"},
		{"acknowledgement without ref", "gateway", "authorization_created", struct{}{}, "error", "unknown_message"},
		{"candidates without list", "gateway", "broadcast_ice_candidates", map[string]any{"candidates": 1}, "error", "unknown_message"},
		{"legacy answer", "gateway", "connection_ready", map[string]any{"ref": "x"}, "error", "invalid_ref"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, Config{})
			p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
			p.sendTo(c.topic, c.event, c.payload)
			if why := p.wantReply(c.status); why != c.why {
				t.Errorf("reason %q, want %q", why, c.why)
			}
			p.wantQuiet()
		})
	}
}

func TestNothingIsAcceptedBeforeTheJoin(t *testing.T) {
	s := start(t, Config{})
	p := dial(t, s, gatewayLogin(gatewayV2), "gateway")
	p.send("no_relays", struct{}{})
	if why := p.wantReply("error"); why != "unmatched topic" {
		t.Errorf("reason %s", why)
	}
	p.wantQuiet() // heartbeats are answered
	p.send("phx_join", nil)
	p.wantReply("ok")
	p.want("init")
}

func TestLeaveAndJoinAgain(t *testing.T) {
	s := start(t, Config{})
	p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	p.send("phx_leave", struct{}{})
	p.wantReply("ok")
	p.want("phx_close")
	p.send("phx_join", nil)
	p.wantReply("ok")
	p.want("init")
}

func TestFramesThatEndTheConnection(t *testing.T) {
	for _, c := range []struct {
		name, text string
		kind       int
	}{
		{"missing ref", `{"topic":"gateway","event":"x","payload":{}}`, websocket.TextMessage},
		{"missing payload", `{"topic":"gateway","event":"x","ref":1}`, websocket.TextMessage},
		{"no JSON", `hello`, websocket.TextMessage},
		{"binary", `{"topic":"gateway","event":"x","payload":{},"ref":1}`, websocket.BinaryMessage},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, Config{})
			p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
			if err := p.conn.WriteMessage(c.kind, []byte(c.text)); err != nil {
				t.Fatal(err)
			}
			if code := p.wantClosed(); code != websocket.CloseInternalServerErr {
				t.Errorf("code %d", code)
			}
		})
	}
}

func TestSilentPeersAreClosed(t *testing.T) {
	s := start(t, Config{IdleLimit: 50 * time.Millisecond})
	p := dial(t, s, gatewayLogin(gatewayV2), "gateway")
	if code := p.wantClosed(); code != websocket.CloseProtocolError {
		t.Errorf("code %d", code)
	}
	wantEvent(t, s, PeerLeft, nil)
	for role, want := range map[Role]time.Duration{Gateway: 37 * time.Second, Client: 37 * time.Second, RelayServer: 41 * time.Second} {
		if got := (&Server{}).idleLimit(role); got != want {
			t.Errorf("%s: %s", role, got)
		}
	}
	if got := (&Server{cfg: Config{V1Only: true}}).idleLimit(Client); got != 307*time.Second {
		t.Errorf("client at 1.4: %s", got)
	}
}

func TestPeersThatDoNotReadAreCut(t *testing.T) {
	k := newSocket()
	for range queueLen {
		k.send([]byte("x"))
	}
	select {
	case <-k.over:
		t.Fatal("cut before the queue is full")
	default:
	}
	k.send([]byte("x"))
	select {
	case <-k.over:
	default:
		t.Fatal("not cut when the queue is full")
	}
	if k.code != cutCode {
		t.Errorf("code %d", k.code)
	}
}

func TestOrderlyCloseIsNoted(t *testing.T) {
	s := start(t, Config{})
	p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	p.leave()
	if e := wantEvent(t, s, PeerLeft, nil); e.Status != websocket.CloseNormalClosure {
		t.Errorf("event %+v", e)
	}
	p, _ = join(t, s, gatewayLogin(gatewayV2), "gateway")
	p.conn.Close()
	wantEvent(t, s, PeerLeft, func(e Event) bool { return e.Status == 0 })
}

func TestCloseSendsServiceRestartToEverybody(t *testing.T) {
	s := start(t, Config{})
	gateway, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	client := dial(t, s, clientLogin(clientV2), "client")
	done := make(chan error, 1)
	go func() { done <- s.Close() }()
	for _, p := range []*peer{gateway, client} {
		if code := p.wantClosed(); code != websocket.CloseServiceRestart {
			t.Errorf("code %d", code)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if err := s.SetRelays(nil); err == nil {
		t.Error("a closed portal takes relays")
	}
}

func TestClientInitOfBothGenerations(t *testing.T) {
	cfg := Config{ClientDNS: ClientDNS{SearchDomain: "lab.test", Do53: []netip.Addr{netip.MustParseAddr("2001:db8::53")}}}
	for _, c := range []struct{ path, has, hasNot string }{
		{clientV1, "gateway_groups", "sites"}, {clientV2, "sites", "gateway_groups"},
	} {
		t.Run(c.has, func(t *testing.T) {
			s := lab(t, cfg)
			if _, err := s.AddResource(Resource{Type: CIDR, Address: "10.0.0.0/8"}); err != nil {
				t.Fatal(err) // never granted, never seen
			}
			_, init := join(t, s, clientLogin(c.path), "client")
			if n := len(init["resources"].([]any)); n != 2 {
				t.Fatalf("%d resources", n)
			}
			web, ok := at(t, init, "resources", 0).(map[string]any) // sorted by id
			if !ok || web["type"] != "dns" || web["ip_stack"] != "dual" || web["address"] != "*.lab.test" {
				t.Errorf("resource %v", web)
			}
			if text(t, web, c.has, 0, "name") != "lab" {
				t.Errorf("site %v", web[c.has])
			}
			if _, ok := web[c.hasNot]; ok {
				t.Errorf("resource has both names of its site list")
			}
			if text(t, init, "interface", "upstream_dns", 0, "address") != "[2001:db8::53]:53" ||
				text(t, init, "interface", "upstream_do53", 0, "ip") != "2001:db8::53" ||
				text(t, init, "interface", "search_domain") != "lab.test" ||
				at(t, init, "flow_logs", "upload_interval_secs") != 0.0 {
				t.Errorf("init %v", init)
			}
		})
	}
}

// lockedBuffer collects log lines from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestSecretsStayInFrames(t *testing.T) {
	const relaySecret, token = "stamp-secret-of-the-relay", "token-of-the-gateway"
	var log lockedBuffer
	s := lab(t, Config{
		GatewayToken: token, ClientToken: token,
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err := s.SetRelays([]Relay{{V4: netip.MustParseAddrPort("192.0.2.1:3478"), StampSecret: relaySecret}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddSite(Site{GatewayToken: "token-of-a-site"}); err != nil {
		t.Fatal(err)
	}
	gen := generations[2]
	l, c := gatewayLogin(gen.gateway), clientLogin(gen.client)
	l.header, c.header = token, token
	gateway, init := join(t, s, l, "gateway")
	client, _ := join(t, s, c, "client")
	grant, _ := authorized(t, gen, gateway, client, cidrID)
	gateway.send(gen.ack, map[string]any{"ref": grant["ref"]})
	gateway.wantReply("ok")
	if err := gateway.conn.WriteMessage(websocket.TextMessage, []byte(`{"ref":"`+text(t, grant, "ref")+`"}`)); err != nil {
		t.Fatal(err)
	}
	gateway.wantClosed()
	wantEvent(t, s, PeerLeft, nil)
	wrong := l
	wrong.header = "another-" + token
	wantStatus(t, s, wrong, 401)

	public, err := json.Marshal([]any{s.State(), s.Events(0)})
	if err != nil {
		t.Fatal(err)
	}
	said := log.String() + string(public)
	if !strings.Contains(said, "peer connected") || !strings.Contains(said, string(AuthorizationGranted)) {
		t.Fatal("nothing was collected")
	}
	for name, secret := range map[string]string{
		"token": token, "site token": "token-of-a-site", "stamp secret": relaySecret, "ref": text(t, grant, "ref"),
		"preshared key": text(t, grant, "client", "preshared_key"),
		"ICE password":  text(t, grant, "gateway_ice_credentials", "password"),
		"TURN password": text(t, init, "relays", 0, "password"),
		"ingest token":  text(t, grant, "flow_logs_ingest_token"),
	} {
		if strings.Contains(said, secret) {
			t.Errorf("%s is in logs, events or state", name)
		}
	}
}

func TestAnAnsweredCloseMeansTheIdentityIsFree(t *testing.T) {
	s := start(t, Config{})
	for range 50 {
		p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
		p.leave()
		if sessions := s.State().Gateways[0].Sessions; len(sessions) != 0 {
			t.Fatalf("sessions %+v", sessions)
		}
	}
}
