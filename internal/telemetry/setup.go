package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// shutdownLimit bounds Setup's shutdown: a collector that does not answer
// would hold it until its context ends.
const shutdownLimit = 2 * time.Second

// Config is what telemetry says about the process and where it sends it.
type Config struct {
	ServiceName    string
	ServiceVersion string
	InstanceID     string
	// Endpoint is a host:port or a URL of a gRPC receiver, and wins over the
	// environment. Without the scheme https the connection is not encrypted.
	Endpoint string
	// Prometheus says that somebody serves Providers.Prometheus.
	Prometheus bool
	// Logger receives the exporters' errors, at most one a minute. Nil
	// discards them.
	Logger *slog.Logger
}

// Providers make tracers and meters. They are no-ops for a signal that is not
// exported.
type Providers struct {
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
	// Histograms go wherever Meter's metrics go.
	Histograms *Histograms
	// Prometheus answers a scrape with all metrics. It is nil if the
	// configuration or OTEL_METRICS_EXPORTER does not want it.
	Prometheus http.Handler

	keeper *keeper // nil unless some traces are not sampled
}

// Setup connects the exporters for traces and metrics. A signal is sent by OTLP
// if config.Endpoint, OTEL_EXPORTER_OTLP_ENDPOINT or its own
// OTEL_EXPORTER_OTLP_{TRACES,METRICS}_ENDPOINT is set, and metrics are kept for
// Prometheus if config.Prometheus is set. OTEL_TRACES_EXPORTER (otlp, none) and
// OTEL_METRICS_EXPORTER (otlp, prometheus, both with a comma between, none) choose
// otherwise, and OTEL_SDK_DISABLED=true switches everything off. OTLP is spoken
// over gRPC or, if OTEL_EXPORTER_OTLP_PROTOCOL or that of the signal says so,
// http/protobuf. The other OTEL_* variables of the SDK apply, and those about the
// resource win over config. A collector that is away is no error and blocks
// nothing.
//
// The returned function flushes and ends the exporters within 2 s; it may be
// called more than once.
func Setup(ctx context.Context, config Config) (*Providers, func(context.Context) error, error) {
	p := &Providers{
		Tracer: tracenoop.NewTracerProvider(), Meter: metricnoop.NewMeterProvider(),
		Histograms: &Histograms{start: time.Now()},
	}
	none := func(context.Context) error { return nil }
	traces, err := wanted("TRACES", config)
	if err != nil {
		return nil, nil, err
	}
	metrics, err := wanted("METRICS", config)
	if err != nil {
		return nil, nil, err
	}
	if traces == (choice{}) && metrics == (choice{}) {
		return p, none, nil
	}
	res, err := describe(ctx, config)
	if err != nil {
		return nil, nil, err
	}

	var ends []func(context.Context) error
	if traces.otlp {
		tp, end, err := p.newTracer(ctx, traces, res)
		if err != nil {
			return nil, nil, err
		}
		p.Tracer = tp
		ends = append(ends, end)
	}
	if metrics != (choice{}) {
		end, err := p.meter(ctx, metrics, res)
		if err != nil {
			return nil, nil, errors.Join(err, endAll(ctx, ends))
		}
		ends = append(ends, end)
	}
	if config.Logger != nil {
		otel.SetErrorHandler(&complaints{to: config.Logger})
	} else {
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	}
	var once sync.Once
	var result error
	return p, func(ctx context.Context) error {
		once.Do(func() { result = endAll(ctx, ends) })
		return result
	}, nil
}

func describe(ctx context.Context, config Config) (*resource.Resource, error) {
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithOSType(),
		resource.WithAttributes(
			attribute.String("service.name", config.ServiceName),
			attribute.String("service.version", config.ServiceVersion),
			attribute.String("service.instance.id", config.InstanceID),
		),
		resource.WithFromEnv(),
	)
	if err != nil {
		return nil, fmt.Errorf("telemetry resource: %w", err)
	}
	return res, nil
}

func (p *Providers) newTracer(ctx context.Context, to choice, res *resource.Resource) (trace.TracerProvider, func(context.Context) error, error) {
	sample, err := samplingFromEnv()
	if err != nil {
		return nil, nil, err
	}
	if sample.none {
		return tracenoop.NewTracerProvider(), func(context.Context) error { return nil }, nil
	}
	exporter, err := to.traceExporter(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("trace exporter: %w", err)
	}
	tp, kept := sample.provider(exporter, res)
	p.keeper = kept
	return tp, both(tp.Shutdown, exporter.Shutdown), nil
}

// meter makes p.Meter and what it feeds.
func (p *Providers) meter(ctx context.Context, to choice, res *resource.Resource) (func(context.Context) error, error) {
	options := []sdkmetric.Option{sdkmetric.WithResource(res)}
	leave := func(context.Context) error { return nil }
	if to.prometheus {
		reader, handler, err := newPrometheus(p.Histograms)
		if err != nil {
			return nil, fmt.Errorf("prometheus: %w", err)
		}
		p.Prometheus = handler
		options = append(options, sdkmetric.WithReader(reader))
	}
	if to.otlp {
		exporter, err := to.metricExporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("metric exporter: %w", err)
		}
		leave = exporter.Shutdown
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter, sdkmetric.WithProducer(p.Histograms))))
	}
	mp := sdkmetric.NewMeterProvider(options...)
	p.Meter = mp
	return both(mp.Shutdown, leave), nil
}

// both ends a provider and, if that did not finish in time, its exporter: the
// SDK leaves the exporter's connection and goroutines behind in that case
// (sdk v1.47.0).
func both(provider, exporter func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := provider(ctx)
		if ctx.Err() != nil {
			// It reports what the provider already did.
			_ = exporter(ctx)
		}
		return err
	}
}

// endAll ends all at the same time, so that they share the limit.
func endAll(ctx context.Context, ends []func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	errs := make([]error, len(ends))
	var wg sync.WaitGroup
	for i, end := range ends {
		wg.Go(func() { errs[i] = end(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// complaints logs the exporters' errors, which repeat while a collector is
// away.
type complaints struct {
	to *slog.Logger

	mu   sync.Mutex
	last time.Time // guarded by mu
}

func (c *complaints) Handle(err error) {
	c.mu.Lock()
	due := c.last.IsZero() || time.Since(c.last) >= time.Minute
	if due {
		c.last = time.Now()
	}
	c.mu.Unlock()
	if due {
		c.to.Warn("telemetry export", "error", err)
	}
}
