package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
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
	// Endpoint is a host:port or a URL, and wins over the environment. Without
	// the scheme https the connection is not encrypted.
	Endpoint string
	// Logger receives the exporters' errors, at most one a minute. Nil
	// discards them.
	Logger *slog.Logger
}

// Providers make tracers and meters. They are no-ops for a signal that is not
// exported.
type Providers struct {
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
}

// Setup connects the exporters for traces and metrics (OTLP over gRPC). A
// signal is exported if config.Endpoint, OTEL_EXPORTER_OTLP_ENDPOINT or its
// own OTEL_EXPORTER_OTLP_{TRACES,METRICS}_ENDPOINT is set, unless
// OTEL_SDK_DISABLED is true or its OTEL_{TRACES,METRICS}_EXPORTER is none. The
// other OTEL_* variables of the SDK apply, and those about the resource win
// over config. A collector that is away is no error and blocks nothing.
//
// The returned function flushes and ends the exporters within 2 s; it may be
// called more than once.
func Setup(ctx context.Context, config Config) (*Providers, func(context.Context) error, error) {
	p := &Providers{Tracer: tracenoop.NewTracerProvider(), Meter: metricnoop.NewMeterProvider()}
	none := func(context.Context) error { return nil }
	traces, err := wanted("TRACES", config.Endpoint)
	if err != nil {
		return nil, nil, err
	}
	metrics, err := wanted("METRICS", config.Endpoint)
	if err != nil {
		return nil, nil, err
	}
	if !traces && !metrics {
		return p, none, nil
	}
	endpoint, err := endpointURL(config.Endpoint)
	if err != nil {
		return nil, nil, err
	}
	res, err := describe(ctx, config)
	if err != nil {
		return nil, nil, err
	}

	var ends []func(context.Context) error
	if traces {
		tp, end, err := newTracer(ctx, endpoint, res)
		if err != nil {
			return nil, nil, err
		}
		p.Tracer = tp
		ends = append(ends, end)
	}
	if metrics {
		mp, end, err := newMeter(ctx, endpoint, res)
		if err != nil {
			return nil, nil, errors.Join(err, endAll(ctx, ends))
		}
		p.Meter = mp
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

// wanted reports whether a signal is to be exported.
func wanted(signal, endpoint string) (bool, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	key := "OTEL_" + signal + "_EXPORTER"
	switch exporter := os.Getenv(key); exporter {
	case "none":
		return false, nil
	case "", "otlp":
	default:
		return false, fmt.Errorf("%s is %q: want otlp or none", key, exporter)
	}
	if endpoint == "" && os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" &&
		os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") == "" {
		return false, nil
	}
	for _, key := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		protocol := os.Getenv(key)
		if protocol == "grpc" {
			break
		}
		if protocol != "" {
			return false, fmt.Errorf("%s is %q: want grpc", key, protocol)
		}
	}
	return true, nil
}

// endpointURL gives endpoint a scheme. The exporters ignore what they cannot
// parse, so it is checked here.
func endpointURL(endpoint string) (string, error) {
	if endpoint == "" {
		return "", nil
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		// Not the text itself, nor the parser's error, which quotes it: a URL
		// may carry credentials.
		return "", errors.New("telemetry endpoint: want host:port, or a URL with http or https")
	}
	return endpoint, nil
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

func newTracer(ctx context.Context, endpoint string, res *resource.Resource) (trace.TracerProvider, func(context.Context) error, error) {
	var options []otlptracegrpc.Option
	if endpoint != "" {
		options = append(options, otlptracegrpc.WithEndpointURL(endpoint))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("trace exporter: %w", err)
	}
	tp := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	return tp, both(tp.Shutdown, exporter.Shutdown), nil
}

func newMeter(ctx context.Context, endpoint string, res *resource.Resource) (metric.MeterProvider, func(context.Context) error, error) {
	var options []otlpmetricgrpc.Option
	if endpoint != "" {
		options = append(options, otlpmetricgrpc.WithEndpointURL(endpoint))
	}
	exporter, err := otlpmetricgrpc.New(ctx, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("metric exporter: %w", err)
	}
	mp := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)),
		sdkmetric.WithResource(res))
	return mp, both(mp.Shutdown, exporter.Shutdown), nil
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
