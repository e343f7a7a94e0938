package portal

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func setFaults(t *testing.T, s *Server, f Faults) {
	t.Helper()
	if err := s.SetFaults(f); err != nil {
		t.Fatal(err)
	}
}

func TestRefusedConnects(t *testing.T) {
	s := start(t, Config{})
	body := "try later"
	setFaults(t, s, Faults{Roles: []Role{Gateway}, Refuse: &Refusal{
		Status: 429, Times: 2, Body: &body, Header: http.Header{"retry-after": {"30"}},
	}})
	join(t, s, clientLogin(clientV2), "client")
	for range 2 {
		resp, got := wantStatus(t, s, gatewayLogin(gatewayV2), 429)
		if got != body || resp.Header.Get("Retry-After") != "30" {
			t.Errorf("body %q, headers %v", got, resp.Header)
		}
	}
	join(t, s, gatewayLogin(gatewayV2), "gateway")
	setFaults(t, s, Faults{Refuse: &Refusal{Status: 401, Code: "account_disabled"}})
	if _, got := wantStatus(t, s, clientLogin(clientV1), 401); !strings.Contains(got, `"account_disabled"`) {
		t.Errorf("body %s", got)
	}
}

func TestDelayedJoin(t *testing.T) {
	s := start(t, Config{})
	const delay = 50 * time.Millisecond
	setFaults(t, s, Faults{JoinDelay: delay})
	p := dial(t, s, gatewayLogin(gatewayV2), "gateway")
	begin := time.Now()
	p.send("phx_join", nil)
	p.wantReply("ok")
	if d := time.Since(begin); d < delay {
		t.Errorf("reply after %s", d)
	}
	p.want("init")
	setFaults(t, s, Faults{JoinDelay: time.Hour})
	p.send("phx_join", nil)
	p.wantQuiet() // and Close does not wait for the hour
}

func TestRefusedJoin(t *testing.T) {
	s := start(t, Config{})
	setFaults(t, s, Faults{JoinError: "disabled"})
	p := dial(t, s, gatewayLogin(gatewayV2), "gateway")
	p.send("phx_join", nil)
	if why := p.wantReply("error"); why != "disabled" {
		t.Errorf("reason %s", why)
	}
}

func TestMutedHeartbeats(t *testing.T) {
	s := start(t, Config{})
	p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	setFaults(t, s, Faults{MuteHeartbeats: true})
	p.sendTo("phoenix", "heartbeat", struct{}{})
	p.send("nonsense", struct{}{}) // its reply is the next frame
	if why := p.wantReply("error"); why != "unknown_message" {
		t.Errorf("reason %s", why)
	}
	wantEvent(t, s, Heartbeat, nil)
	setFaults(t, s, Faults{})
	p.wantQuiet()
}

func TestFaultsOnAConnection(t *testing.T) {
	s := start(t, Config{})
	p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")

	if err := s.PushRaw("gw-1", []byte(`{"topic":"gateway","event":"phx_error","payload":{},"ref":null,"x":1}`)); err != nil {
		t.Fatal(err)
	}
	p.want("phx_error")

	if err := s.ForgetJoin("gw-1"); err != nil {
		t.Fatal(err)
	}
	p.send("no_relays", struct{}{})
	if why := p.wantReply("error"); why != "unmatched topic" {
		t.Errorf("reason %s", why)
	}
	p.send("phx_join", nil)
	p.wantReply("ok")
	p.want("init")

	if err := s.CloseChannel("gw-1"); err != nil {
		t.Fatal(err)
	}
	p.want("phx_close")
	p.wantQuiet()

	for name, err := range map[string]error{
		"unknown gateway": s.PushRaw("nobody", nil),
		"bad payload":     s.Push("gw-1", "x", func() {}),
		"bad close code":  s.DisconnectGateway("gw-1", "", 1006),
		"bad status":      s.SetFaults(Faults{Refuse: &Refusal{Status: 200}}),
		"bad delay":       s.SetFaults(Faults{JoinDelay: -1}),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDisconnectedGatewayCanComeBackAtOnce(t *testing.T) {
	s := start(t, Config{})
	p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	id := wantEvent(t, s, PeerJoined, nil).GatewayID
	if err := s.DisconnectGateway(id, "token_expired", 0); err != nil {
		t.Fatal(err)
	}
	if why := text(t, p.want("disconnect"), "reason"); why != "token_expired" {
		t.Errorf("reason %s", why)
	}
	p.want("phx_close")
	again, _ := join(t, s, gatewayLogin(gatewayV2), "gateway") // the old socket is still closing
	if code := p.wantClosed(); code != websocket.CloseNormalClosure {
		t.Errorf("code %d", code)
	}
	if err := s.DisconnectGateway("", "", 1012); err != nil {
		t.Fatal(err)
	}
	again.want("phx_close")
	if code := again.wantClosed(); code != 1012 {
		t.Errorf("code %d", code)
	}
	if err := s.DisconnectGateway("", "", 1000); err == nil {
		t.Error("nobody to disconnect, and no error")
	}
}

func TestDroppedConnectionsSeeNoCloseFrame(t *testing.T) {
	s := start(t, Config{})
	p, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	s.DropConnections()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	_, _, err := p.conn.ReadMessage()
	if !websocket.IsCloseError(err, websocket.CloseAbnormalClosure) { // how the library names a missing Close frame
		t.Errorf("read ends with %v", err)
	}
	join(t, s, gatewayLogin(gatewayV2), "gateway")
}
