package scale

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	labnet "firezone-gateway/internal/lab/net"
)

const (
	loginPatience = 20 * time.Second
	writePatience = 5 * time.Second
	// websocketBuffer is small: there are a thousand of them.
	websocketBuffer = 1 << 10
)

// login is one client's channel to the portal (portal-protocol §7). There are
// no heartbeats: the lab's portal is told to do without.
type login struct {
	ws *websocket.Conn

	mu  sync.Mutex // guards writes and ref
	ref int
}

// frame is one message of the channel.
type frame struct {
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"`
}

// logIn opens the channel and returns it with the tunnel address that the
// portal gave.
func logIn(ctx context.Context, from *labnet.Namespace, portal, token, id string, public [32]byte) (*login, netip.Addr, error) {
	u, err := url.Parse(portal)
	if err != nil {
		return nil, netip.Addr{}, fmt.Errorf("portal URL: %w", err)
	}
	u.Path = "/client/v2/websocket"
	u.RawQuery = url.Values{
		"external_id": {id}, "name": {id}, "public_key": {base64.StdEncoding.EncodeToString(public[:])},
	}.Encode()
	header := http.Header{"User-Agent": {"Linux/6.1 headless-client/1.5.11 (x86_64)"}, "X-Authorization": {"Bearer " + token}}
	dialer := websocket.Dialer{
		HandshakeTimeout: loginPatience, NetDialContext: from.DialContext,
		ReadBufferSize: websocketBuffer, WriteBufferSize: websocketBuffer,
	}
	ws, answer, err := dialer.DialContext(ctx, u.String(), header)
	if err != nil {
		if answer != nil {
			err = fmt.Errorf("%w: %s", err, answer.Status)
		}
		return nil, netip.Addr{}, fmt.Errorf("log in: %w", err)
	}
	l := &login{ws: ws}
	inner, err := l.join()
	if err != nil {
		return nil, netip.Addr{}, errors.Join(fmt.Errorf("join: %w", err), ws.Close())
	}
	return l, inner, nil
}

// join enters the channel and waits for init.
func (l *login) join() (netip.Addr, error) {
	if err := l.ws.SetReadDeadline(time.Now().Add(loginPatience)); err != nil {
		return netip.Addr{}, err
	}
	if err := l.send("phx_join", nil); err != nil {
		return netip.Addr{}, err
	}
	for {
		var f frame
		if err := l.ws.ReadJSON(&f); err != nil {
			return netip.Addr{}, err
		}
		if f.Event != "init" {
			continue
		}
		var m struct {
			Interface struct {
				IPv4 netip.Addr `json:"ipv4"`
			} `json:"interface"`
		}
		if err := json.Unmarshal(f.Payload, &m); err != nil {
			return netip.Addr{}, err
		}
		if !m.Interface.IPv4.Is4() {
			return netip.Addr{}, errors.New("no tunnel address")
		}
		return m.Interface.IPv4, l.ws.SetReadDeadline(time.Time{})
	}
}

// send sends one event on the client's topic.
func (l *login) send(event string, payload any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ref := l.ref
	l.ref++
	if err := l.ws.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
		return err
	}
	return l.ws.WriteJSON(map[string]any{"topic": "client", "event": event, "payload": payload, "ref": ref})
}

// read hands messages to handle until the channel ends.
func (l *login) read(handle func(frame)) {
	for {
		var f frame
		if l.ws.ReadJSON(&f) != nil {
			return
		}
		handle(f)
	}
}

func (l *login) close() { _ = l.ws.Close() } // nobody waits for a Close frame
