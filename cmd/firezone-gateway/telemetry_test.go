package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"firezone-gateway/internal/telemetry"
)

// collectorAddr is where exporters send by themselves when they are told
// nothing.
const collectorAddr = "127.0.0.1:4317"

// collector is an OTLP receiver inside a namespace.
type collector struct {
	tracepb.UnimplementedTraceServiceServer
	metricspb.UnimplementedMetricsServiceServer
	connections atomic.Int64

	mu       sync.Mutex
	kinds    map[string]int    // spans by kind of actor; guarded by mu
	parents  int               // spans that continue another; guarded by mu
	resource map[string]string // guarded by mu
	metrics  map[string]int    // exports by name of the metric; guarded by mu
}

type countingListener struct {
	net.Listener
	count *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.count.Add(1)
	}
	return conn, err
}

func newCollector(t *testing.T, s *site) *collector {
	t.Helper()
	c := &collector{kinds: map[string]int{}, resource: map[string]string{}, metrics: map[string]int{}}
	server := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(server, c)
	metricspb.RegisterMetricsServiceServer(server, metricsService{c})
	l := countingListener{listen(t, s.Namespace, collectorAddr), &c.connections}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return c
}

func (c *collector) Export(_ context.Context, r *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		for _, kv := range rs.GetResource().GetAttributes() {
			c.resource[kv.GetKey()] = kv.GetValue().GetStringValue()
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, span := range ss.GetSpans() {
				if len(span.GetParentSpanId()) > 0 {
					c.parents++
				}
				for _, kv := range span.GetAttributes() {
					if kv.GetKey() == string(telemetry.AttrActorKind) {
						c.kinds[kv.GetValue().GetStringValue()]++
					}
				}
			}
		}
	}
	return &tracepb.ExportTraceServiceResponse{}, nil
}

// metricsService exists because both services have a method Export.
type metricsService struct{ *collector }

func (m metricsService) Export(_ context.Context, r *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rm := range r.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, x := range sm.GetMetrics() {
				m.metrics[x.GetName()]++
			}
		}
	}
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

func TestSpansReachTheCollector(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]variablesOf{
		"by the standard variable": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + collectorAddr},
		"by the original's":        {"OTLP_GRPC_ENDPOINT": collectorAddr},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			c := newCollector(t, s)
			env["OTEL_BSP_SCHEDULE_DELAY"] = "50" // ms
			r := s.startJoined(t, launch{env: env})
			r.await(t, "spans of portal and peers while it runs", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.kinds["portal"] > 0 && c.kinds["peers"] > 0 && c.parents > 0
			})
			r.terminates(t, syscall.SIGTERM)
			c.mu.Lock()
			defer c.mu.Unlock()
			for key, want := range map[string]string{
				"service.name": "firezone-gateway", "service.version": version, "service.instance.id": testID,
			} {
				if got := c.resource[key]; got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
		})
	}
}

func TestMetricsReachTheCollector(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := newCollector(t, s)
	r := s.startJoined(t, launch{env: variablesOf{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + collectorAddr, "OTEL_METRIC_EXPORT_INTERVAL": "50", // ms
	}})
	seen := func(name string) int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.metrics[name]
	}
	r.await(t, "metrics while it runs", func() bool { return seen(telemetry.ActorDuration.Name) > 1 && seen(telemetry.PortalUp.Name) > 1 })
	if status, body := health(t, s.Namespace, "/metrics"); status != 200 || !strings.Contains(body, "\nportal_connection_joined 1\n") {
		t.Errorf("at the same time /metrics is %d %s", status, body)
	}
	r.terminates(t, syscall.SIGTERM)
}

func TestMetricsOfTheEndAreFlushed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := newCollector(t, s)
	r := s.startJoined(t, launch{env: variablesOf{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + collectorAddr, "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}})
	r.terminates(t, syscall.SIGTERM)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.metrics[telemetry.ActorDuration.Name] != 1 || c.metrics[telemetry.Packets.Name] != 1 {
		t.Errorf("metrics %v", c.metrics)
	}
}

func TestSpansOfTheEndAreFlushed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := newCollector(t, s)
	r := s.startJoined(t, launch{env: variablesOf{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + collectorAddr, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}})
	r.terminates(t, syscall.SIGTERM)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds["gateway"] == 0 {
		t.Errorf("spans %v, want some of the gateway", c.kinds)
	}
}

func TestNothingIsExportedUnasked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := newCollector(t, s)
	s.startJoined(t, launch{}).terminates(t, syscall.SIGTERM)
	if n := c.connections.Load(); n != 0 {
		t.Errorf("%d connections to the collector", n)
	}
}
