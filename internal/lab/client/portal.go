package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
)

// portalConn is one connection to the portal (portal protocol §7). Pushes are
// handed to handle one by one, on the reader's goroutine.
type portalConn struct {
	ws     *websocket.Conn
	v1     bool
	handle func(event string, payload json.RawMessage)

	mu   sync.Mutex // guards writes and next
	next int

	joined chan error
	done   chan struct{}
	wg     sync.WaitGroup
}

func dialPortal(ctx context.Context, cfg Config, publicKey [32]byte, handle func(string, json.RawMessage)) (*portalConn, error) {
	u, err := url.Parse(cfg.Portal)
	if err != nil {
		return nil, fmt.Errorf("portal URL: %w", err)
	}
	header := http.Header{"User-Agent": {"Linux/6.1 headless-client/1.5.11 (x86_64)"}}
	query := url.Values{
		"external_id": {externalID(cfg.ID)},
		"name":        {cfg.Name},
		"public_key":  {base64.StdEncoding.EncodeToString(publicKey[:])},
	}
	if cfg.V1 {
		u.Path = "/client/websocket"
		query.Set("token", cfg.Token)
	} else {
		u.Path = "/client/v2/websocket"
		header.Set("X-Authorization", "Bearer "+cfg.Token)
	}
	u.RawQuery = query.Encode()
	dialer := websocket.Dialer{
		HandshakeTimeout: writeTimeout,
		NetDialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = cfg.Namespace.Do(func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}
	ws, resp, err := dialer.DialContext(ctx, u.String(), header)
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("portal refused: %s", resp.Status)
		}
		return nil, fmt.Errorf("dial portal: %w", err)
	}
	p := &portalConn{ws: ws, v1: cfg.V1, handle: handle, joined: make(chan error, 1), done: make(chan struct{})}
	p.wg.Go(p.read)
	p.wg.Go(p.beat)
	if err := p.join(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// send pushes one event on the client topic.
func (p *portalConn) send(event string, payload any) error {
	return p.write("client", event, payload)
}

func (p *portalConn) close() error {
	deadline := time.Now().Add(time.Second)
	err := p.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), deadline)
	if errors.Is(err, websocket.ErrCloseSent) {
		err = nil
	}
	_ = p.ws.Close()
	p.wg.Wait()
	return err
}

func (p *portalConn) join(ctx context.Context) error {
	if err := p.write("client", "phx_join", nil); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	select {
	case err := <-p.joined:
		return err
	case <-p.done:
		return errors.New("join: portal closed the connection")
	case <-ctx.Done():
		return fmt.Errorf("join: %w", ctx.Err())
	}
}

func (p *portalConn) write(topic, event string, payload any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ref := p.next
	p.next++
	_ = p.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	return p.ws.WriteJSON(map[string]any{"topic": topic, "event": event, "payload": payload, "ref": ref})
}

func (p *portalConn) beat() {
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-tick.C:
			if p.write("phoenix", "heartbeat", struct{}{}) != nil {
				return
			}
		}
	}
}

func (p *portalConn) read() {
	defer close(p.done)
	for {
		_, b, err := p.ws.ReadMessage()
		if err != nil {
			return
		}
		var f frame
		if json.Unmarshal(b, &f) != nil {
			continue
		}
		if f.Event == "phx_reply" {
			p.reply(f)
			continue
		}
		p.handle(f.Event, f.Payload)
	}
}

// reply completes the join, the only request whose answer matters: ref 0.
func (p *portalConn) reply(f frame) {
	if f.Ref == nil || *f.Ref != 0 {
		return
	}
	var r struct {
		Status string `json:"status"`
	}
	var err error
	if e := json.Unmarshal(f.Payload, &r); e != nil || r.Status != "ok" {
		err = fmt.Errorf("join refused: %s", f.Payload)
	}
	select {
	case p.joined <- err:
	default:
	}
}

// externalID hides an id that is a UUID (portal protocol §1.1).
func externalID(id string) string {
	if _, err := uuid.Parse(id); err != nil {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}
