package portal

import (
	"runtime"
	"strings"
	"testing"
)

const benchCandidate = `"candidate:fffeff6435be70ddbf995982 1 udp 1694498559 192.0.2.60 57114 typ srflx raddr 0.0.0.0 rport 0"`

// mixture is what a portal sends to a busy gateway, a hundred frames in all,
// most of them small. Together with their answers each grant brings three
// messages with candidates.
func mixture() [][]byte {
	push := func(event, payload string) string {
		return `{"topic":"gateway","event":"` + event + `","ref":null,"payload":` + payload + `}`
	}
	candidates := func(n int) string {
		return `{"client_id":"` + clientID + `","candidates":[` + strings.TrimSuffix(strings.Repeat(benchCandidate+",", n), ",") + `]}`
	}
	grant := `{"client_id":"` + clientID + `","resource_id":"` + resourceID + `","expires_at":1783425600}`
	kinds := []struct {
		share int
		frame string
	}{
		{10, push("authorize_flow", authorizeJSON(cidrResource, clientJSON, `,"subject":{"actor_id":"`+relayID+`","actor_name":"Example User"},"expires_at":1783425600`))},
		{10, push("create_authorization", authorizeJSON(dnsResource, clientJSON, `,"expires_at":1783425600,"use_iceless":false,"flow_logs_ingest_token":"`+strings.Repeat("eyJhbGciOiJIUzI1NiJ9.", 40)+`"`))},
		{40, push("ice_candidates", candidates(1))},
		{20, push("ice_candidates", candidates(4))},
		{10, push("reject_access", `{"client_id":"`+clientID+`","resource_id":"`+resourceID+`"}`)},
		{1, push("init", `{"account_slug":"acme","interface":{"ipv4":"100.115.164.78","ipv6":"fd00:2021:1111::2c:f6ab"},"config":{"ipv4_masquerade_enabled":true},"relays":[`+
			turn4+`,`+turn6+`],"authorizations":[`+strings.TrimSuffix(strings.Repeat(grant+",", 50), ",")+`]}`)},
		{3, push("invalidate_ice_candidates", candidates(1))},
		{2, push("resource_updated", cidrResource)},
		{1, push("access_authorization_expiry_updated", grant)},
		{1, push("relays_presence", `{"disconnected_ids":["`+relayID+`"],"connected":[`+turn4+`,`+turn6+`]}`)},
		{2, okReply(7)},
	}
	var out [][]byte
	for _, k := range kinds {
		for range k.share {
			out = append(out, []byte(k.frame))
		}
	}
	return out
}

// BenchmarkSession receives and polls the mixture. It fails if what is live on
// the heap grows with the number of messages.
func BenchmarkSession(b *testing.B) {
	frames := mixture()
	s := NewSession(epoch)
	before := liveHeap()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		receiveOne(b, s, frames[n%len(frames)])
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "msgs/s")
	growth := int64(liveHeap()) - int64(before)
	b.ReportMetric(float64(growth), "heap-growth-B")
	if growth > heapSlack {
		b.Errorf("%d bytes more are live after %d messages", growth, n)
	}
	runtime.KeepAlive(s)
}

func BenchmarkDecodeAuthorizeFlow(b *testing.B) { benchmarkFrame(b, mixture()[0]) }

func BenchmarkDecodeICECandidates(b *testing.B) { benchmarkFrame(b, mixture()[60]) }

func BenchmarkDecodeInit(b *testing.B) { benchmarkFrame(b, mixture()[90]) }

func benchmarkFrame(b *testing.B, in []byte) {
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		f, err := DecodeFrame(in)
		if err != nil {
			b.Fatal(err)
		}
		if _, skipped, err := Decode(f); err != nil || skipped != (Skipped{}) {
			b.Fatal(skipped, err)
		}
	}
}

// heapSlack is far below one byte per message of a long run and far above the
// noise of the runtime.
const heapSlack = 256 << 10

// TestSessionHoldsNothingOfTheMessages fails if 100,000 messages leave more
// than three bytes each behind.
func TestSessionHoldsNothingOfTheMessages(t *testing.T) {
	frames := mixture()
	s := NewSession(epoch)
	before := liveHeap()
	for range 1000 {
		for _, f := range frames {
			receiveOne(t, s, f)
		}
	}
	if growth := int64(liveHeap()) - int64(before); growth > heapSlack {
		t.Errorf("%d bytes more are live", growth)
	}
	runtime.KeepAlive(s)
}

// receiveOne expects the one event that every frame of the mixture but a reply
// leads to.
func receiveOne(tb testing.TB, s *Session, frame []byte) {
	s.Receive(frame, epoch)
	for e, ok := s.PollEvent(); ok; e, ok = s.PollEvent() {
		if r, ok := e.(Received); !ok || r.Skipped != (Skipped{}) {
			tb.Fatalf("%s led to %+v", frame, e)
		}
	}
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
