package actors

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// §5.5: a portal of the first generation is asked for the second once, not with
// each attempt, and not after the actor was restarted either.
func TestThePortalRemembersTheRouteThatWorked(t *testing.T) {
	const v1, v2 = "/gateway/websocket", "/gateway/v2/websocket"
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		if r.URL.Path != v1 {
			http.NotFound(w, r)
			return
		}
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		s := &scripted{t, ws}
		s.join()
		s.push("init", map[string]any{"interface": map[string]any{"ipv4": "100.64.0.1", "ipv6": "fd00:2021:1111::1"}, "config": map[string]any{}, "relays": []any{}})
		s.read()
	}))
	t.Cleanup(server.Close)
	r := &portalRig{stage: newStage(t, newTestPlane(t, "ws"+strings.TrimPrefix(server.URL, "http")))}
	r.introduce()
	r.dial()
	for range 2 {
		fromPortal[portal.Init](r)
		r.look(r.pid, func(ctx actorkit.Context) { ctx.Send(ctx.Self(), messages.SendToPortal{}) })
	}
	fromPortal[portal.Init](r)
	mu.Lock()
	defer mu.Unlock()
	if want := []string{v2, v1, v1, v1}; !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}
