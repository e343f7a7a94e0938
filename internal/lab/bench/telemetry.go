package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	labnet "firezone-gateway/internal/lab/net"
)

// Where the daemon and who observes it meet, on the daemon's host.
const (
	collectorAddr = "127.0.0.1:4317"
	scrapedAddr   = "127.0.0.1:8080"
	scrapeEvery   = time.Second
)

// buildTelemetry makes two networks that are the same, but that in one all that
// the daemon tells about itself is asked for: traces of everything, metrics every
// second over OTLP, and a scrape every second.
func (r *rig) buildTelemetry(ctx context.Context) error {
	if err := r.observe(); err != nil {
		return fmt.Errorf("observer: %w", err)
	}
	quiet := &rig{options: r.options}
	quiet.options.LogDir = "" // there is one log file
	r.closers = append(r.closers, quiet.close)
	if err := quiet.addNetwork(); err != nil {
		return err
	}
	for name, r := range map[string]*rig{"telemetry on": r, "telemetry off": quiet} {
		w := way{name: name, client: r.net.Client, granted: byAddress}
		if err := r.addGateway(ctx, r.net.Middle, r.net.Client, w); err != nil {
			return err
		}
	}
	r.ways = append(r.ways, quiet.ways...)
	return nil
}

// observe has the daemon send everything to an observer that counts, and be
// scraped by it.
func (r *rig) observe() error {
	o := &observer{host: r.net.Middle, stop: make(chan struct{})}
	listener, err := o.host.Listen("tcp", collectorAddr)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(server, o)
	metricspb.RegisterMetricsServiceServer(server, metricsObserver{o: o})
	o.work.Go(func() { _ = server.Serve(listener) }) // it ends with Stop
	o.work.Go(o.scrape)
	r.closers = append(r.closers, func() error {
		close(o.stop)
		server.Stop()
		o.work.Wait()
		return nil
	})
	r.observer = o
	r.env = append(r.env,
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://"+collectorAddr, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_TRACES_SAMPLER=always_on",
		fmt.Sprintf("OTEL_METRIC_EXPORT_INTERVAL=%d", scrapeEvery.Milliseconds()))
	return nil
}

// observer counts what the daemon tells.
type observer struct {
	tracepb.UnimplementedTraceServiceServer
	host labnet.Host
	stop chan struct{}
	work sync.WaitGroup

	spans, metrics, scraped atomic.Int64
}

// Export implements the receiver of traces.
func (o *observer) Export(_ context.Context, r *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	for _, of := range r.GetResourceSpans() {
		for _, s := range of.GetScopeSpans() {
			o.spans.Add(int64(len(s.GetSpans())))
		}
	}
	return &tracepb.ExportTraceServiceResponse{}, nil
}

// metricsObserver is the receiver of metrics, whose method has the same name.
type metricsObserver struct {
	metricspb.UnimplementedMetricsServiceServer
	o *observer
}

// Export implements the receiver of metrics.
func (m metricsObserver) Export(_ context.Context, r *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	m.o.metrics.Add(int64(len(r.GetResourceMetrics())))
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

// scrape fetches the metrics as Prometheus does, until stop is closed. What does
// not succeed is missing in the end, see complete.
func (o *observer) scrape() {
	client := &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DialContext: o.dial, MaxIdleConns: 1},
	}
	defer client.CloseIdleConnections()
	ticker := time.NewTicker(scrapeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-ticker.C:
		}
		response, err := client.Get("http://" + scrapedAddr + "/metrics")
		if err != nil {
			continue
		}
		n, err := io.Copy(io.Discard, response.Body)
		if response.Body.Close() == nil && err == nil && n > 0 && response.StatusCode == http.StatusOK {
			o.scraped.Add(1)
		}
	}
}

func (o *observer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return o.host.DialContext(ctx, network, address)
}

// complete holds that the daemon was observed in each of the ways, so that the
// figures are about what they claim to be.
func (o *observer) complete() error {
	if o == nil {
		return nil
	}
	var errs []error
	for what, n := range map[string]int64{"spans": o.spans.Load(), "metrics over OTLP": o.metrics.Load(), "scrapes": o.scraped.Load()} {
		if n == 0 {
			errs = append(errs, fmt.Errorf("the gateway with telemetry delivered no %s", what))
		}
	}
	return errors.Join(errs...)
}
