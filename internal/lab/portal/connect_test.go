package portal

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestRefusedLogins(t *testing.T) {
	with := func(change func(*login)) login {
		l := gatewayLogin(gatewayV2)
		change(&l)
		return l
	}
	for _, c := range []struct {
		name   string
		login  login
		status int
		code   string
	}{
		{"wrong token", with(func(l *login) { l.header = "wrong" }), 401, "invalid_token"},
		{"no token", with(func(l *login) { l.header = "" }), 401, "missing_token"},
		{"wrong header beats right query", with(func(l *login) { l.header, l.query = "wrong", "token" }), 401, "invalid_token"},
		{"client token on the gateway path", with(func(l *login) { l.header = "client" }), 401, "invalid_token"},
		{"short key", with(func(l *login) { l.key = "AAAA" }), 400, "invalid_connect_params"},
		{"key without padding", with(func(l *login) { l.key = strings.TrimRight(l.key, "=") + "A" }), 400, "invalid_connect_params"},
		{"no external id", with(func(l *login) { l.externalID = "" }), 400, "invalid_connect_params"},
		{"long external id", with(func(l *login) { l.externalID = strings.Repeat("x", 256) }), 400, "invalid_connect_params"},
		{"long name", with(func(l *login) { l.extra = url.Values{"name": {strings.Repeat("x", 256)}} }), 400, "invalid_connect_params"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, Config{GatewayToken: "token", ClientToken: "client"})
			resp, body := wantStatus(t, s, c.login, c.status)
			var problem struct {
				Type, Title, Detail, Code string
				Status                    int
			}
			if err := json.Unmarshal([]byte(body), &problem); err != nil {
				t.Fatal(err)
			}
			if problem.Code != c.code || problem.Status != c.status || problem.Type != "about:blank" ||
				resp.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("problem %+v", problem)
			}
			e := wantEvent(t, s, ConnectRefused, nil)
			if e.Status != c.status || e.Detail != c.code || e.Path != gatewayV2 {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func TestAcceptedLogins(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    Config
		change func(*login)
	}{
		{"token in the header", Config{GatewayToken: "token"}, func(*login) {}},
		{"token in the query", Config{GatewayToken: "token"}, func(l *login) { l.header, l.query = "", "token" }},
		{"right header beats wrong query", Config{GatewayToken: "token"}, func(l *login) { l.query = "wrong" }},
		{"any token", Config{}, func(*login) {}},
		{"older name of the external id", Config{}, func(l *login) {
			l.externalID, l.extra = "", url.Values{"firezone_id": {"gw-1"}}
		}},
		{"no name", Config{}, func(l *login) { l.extra = url.Values{"name": {""}} }},
		{"header ignored, query used", Config{GatewayToken: "token", QueryTokenOnly: true}, func(l *login) {
			l.header, l.query = "wrong", "token"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, c.cfg)
			l := gatewayLogin(gatewayV1)
			c.change(&l)
			join(t, s, l, "gateway")
			e := wantEvent(t, s, PeerJoined, nil)
			if e.UserAgent != gatewayUA || e.PublicKey != gatewayKey || e.Path != gatewayV1 || e.ExternalID != "gw-1" {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func TestV1OnlyHasNoV2PathsAndPlainErrors(t *testing.T) {
	s := start(t, Config{V1Only: true, GatewayToken: "token"})
	for _, path := range []string{gatewayV2, clientV2} {
		wantStatus(t, s, gatewayLogin(path), http.StatusNotFound)
	}
	bad := gatewayLogin(gatewayV1)
	bad.header = "wrong"
	if resp, body := wantStatus(t, s, bad, 401); body != "Invalid token" ||
		!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("body %q", body)
	}
	bad = gatewayLogin(gatewayV1)
	bad.key = ""
	if _, body := wantStatus(t, s, bad, 422); body != "Invalid or missing connection parameters: public_key" {
		t.Errorf("body %q", body)
	}
	bad = gatewayLogin(gatewayV1)
	bad.agent = "curl/8"
	wantStatus(t, s, bad, 422)
	_, init := join(t, s, gatewayLogin(gatewayV1), "gateway")
	if _, ok := init["flow_logs"]; ok {
		t.Error("init has flow logs")
	}
}

func TestSecondGatewayIsRefusedWhileTheFirstStays(t *testing.T) {
	s := start(t, Config{})
	first, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	_, body := wantStatus(t, s, gatewayLogin(gatewayV1), http.StatusConflict)
	if !strings.Contains(body, `"gateway_already_connected"`) {
		t.Errorf("body %s", body)
	}
	first.wantQuiet()
	first.leave()
	join(t, s, gatewayLogin(gatewayV2), "gateway")
}

func TestAt1_4BothGatewaysStay(t *testing.T) {
	s := start(t, Config{V1Only: true})
	first, _ := join(t, s, gatewayLogin(gatewayV1), "gateway")
	second, _ := join(t, s, gatewayLogin(gatewayV1), "gateway")
	if err := s.Push("gw-1", "resource_updated", map[string]string{"id": "x"}); err != nil {
		t.Fatal(err)
	}
	first.want("resource_updated")
	second.want("resource_updated")
	other := gatewayLogin(gatewayV1)
	other.externalID = "gw-2"
	wantStatus(t, s, other, 422) // the key is taken
}

func TestSecondClientEvictsTheFirst(t *testing.T) {
	s := start(t, Config{})
	first, _ := join(t, s, clientLogin(clientV2), "client")
	second, _ := join(t, s, clientLogin(clientV2), "client")
	if why := text(t, first.want("disconnect"), "reason"); why != "token_expired" {
		t.Errorf("reason %s", why)
	}
	first.want("phx_close")
	if code := first.wantClosed(); code != 1000 {
		t.Errorf("code %d", code)
	}
	second.wantQuiet()
}

func TestRateLimitAnswersRetryAfter(t *testing.T) {
	now := time.Now()
	s := start(t, Config{GatewayToken: "token", RateLimit: &RateLimit{1, 1}, Now: func() time.Time { return now }})
	bad := gatewayLogin(gatewayV2)
	bad.header = "wrong"
	wantStatus(t, s, bad, 401)
	resp, _ := wantStatus(t, s, bad, 503) // before the token is looked at
	if resp.Header.Get("Retry-After") != "1" {
		t.Errorf("headers %v", resp.Header)
	}
	join(t, s, gatewayLogin(gatewayV2), "gateway") // another token, another bucket
}

func TestAddressesAndIDsAreKept(t *testing.T) {
	s := start(t, Config{})
	first, before := join(t, s, gatewayLogin(gatewayV2), "gateway")
	id := s.State().Gateways[0].ID
	first.leave()
	l := gatewayLogin(gatewayV1)
	l.key = clientKey
	_, after := join(t, s, l, "gateway")
	if text(t, before, "interface", "ipv4") != text(t, after, "interface", "ipv4") ||
		text(t, before, "interface", "ipv6") != text(t, after, "interface", "ipv6") {
		t.Errorf("interface %v became %v", before["interface"], after["interface"])
	}
	if gateways := s.State().Gateways; len(gateways) != 1 || gateways[0].ID != id {
		t.Errorf("gateways %+v", gateways)
	}
}

func TestBrowsersAndPlainRequestsAreRefused(t *testing.T) {
	s := start(t, Config{})
	query := url.Values{"external_id": {"a"}, "name": {"b"}, "public_key": {gatewayKey}, "token": {"t"}}
	resp, err := http.Get("http://" + s.Addr().String() + gatewayV2 + "?" + query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if gateways := s.State().Gateways; len(gateways) != 0 {
		t.Errorf("gateways %+v", gateways)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestConfigErrors(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no address":         {},
		"two kinds of DNS":   {Addr: "127.0.0.1:0", ClientDNS: ClientDNS{Do53: make([]netip.Addr, 1), DoH: []string{"https://x/"}}},
		"rate without burst": {Addr: "127.0.0.1:0", RateLimit: &RateLimit{PerSecond: 1}},
		"negative duration":  {Addr: "127.0.0.1:0", AckTimeout: -1},
		"bad address":        {Addr: "127.0.0.1:none"},
		"bad control":        {Addr: "127.0.0.1:0", ControlAddr: "127.0.0.1:none"},
	} {
		if s, err := New(cfg); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTLS(t *testing.T) {
	donor := httptest.NewTLSServer(http.NotFoundHandler())
	defer donor.Close()
	s := start(t, Config{TLS: donor.TLS})
	pool := x509.NewCertPool()
	pool.AddCert(donor.Certificate())
	dialer := websocket.Dialer{
		HandshakeTimeout: patience,
		TLSClientConfig:  &tls.Config{RootCAs: pool, ServerName: "example.com"},
	}
	query := url.Values{"external_id": {"a"}, "name": {"b"}, "public_key": {gatewayKey}, "token": {"t"}}
	conn, _, err := dialer.Dial(s.URL()+gatewayV2+"?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := &peer{t: t, conn: conn, topic: "gateway"}
	p.send("phx_join", nil)
	p.wantReply("ok")
}

// port80 is a listener that claims to be on port 80.
type port80 struct{ net.Listener }

func (port80) Addr() net.Addr { return &net.TCPAddr{Port: 80} }

func TestClearTextOnPort80IsRefusedAndTheListenerClosed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Listener: port80{ln}}); err == nil {
		t.Fatal("accepted")
	}
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener was left open: %v", err)
	}
}
