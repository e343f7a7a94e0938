package actors

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	labportal "firezone-gateway/internal/lab/portal"
)

// portalClient is the client side of the portal protocol, as far as a gateway
// notices it.
type portalClient struct {
	t    testing.TB
	ws   *websocket.Conn
	v1   bool
	id   string
	ipv4 netip.Addr // in the tunnel
	got  chan clientFrame
	done sync.WaitGroup
	ref  int
}

type clientFrame struct {
	Topic   string          `json:"topic"`
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"`
	Ref     *int            `json:"ref"`
}

// grantedTo is what the portal tells a client about an acknowledged request.
type grantedTo struct {
	ResourceID       string `json:"resource_id"`
	GatewayID        string `json:"gateway_id"`
	GatewayPublicKey []byte `json:"gateway_public_key"`
	PresharedKey     []byte `json:"preshared_key"`
}

// dialClient joins a client with the given key; nil makes one up. The route is
// that of the portal's generation.
func dialClient(t testing.TB, lab *labportal.Server, externalID string, key []byte) *portalClient {
	t.Helper()
	if key == nil {
		key = append([]byte(externalID), make([]byte, 32)...)[:32]
	}
	query := url.Values{
		"external_id": {externalID}, "name": {"client"}, "public_key": {base64.StdEncoding.EncodeToString(key)},
		"token": {"client-token"},
	}
	header := http.Header{"User-Agent": {"Linux/6.1 headless-client/1.5.11 (x86_64)"}}
	path := "/client/v2/websocket?"
	ws, resp, err := websocket.DefaultDialer.Dial(lab.URL()+path+query.Encode(), header)
	c := &portalClient{t: t, got: make(chan clientFrame, 1024)}
	if err != nil && resp != nil && resp.StatusCode == http.StatusNotFound {
		c.v1 = true
		ws, _, err = websocket.DefaultDialer.Dial(lab.URL()+"/client/websocket?"+query.Encode(), header)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.ws = ws
	c.done.Go(c.read)
	t.Cleanup(func() { ws.Close(); c.done.Wait() })
	c.send("phx_join", nil)
	var init struct {
		Interface struct{ IPv4 netip.Addr }
	}
	if err := json.Unmarshal(c.want("init"), &init); err != nil {
		t.Fatal(err)
	}
	c.ipv4 = init.Interface.IPv4
	for _, d := range lab.State().Clients {
		if d.ExternalID == externalID {
			c.id = d.ID
		}
	}
	return c
}

func (c *portalClient) read() {
	for {
		var f clientFrame
		if err := c.ws.ReadJSON(&f); err != nil {
			return
		}
		c.got <- f
	}
}

func (c *portalClient) send(event string, payload any) {
	c.t.Helper()
	c.ref++
	if err := c.ws.WriteJSON(map[string]any{"topic": "client", "event": event, "payload": payload, "ref": c.ref}); err != nil {
		c.t.Fatal(err)
	}
}

// want passes over frames until the one of an event comes.
func (c *portalClient) want(event string) json.RawMessage {
	c.t.Helper()
	expiry := time.After(patience)
	for {
		select {
		case f := <-c.got:
			if f.Event == event {
				return f.Payload
			}
		case <-expiry:
			c.t.Fatalf("no %s comes", event)
		}
	}
}

func (c *portalClient) event(v2, v1 string) string {
	if c.v1 {
		return v1
	}
	return v2
}

// request asks for a resource without waiting for an answer.
func (c *portalClient) request(resourceID string) {
	c.t.Helper()
	c.send(c.event("request_authorization", "create_flow"), map[string]any{"resource_id": resourceID, "connected_gateway_ids": []string{}})
}

// access asks for a resource and waits until the gateway acknowledged it.
func (c *portalClient) access(resourceID string) grantedTo {
	c.t.Helper()
	c.request(resourceID)
	var g grantedTo
	if err := json.Unmarshal(c.want(c.event("authorization_created", "flow_created")), &g); err != nil {
		c.t.Fatal(err)
	}
	return g
}

// signal tells the gateway about candidates.
func (c *portalClient) signal(gatewayID string, lines ...any) {
	c.t.Helper()
	c.send("broadcast_ice_candidates", map[string]any{"gateway_ids": []string{gatewayID}, "candidates": lines})
}
