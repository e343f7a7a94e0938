package telemetry

import (
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// SampledProvider is what Setup makes of the variables, with another exporter.
func SampledProvider(exporter sdktrace.SpanExporter) (trace.TracerProvider, error) {
	sample, err := samplingFromEnv()
	if err != nil {
		return nil, err
	}
	if sample.none {
		return tracenoop.NewTracerProvider(), nil
	}
	provider, _ := sample.provider(exporter, nil)
	return provider, nil
}
