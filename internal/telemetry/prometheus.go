package telemetry

import (
	"cmp"
	"net"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// maxScrapes bounds the scrapes that are answered at a time: each of them looks at
// every client.
const maxScrapes = 2

// newPrometheus returns a reader for a meter provider and what answers scrapes
// with it. Names have the classic form whatever the scraper accepts, so that one
// query fits all: actor.restarts is actor_restarts_total.
func newPrometheus(histograms *Histograms) (sdkmetric.Reader, http.Handler, error) {
	registry := prometheus.NewRegistry()
	reader, err := otelprometheus.New(
		otelprometheus.WithRegisterer(registry),
		otelprometheus.WithProducer(histograms),
		otelprometheus.WithoutScopeInfo(),
		otelprometheus.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes),
	)
	if err != nil {
		return nil, nil, err
	}
	return reader, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// One metric that cannot be gathered hides the others from nobody.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true,
	}), nil
}

// PrometheusAddr returns the address that OTEL_EXPORTER_PROMETHEUS_HOST and
// OTEL_EXPORTER_PROMETHEUS_PORT name for scrapes, "" if neither is set. Of one that
// is not set the default of the OpenTelemetry specification counts.
func PrometheusAddr() string {
	host, port := os.Getenv("OTEL_EXPORTER_PROMETHEUS_HOST"), os.Getenv("OTEL_EXPORTER_PROMETHEUS_PORT")
	if host == "" && port == "" {
		return ""
	}
	return net.JoinHostPort(cmp.Or(host, "localhost"), cmp.Or(port, "9464"))
}
