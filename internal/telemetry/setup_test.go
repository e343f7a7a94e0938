package telemetry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector is an OTLP receiver on loopback.
type collector struct {
	tracepb.UnimplementedTraceServiceServer
	metricspb.UnimplementedMetricsServiceServer
	addr string

	mu       sync.Mutex
	spans    []string
	metrics  []string
	resource map[string]string
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{addr: l.Addr().String(), resource: map[string]string{}}
	s := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(s, c)
	metricspb.RegisterMetricsServiceServer(s, metricsService{c})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return c
}

func (c *collector) describe(r *resourcepb.Resource) {
	for _, kv := range r.GetAttributes() {
		c.resource[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
}

func (c *collector) Export(_ context.Context, r *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		c.describe(rs.GetResource())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans = append(c.spans, s.GetName())
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
		m.describe(rm.GetResource())
		for _, sm := range rm.GetScopeMetrics() {
			for _, x := range sm.GetMetrics() {
				m.metrics = append(m.metrics, x.GetName())
			}
		}
	}
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

// use makes one span and one measurement.
func use(t *testing.T, p *Providers) {
	t.Helper()
	_, span := p.Tracer.Tracer(TracerName).Start(t.Context(), "work")
	span.End()
	c, err := p.Meter.Meter(MeterName).Int64Counter(Packets.Name, metric.WithUnit(Packets.Unit))
	if err != nil {
		t.Fatal(err)
	}
	c.Add(t.Context(), 1)
}

var service = Config{ServiceName: "gateway", ServiceVersion: "1.2.3", InstanceID: "id"}

func TestSetupExports(t *testing.T) {
	for _, tc := range []struct {
		name           string
		env            map[string]string // ADDR stands for the collector
		endpoint       string
		spans, metrics int
	}{
		{"to the endpoint it is given", nil, "ADDR", 1, 1},
		{"to a URL it is given", nil, "http://ADDR", 1, 1},
		{"to the endpoint of the environment", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR"}, "", 1, 1},
		{"traces only", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://ADDR"}, "", 1, 0},
		{"metrics only", map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://ADDR"}, "", 0, 1},
		{"to its own endpoint rather than to the environment's", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "ADDR", 1, 1},
		{"no traces if they are switched off", map[string]string{"OTEL_TRACES_EXPORTER": "none"}, "ADDR", 0, 1},
		{"nothing that is not sampled", map[string]string{"OTEL_TRACES_SAMPLER": "always_off"}, "ADDR", 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCollector(t)
			for k, v := range tc.env {
				t.Setenv(k, strings.ReplaceAll(v, "ADDR", c.addr))
			}
			config := service
			config.Endpoint = strings.ReplaceAll(tc.endpoint, "ADDR", c.addr)
			p, shutdown, err := Setup(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			use(t, p)
			for range 2 {
				if err := shutdown(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.spans) != tc.spans || len(c.metrics) != tc.metrics {
				t.Errorf("spans %v, metrics %v; want %d and %d", c.spans, c.metrics, tc.spans, tc.metrics)
			}
			for key, want := range map[string]string{
				"service.name": "gateway", "service.version": "1.2.3", "service.instance.id": "id", "os.type": "linux",
			} {
				if c.resource[key] != want {
					t.Errorf("resource %s is %q, want %q", key, c.resource[key], want)
				}
			}
		})
	}
}

func TestTheEnvironmentNamesTheService(t *testing.T) {
	c := newCollector(t)
	t.Setenv("OTEL_SERVICE_NAME", "mine")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "site=lab")
	config := service
	config.Endpoint = c.addr
	p, shutdown, err := Setup(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	use(t, p)
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.resource["service.name"] != "mine" || c.resource["site"] != "lab" || c.resource["service.instance.id"] != "id" {
		t.Errorf("resource %v", c.resource)
	}
}

func TestSetupWithoutAnEndpointDoesNothing(t *testing.T) {
	for name, env := range map[string][2]string{
		"because none is set": {"OTEL_SDK_DISABLED", ""},
		"because it is off":   {"OTEL_SDK_DISABLED", "true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(env[0], env[1])
			config := service
			if env[1] != "" {
				config.Endpoint = "127.0.0.1:1"
			}
			p, shutdown, err := Setup(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := p.Tracer.(tracenoop.TracerProvider); !ok {
				t.Errorf("tracer provider is a %T", p.Tracer)
			}
			if _, ok := p.Meter.(metricnoop.MeterProvider); !ok {
				t.Errorf("meter provider is a %T", p.Meter)
			}
			if err := shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSetupRefuses(t *testing.T) {
	const secret = "hunter2"
	for _, tc := range []struct {
		name, key, value, endpoint string
	}{
		{"a protocol it does not speak", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "127.0.0.1:1"},
		{"an exporter it does not have", "OTEL_TRACES_EXPORTER", "zipkin", "127.0.0.1:1"},
		{"an endpoint of another scheme", "X", "", "ftp://user:" + secret + "@host"},
		{"an endpoint without a host", "X", "", "http://"},
		{"an endpoint that is no URL", "X", "", "http://user:" + secret + "@ho st\x7f"},
		{"malformed resource attributes", "OTEL_RESOURCE_ATTRIBUTES", "novalue", "127.0.0.1:1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(tc.key, tc.value)
			config := service
			config.Endpoint = tc.endpoint
			_, _, err := Setup(t.Context(), config)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows a password: %v", err)
			}
		})
	}
}

func TestShutdownIsBoundedWhenTheCollectorIsSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			held = append(held, conn)
		}
	}()
	defer func() {
		l.Close()
		<-done
		for _, conn := range held {
			conn.Close()
		}
	}()

	config := service
	config.Endpoint = l.Addr().String()
	p, shutdown, err := Setup(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	use(t, p)
	began := time.Now()
	err = shutdown(t.Context())
	if took := time.Since(began); took > shutdownLimit+time.Second {
		t.Errorf("shutdown took %v", took)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestExportersComplainOnceAMinute(t *testing.T) {
	var buf bytes.Buffer
	c := &complaints{to: slog.New(slog.NewTextHandler(&buf, nil))}
	for range 10 {
		c.Handle(errors.New("unreachable"))
	}
	if n := strings.Count(buf.String(), "unreachable"); n != 1 {
		t.Errorf("%d complaints, want 1", n)
	}
}
