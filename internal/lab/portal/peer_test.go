package portal

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

const (
	patience   = 5 * time.Second
	gatewayV1  = "/gateway/websocket"
	gatewayV2  = "/gateway/v2/websocket"
	clientV1   = "/client/websocket"
	clientV2   = "/client/v2/websocket"
	gatewayKey = "uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY="
	clientKey  = "fiAjSBWDgQfD1CFJkTwOf4zg+1QhH0eTT+oLaVIMpH8="
	gatewayUA  = "Debian/12.0.0 gateway/1.5.3 (x86_64; 6.1.0)"
	clientUA   = "Ubuntu/24.04 headless-client/1.5.5 (x86_64; 6.8.0)"
	recentUA   = "Ubuntu/24.04 headless-client/1.5.12 (x86_64; 6.8.0)"
)

// login describes a scripted peer's handshake.
type login struct {
	path, externalID, key, agent string
	header, query                string // tokens
	extra                        url.Values
}

func gatewayLogin(path string) login {
	return login{path: path, externalID: "gw-1", key: gatewayKey, agent: gatewayUA, header: "token"}
}

func clientLogin(path string) login {
	l := login{path: path, externalID: "client-1", key: clientKey, agent: clientUA, header: "token"}
	if path == clientV2 {
		l.agent = recentUA
	}
	return l
}

// peer is one end of a raw websocket, read in lock step by the test.
type peer struct {
	t     *testing.T
	conn  *websocket.Conn
	topic string
	ref   int
}

type received struct {
	Topic   string          `json:"topic"`
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"`
	Ref     json.RawMessage `json:"ref"`
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Addr == "" && cfg.Listener == nil {
		cfg.Addr = "127.0.0.1:0"
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// try makes the handshake. The answer is what the server said in any case.
func try(s *Server, l login) (*websocket.Conn, *http.Response, error) {
	query := url.Values{"external_id": {l.externalID}, "name": {"peer"}, "public_key": {l.key}}
	for name, values := range l.extra {
		query[name] = values
	}
	if l.query != "" {
		query.Set("token", l.query)
	}
	header := http.Header{}
	if l.header != "" {
		header.Set("X-Authorization", "Bearer "+l.header)
	}
	if l.agent != "" {
		header.Set("User-Agent", l.agent)
	}
	dialer := websocket.Dialer{HandshakeTimeout: patience}
	return dialer.Dial(s.URL()+l.path+"?"+query.Encode(), header)
}

func dial(t *testing.T, s *Server, l login, topic string) *peer {
	t.Helper()
	conn, resp, err := try(s, l)
	if err != nil {
		status := 0
		if resp != nil {
			status = resp.StatusCode
		}
		t.Fatalf("dial %s: %v (status %d)", l.path, err, status)
	}
	t.Cleanup(func() { conn.Close() })
	return &peer{t: t, conn: conn, topic: topic}
}

// join dials and joins; the payload of init is returned.
func join(t *testing.T, s *Server, l login, topic string) (*peer, map[string]any) {
	t.Helper()
	p := dial(t, s, l, topic)
	p.send("phx_join", nil)
	p.wantReply("ok")
	return p, p.want("init")
}

func (p *peer) send(event string, payload any) {
	p.t.Helper()
	p.sendTo(p.topic, event, payload)
}

func (p *peer) sendTo(topic, event string, payload any) {
	p.t.Helper()
	p.ref++
	p.conn.SetWriteDeadline(time.Now().Add(patience))
	err := p.conn.WriteJSON(map[string]any{"topic": topic, "event": event, "payload": payload, "ref": p.ref})
	if err != nil {
		p.t.Fatalf("send %s: %v", event, err)
	}
}

func (p *peer) next() received {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	var f received
	if err := p.conn.ReadJSON(&f); err != nil {
		p.t.Fatalf("read on %s: %v", p.topic, err)
	}
	return f
}

// want reads the next frame, which must be that event, and returns its payload.
func (p *peer) want(event string) map[string]any {
	p.t.Helper()
	var payload map[string]any
	if raw := p.wantRaw(event); json.Unmarshal(raw, &payload) != nil {
		p.t.Fatalf("payload of %s is no object: %s", event, raw)
	}
	return payload
}

func (p *peer) wantRaw(event string) json.RawMessage {
	p.t.Helper()
	f := p.next()
	if f.Event != event || f.Topic != p.topic || string(f.Ref) != "null" {
		p.t.Fatalf("got %s on %s with ref %s, want %s", f.Event, f.Topic, f.Ref, event)
	}
	return f.Payload
}

// wantReply reads the reply to the last frame sent and returns its reason.
func (p *peer) wantReply(status string) (why string) {
	p.t.Helper()
	f := p.next()
	var payload struct {
		Status   string
		Response struct{ Reason string }
	}
	if err := json.Unmarshal(f.Payload, &payload); err != nil || f.Event != "phx_reply" || payload.Status != status {
		p.t.Fatalf("got %s %s, want a reply with status %s", f.Event, f.Payload, status)
	}
	var ref int
	if err := json.Unmarshal(f.Ref, &ref); err != nil || ref != p.ref {
		p.t.Fatalf("reply has ref %s, want the number %d", f.Ref, p.ref)
	}
	return payload.Response.Reason
}

// wantQuiet checks that nothing was queued before this moment.
func (p *peer) wantQuiet() {
	p.t.Helper()
	p.sendTo("phoenix", "heartbeat", struct{}{})
	p.wantReply("ok")
}

// wantClosed reads until the server has closed and returns the close code.
func (p *peer) wantClosed() int {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		_, _, err := p.conn.ReadMessage()
		switch e := err.(type) {
		case nil:
		case *websocket.CloseError:
			return e.Code
		default:
			p.t.Fatalf("no close: %v", err)
		}
	}
}

// leave closes in an orderly way and waits until the portal knows.
func (p *peer) leave() {
	p.t.Helper()
	msg := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if err := p.conn.WriteControl(websocket.CloseMessage, msg, time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	if code := p.wantClosed(); code != websocket.CloseNormalClosure {
		p.t.Fatalf("close is answered with %d", code)
	}
}

func wantEvent(t *testing.T, s *Server, kind EventKind, match func(Event) bool) Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e, err := s.WaitEvent(ctx, 0, func(e Event) bool { return e.Kind == kind && (match == nil || match(e)) })
	if err != nil {
		t.Fatalf("event %s: %v", kind, err)
	}
	return e
}

// wantStatus makes a handshake that must be refused and returns the body.
func wantStatus(t *testing.T, s *Server, l login, status int) (*http.Response, string) {
	t.Helper()
	conn, resp, err := try(s, l)
	if err == nil {
		conn.Close()
		t.Fatalf("login succeeds, want status %d", status)
	}
	if resp == nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("status %d (%s), want %d", resp.StatusCode, body, status)
	}
	return resp, string(body)
}

func parseQuery(role Role, raw string) (peerParams, string) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return peerParams{}, "query"
	}
	return parseParams(role, query)
}

// at follows a path of keys and list indexes.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, ok := v.(map[string]any)
			if !ok {
				t.Fatalf("%v: no object at %q", path, step)
			}
			v = m[step]
		case int:
			l, ok := v.([]any)
			if !ok || step >= len(l) {
				t.Fatalf("%v: no element %d", path, step)
			}
			v = l[step]
		}
	}
	return v
}

func text(t *testing.T, v any, path ...any) string {
	t.Helper()
	s, ok := at(t, v, path...).(string)
	if !ok {
		t.Fatalf("%v is no string: %v", path, at(t, v, path...))
	}
	return s
}
