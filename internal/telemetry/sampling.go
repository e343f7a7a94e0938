package telemetry

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// sampling is what OTEL_TRACES_SAMPLER asks for.
type sampling struct {
	sampler sdktrace.Sampler
	none    bool // no trace at all, not even those with errors
	partial bool // some traces are not sampled, of which those with errors are kept
}

// samplingFromEnv reads OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. Unset
// means parentbased_always_on. Every trace of the gateway begins in the gateway,
// so that parentbased_ changes nothing about its roots; it makes a trace whole.
func samplingFromEnv() (sampling, error) {
	const name, argument = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
	value := strings.ToLower(strings.TrimSpace(os.Getenv(name)))
	switch strings.TrimPrefix(value, "parentbased_") {
	case "", "always_on":
		return sampling{sampler: sdktrace.ParentBased(sdktrace.AlwaysSample())}, nil
	case "always_off":
		return sampling{sampler: sdktrace.NeverSample(), none: true}, nil
	case "traceidratio":
		ratio := 1.0
		if text := strings.TrimSpace(os.Getenv(argument)); text != "" {
			var err error
			if ratio, err = strconv.ParseFloat(text, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
				return sampling{}, fmt.Errorf("%s is %q: want a number from 0 to 1", argument, text)
			}
		}
		// Also without parentbased_: the identifier decides, which all spans of a
		// trace share.
		sampler := sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))
		if ratio == 1 {
			return sampling{sampler: sampler}, nil
		}
		return sampling{sampler: keepable{sampler}, partial: true}, nil
	}
	return sampling{}, fmt.Errorf("%s is %q: want always_on, always_off or traceidratio, or one of them after parentbased_", name, value)
}

// keepable has the spans recorded that its sampler drops, so that keeper can
// look at how they end. They are not sampled nevertheless.
type keepable struct{ sdktrace.Sampler }

// ShouldSample implements sdktrace.Sampler.
func (k keepable) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	result := k.Sampler.ShouldSample(p)
	if result.Decision == sdktrace.Drop {
		result.Decision = sdktrace.RecordOnly
	}
	return result
}

// Description implements sdktrace.Sampler.
func (k keepable) Description() string { return "errors or " + k.Sampler.Description() }

// queueSize is how many spans wait for the exporter where OTEL_BSP_MAX_QUEUE_SIZE
// does not say. With one of the SDK's size, a crowd of clients that comes back at
// once would lose some; a collector that is away costs some MB.
const queueSize = 8 << 10

// provider makes spans and hands them to the exporter. The keeper is nil if all are
// sampled.
func (s sampling) provider(exporter sdktrace.SpanExporter, res *resource.Resource) (*sdktrace.TracerProvider, *keeper) {
	var options []sdktrace.BatchSpanProcessorOption
	if os.Getenv("OTEL_BSP_MAX_QUEUE_SIZE") == "" {
		options = append(options, sdktrace.WithMaxQueueSize(queueSize))
	}
	processor := sdktrace.NewBatchSpanProcessor(exporter, options...)
	var kept *keeper
	if s.partial {
		kept = newKeeper(processor, defaultKeepLimits)
		processor = kept
	}
	return sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(processor), sdktrace.WithSampler(s.sampler), sdktrace.WithResource(res)), kept
}
