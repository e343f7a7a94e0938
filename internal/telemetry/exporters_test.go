package telemetry

import (
	"compress/gzip"
	"context"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	metricpb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

// webCollector is an OTLP receiver over HTTP on loopback.
type webCollector struct {
	*httptest.Server

	mu       sync.Mutex
	requests []webRequest // guarded by mu
}

type webRequest struct {
	path   string
	header http.Header
	body   []byte
}

func newWebCollector(t *testing.T) *webCollector {
	t.Helper()
	c := &webCollector{}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *webCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var from io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		from = unpacked
	}
	body, err := io.ReadAll(from)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, webRequest{r.URL.Path, r.Header, body})
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// to returns the requests to a path.
func (c *webCollector) to(path string) (found []webRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		if r.path == path {
			found = append(found, r)
		}
	}
	return found
}

// sent returns the only metric in a request.
func sent(t *testing.T, r webRequest) *metricpb.Metric {
	t.Helper()
	var m metricspb.ExportMetricsServiceRequest
	if err := proto.Unmarshal(r.body, &m); err != nil {
		t.Fatal(err)
	}
	all := m.GetResourceMetrics()[0].GetScopeMetrics()[0].GetMetrics()
	if len(all) != 1 {
		t.Fatalf("%d metrics", len(all))
	}
	return all[0]
}

// setup is Setup with the environment given, in which ADDR stands for addr.
func setup(t *testing.T, config Config, addr string, env map[string]string) (*Providers, func(context.Context) error) {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, strings.ReplaceAll(v, "ADDR", addr))
	}
	p, shutdown, err := Setup(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shutdown(context.Background()) })
	return p, shutdown
}

func TestBothSignalsOverHTTP(t *testing.T) {
	for _, tc := range []struct {
		name          string
		env           map[string]string
		spans, values string // paths; "" for none
	}{
		{"to the base of the environment", map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		}, "/v1/traces", "/v1/metrics"},
		{"to paths of their own", map[string]string{
			"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://ADDR/t", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://ADDR/m",
			"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		}, "/t", "/m"},
		{"one of them", map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
			"OTEL_TRACES_EXPORTER": "none",
		}, "", "/v1/metrics"},
		{"packed", map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
			"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
		}, "/v1/traces", "/v1/metrics"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newWebCollector(t)
			tc.env["OTEL_EXPORTER_OTLP_HEADERS"] = "x-site=lab"
			p, shutdown := setup(t, service, c.Listener.Addr().String(), tc.env)
			use(t, p)
			if err := shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tc.spans != "" {
				got := c.to(tc.spans)
				if len(got) != 1 {
					t.Fatalf("%d requests with spans", len(got))
				}
				var m tracepb.ExportTraceServiceRequest
				if err := proto.Unmarshal(got[0].body, &m); err != nil {
					t.Fatal(err)
				}
				if name := m.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetName(); name != "work" {
					t.Errorf("span %q", name)
				}
			}
			got := c.to(tc.values)
			if len(got) != 1 || sent(t, got[0]).GetName() != Packets.Name {
				t.Fatalf("%d requests with metrics", len(got))
			}
			for key, want := range map[string]string{
				"X-Site": "lab", "Content-Type": "application/x-protobuf", "Content-Encoding": map[bool]string{true: "gzip"}[tc.name == "packed"],
			} {
				if v := got[0].header.Get(key); v != want {
					t.Errorf("header %s is %q, want %q", key, v, want)
				}
			}
			if n := len(c.requests); (tc.spans == "") != (n == 1) {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestEachSignalHasItsProtocol(t *testing.T) {
	rpc, web := newCollector(t), newWebCollector(t)
	p, shutdown := setup(t, service, rpc.addr, map[string]string{
		"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": web.URL + "/v1/metrics",
	})
	use(t, p)
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(rpc.spans) != 1 || len(rpc.metrics) != 0 || len(web.to("/v1/metrics")) != 1 {
		t.Errorf("gRPC got %v and %v, HTTP %d requests", rpc.spans, rpc.metrics, len(web.requests))
	}
}

// Whoever asks for OTLP by name gets the address of the specification.
func TestOTLPByNameGoesToTheUsualPlace(t *testing.T) {
	for name, tc := range map[string]struct{ protocol, want string }{
		"gRPC": {"", "http://localhost:4317"},
		"HTTP": {"http/protobuf", "http://localhost:4318"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", tc.protocol)
			c, err := wanted("TRACES", service)
			if err != nil || !c.otlp || c.endpoint != tc.want || c.http != (tc.protocol != "") {
				t.Errorf("got %+v, %v", c, err)
			}
		})
	}
}

func TestExportersAreChosen(t *testing.T) {
	for _, tc := range []struct {
		name             string
		env              map[string]string
		prometheus       bool // somebody would serve it
		otlp, scrapeable bool
	}{
		{"nothing is said", nil, true, false, true},
		{"nothing is said and nobody serves scrapes", nil, false, false, false},
		{"a collector", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR"}, true, true, true},
		{"otlp", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_METRICS_EXPORTER": "otlp"}, true, true, false},
		{"prometheus", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_METRICS_EXPORTER": "prometheus"}, true, false, true},
		{"prometheus, which nobody serves", map[string]string{"OTEL_METRICS_EXPORTER": "prometheus"}, false, false, false},
		{"both", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_METRICS_EXPORTER": "otlp, prometheus"}, true, true, true},
		{"none", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_METRICS_EXPORTER": "none"}, true, false, false},
		{"all is off", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_SDK_DISABLED": "true"}, true, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCollector(t)
			config := service
			config.Prometheus = tc.prometheus
			p, shutdown := setup(t, config, c.addr, tc.env)
			_, silent := p.Meter.(metricnoop.MeterProvider)
			if silent == (tc.otlp || tc.scrapeable) {
				t.Errorf("meter provider is a %T", p.Meter)
			}
			use(t, p)
			if (p.Prometheus != nil) != tc.scrapeable {
				t.Errorf("a handler for Prometheus: %v", p.Prometheus != nil)
			}
			if tc.scrapeable && scrape(t, p)["connlib_network_packets_total"] == nil {
				t.Error("the scrape has no packets")
			}
			if err := shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if (len(c.metrics) == 1) != tc.otlp {
				t.Errorf("the collector got %v", c.metrics)
			}
			if _, silent := p.Tracer.(tracenoop.TracerProvider); tc.env == nil && !silent {
				t.Errorf("tracer provider is a %T", p.Tracer)
			}
		})
	}
}

func TestMetricsAreExportedAtTheInterval(t *testing.T) {
	c := newWebCollector(t)
	p, _ := setup(t, service, c.Listener.Addr().String(), map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_METRIC_EXPORT_INTERVAL": "20", // ms
	})
	use(t, p)
	for deadline := time.Now().Add(10 * time.Second); len(c.to("/v1/metrics")) < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no metrics without being asked")
		}
	}
}

func TestTemporalityIsChosen(t *testing.T) {
	for preference, want := range map[string]metricpb.AggregationTemporality{
		"cumulative": metricpb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
		"delta":      metricpb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA,
	} {
		t.Run(preference, func(t *testing.T) {
			c := newWebCollector(t)
			p, shutdown := setup(t, service, c.Listener.Addr().String(), map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
				"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": preference,
			})
			use(t, p)
			if err := shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := sent(t, c.to("/v1/metrics")[0]).GetSum().GetAggregationTemporality(); got != want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// The certificate of the receiver is checked against that of the environment.
func TestExportsAreEncrypted(t *testing.T) {
	c := &webCollector{}
	c.Server = httptest.NewUnstartedServer(c)
	c.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of handshakes that the client breaks off
	c.StartTLS()
	t.Cleanup(c.Close)
	certificate := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})
	if err := os.WriteFile(certificate, block, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, certificate string
		want              int
	}{
		{"by a certificate that is not trusted", "", 0},
		{"by the one that is", certificate, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, shutdown := setup(t, service, c.Listener.Addr().String(), map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "https://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
				"OTEL_EXPORTER_OTLP_CERTIFICATE": tc.certificate,
			})
			use(t, p)
			if err := shutdown(t.Context()); (err == nil) != (tc.want > 0) {
				t.Errorf("error %v", err)
			}
			if traces, metrics := len(c.to("/v1/traces")), len(c.to("/v1/metrics")); traces != tc.want || metrics != tc.want {
				t.Errorf("%d and %d requests, want %d each", traces, metrics, tc.want)
			}
		})
	}
}

// A request that hangs is given up after OTEL_EXPORTER_OTLP_TIMEOUT, and what is
// wrong is logged.
func TestExportsTimeOut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // whoever connects waits in the backlog
	lines := &lockedBuffer{}
	logger, err := NewLogger(lines, FormatHuman, "")
	if err != nil {
		t.Fatal(err)
	}
	config := service
	config.Logger = logger
	p, _ := setup(t, config, l.Addr().String(), map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDR", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_EXPORTER_OTLP_TIMEOUT": "20", "OTEL_METRIC_EXPORT_INTERVAL": "20", "OTEL_METRIC_EXPORT_TIMEOUT": "50",
	})
	use(t, p)
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(lines.String(), "telemetry export"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is said about a collector that hangs")
		}
	}
}

func TestWantedRefuses(t *testing.T) {
	for _, tc := range []struct{ name, key, value, endpoint string }{
		{"HTTP to an endpoint of gRPC", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf", "127.0.0.1:1"},
		{"JSON", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "127.0.0.1:1"},
		{"an exporter it does not have", "OTEL_METRICS_EXPORTER", "console", ""},
		{"none and another", "OTEL_METRICS_EXPORTER", "none,otlp", ""},
		{"an empty name", "OTEL_METRICS_EXPORTER", "otlp,", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(tc.key, tc.value)
			config := service
			config.Endpoint = tc.endpoint
			_, err := wanted("METRICS", config)
			if err == nil || !strings.Contains(err.Error(), tc.key) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "prometheus")
	if _, err := wanted("TRACES", service); err == nil {
		t.Error("traces for Prometheus were accepted")
	}
}

func TestPrometheusAddr(t *testing.T) {
	for _, tc := range []struct{ host, port, want string }{
		{"", "", ""},
		{"127.0.0.1", "", "127.0.0.1:9464"},
		{"", "9000", "localhost:9000"},
		{"::1", "9000", "[::1]:9000"},
	} {
		t.Setenv("OTEL_EXPORTER_PROMETHEUS_HOST", tc.host)
		t.Setenv("OTEL_EXPORTER_PROMETHEUS_PORT", tc.port)
		if got := PrometheusAddr(); got != tc.want {
			t.Errorf("%q and %q: %q, want %q", tc.host, tc.port, got, tc.want)
		}
	}
}

// lockedBuffer takes what loggers of other goroutines write.
type lockedBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
