package actors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

const (
	dispatchClients = 40
	// growthLimit is far below what a leak of a byte or two for each message
	// adds up to, and far above what the collector leaves.
	growthLimit = 8 << 20
)

// BenchmarkPortalMessages takes the messages of a busy gateway from a websocket
// on loopback through decoding, the portal actor and peers to the mailboxes of
// 40 clients. It fails if what is live on the heap grows with their number.
func BenchmarkPortalMessages(b *testing.B) {
	site := newFlood(b)
	s := newStage(b, newTestPlane(b, site.url))
	var handled atomic.Uint64
	last := make(chan struct{}, 1)
	s.plane.players.peer = func(env peerEnv) actorkit.Actor {
		return actorkit.ActorFunc(func(ctx actorkit.Context) {
			switch m := ctx.Message().(type) {
			case messages.Revoke:
				if m.ResourceID == "last" {
					last <- struct{}{}
				}
			case *actorkit.Started, *actorkit.Stopping, *actorkit.Stopped:
				return
			}
			handled.Add(1)
		})
	}
	ready := make(chan struct{})
	sink := func(kind string) actorkit.PID {
		pid, err := s.system.Spawn(kind, "sink-"+kind, func() actorkit.Actor {
			return actorkit.ActorFunc(func(ctx actorkit.Context) {
				if m, ok := ctx.Message().(messages.UpdateRelays); ok {
					ctx.Respond(messages.RelaysUpdated{Number: m.Number})
				}
			})
		})
		if err != nil {
			b.Fatal(err)
		}
		return pid
	}
	siblings := messages.Siblings{TUN: sink(KindTUN), Transport: sink(KindTransport)}
	siblings.Peers = s.root.spawn(KindPeers, "peers", func() actorkit.Actor { return newPeers(s.plane.Plane) })
	siblings.Portal = s.root.spawn(KindPortal, "portal", func() actorkit.Actor { return newPortal(s.plane.Plane) })
	s.plane.siblings.store(siblings)
	s.system.Send(siblings.Peers, siblings)
	s.system.Send(siblings.Portal, siblings)
	go func() { defer close(ready); site.await() }()
	await(b, ready, "the join")

	site.send(b, site.mixture, 2*len(site.mixture)) // every client has its peer
	site.send(b, [][]byte{site.last}, 1)
	await(b, last, "the first messages")
	before, handledBefore := heapInUse(), handled.Load()

	b.ReportAllocs()
	b.ResetTimer()
	site.send(b, site.mixture, b.N)
	site.send(b, [][]byte{site.last}, 1)
	<-last
	b.StopTimer()

	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	b.ReportMetric(float64(handled.Load()-handledBefore)/float64(b.N), "handled/msg")
	if grown := int64(heapInUse()) - int64(before); grown > growthLimit {
		b.Errorf("%d bytes are left of %d messages", grown, b.N)
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// flood is a portal that does nothing but write frames made beforehand, so that
// it costs next to nothing itself.
type flood struct {
	url     string
	joined  chan net.Conn
	conn    net.Conn
	mixture [][]byte // a hundred frames, most of them candidates
	last    []byte
}

func newFlood(b *testing.B) *flood {
	b.Helper()
	f := &flood{joined: make(chan net.Conn, 1)}
	upgrader := websocket.Upgrader{}
	hold := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		if _, _, err := ws.ReadMessage(); err != nil { // phx_join
			return
		}
		go func() { // heartbeats
			for {
				if _, _, err := ws.ReadMessage(); err != nil {
					return
				}
			}
		}()
		f.joined <- ws.NetConn()
		<-hold
	}))
	b.Cleanup(func() { close(hold); server.Close() })
	f.url = "ws" + server.URL[len("http"):]

	push := func(event string, payload any) []byte {
		text, err := json.Marshal(map[string]any{"topic": "gateway", "event": event, "ref": nil, "payload": payload})
		if err != nil {
			b.Fatal(err)
		}
		return wireFrame(text)
	}
	for i := range 100 {
		c := byte(i%dispatchClients + 1)
		var frame []byte
		switch {
		case i < dispatchClients:
			frame = push("create_authorization", grantPayload(authorization(c, 10)))
		case i == 40:
			frame = push("init", map[string]any{
				"account_slug": "acme", "interface": map[string]string{"ipv4": "100.64.0.1", "ipv6": "fd00:2021:1111::1"},
				"relays": []any{}, "authorizations": []any{},
			})
		case i < 50:
			frame = push("reject_access", map[string]string{"client_id": clientID(c), "resource_id": resourceID(10)})
		case i == 50:
			frame = push("access_authorization_expiry_updated", map[string]any{
				"client_id": clientID(c), "resource_id": resourceID(10), "expires_at": 2_000_000_000})
		default:
			frame = push("ice_candidates", map[string]any{"client_id": clientID(c), "candidates": []string{remoteHost, remoteSrflx}})
		}
		f.mixture = append(f.mixture, frame)
	}
	f.last = push("reject_access", map[string]string{"client_id": clientID(1), "resource_id": "last"})
	return f
}

// await waits for the join and answers it.
func (f *flood) await() {
	f.conn = <-f.joined
	_, _ = f.conn.Write(wireFrame([]byte(`{"topic":"gateway","event":"phx_reply","ref":0,"payload":{"status":"ok","response":{}}}`)))
}

// send writes n frames, again and again from the first.
func (f *flood) send(b *testing.B, frames [][]byte, n int) {
	b.Helper()
	var batch bytes.Buffer
	for i := range n {
		batch.Write(frames[i%len(frames)])
		if batch.Len() < 64<<10 && i < n-1 {
			continue
		}
		if _, err := f.conn.Write(batch.Bytes()); err != nil {
			b.Fatal(fmt.Errorf("after %d frames: %w", i, err))
		}
		batch.Reset()
	}
}

// wireFrame is a text frame of a server (RFC 6455 §5.2).
func wireFrame(text []byte) []byte {
	out := []byte{0x81}
	if len(text) < 126 {
		out = append(out, byte(len(text)))
	} else {
		out = binary.BigEndian.AppendUint16(append(out, 126), uint16(len(text)))
	}
	return append(out, text...)
}
