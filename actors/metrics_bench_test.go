package actors

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
)

// populated is a tree with that many clients, each with ten grants, a translation and
// the actors that belong to it, without the traffic.
func populated(b *testing.B, clients int) *Tree {
	b.Helper()
	s := newStage(b, newTestPlane(b, ""))
	var grants policy.Grants
	for n := range byte(10) {
		grants = grants.Upsert(policy.Grant{Resource: policyResource(authorization(1, n).Resource), ExpiresAt: time.Now().Add(time.Hour)})
	}
	idle := func() actorkit.Actor { return actorkit.ActorFunc(func(actorkit.Context) {}) }
	for i := range clients {
		state := clientState{Connected: true, Grants: grants, NAT: tunnel.NewNAT(nat.New(nat.Config{}))}
		binary.LittleEndian.PutUint32(state.Client.PublicKey[:], uint32(i+1))
		state.Client.IPv4 = netip.AddrFrom4([4]byte{100, 64, 1 + byte(i>>8), byte(i)})
		if _, err := s.plane.Tunnel.Add(tunnel.ClientConfig{
			PublicKey: state.Client.PublicKey, TunnelV4: state.Client.IPv4, NAT: state.NAT,
			Policy: policy.Compile(policy.Peer{ClientV4: state.Client.IPv4}, nil, 1),
			Callbacks: tunnel.Callbacks{
				Control: func([]byte) bool { return true }, Session: func(tunnel.Session) {}, Path: func(*transport.Path) {},
			},
		}); err != nil {
			b.Fatal(err)
		}
		s.plane.store.m[fmt.Sprint("client-", i)] = state
		s.peers.spawn(KindPeer, fmt.Sprint(i), idle)
		s.peers.spawn(KindNAT, fmt.Sprint("nat.", i), idle)
	}
	return &Tree{system: s.system, plane: s.plane.Plane, root: s.root.pid}
}

// BenchmarkCollection is what the gateway does for one scrape or export, with 1,000
// clients and 2,000 actors.
func BenchmarkCollection(b *testing.B) {
	g := newGauge(b, populated(b, 1000))
	b.ReportAllocs()
	var all metricdata.ResourceMetrics
	for b.Loop() {
		if err := g.reader.Collect(b.Context(), &all); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScrape adds what Prometheus' format costs.
func BenchmarkScrape(b *testing.B) {
	p, shutdown, err := telemetry.Setup(b.Context(), telemetry.Config{ServiceName: "gateway", Prometheus: true})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = shutdown(context.Background()) }()
	if _, err := populated(b, 1000).Observe(p, time.Now()); err != nil {
		b.Fatal(err)
	}
	size := 0
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		p.Prometheus.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		size = w.Body.Len()
		_, _ = io.Copy(io.Discard, w.Body)
	}
	b.ReportMetric(float64(size), "B/scrape")
}
