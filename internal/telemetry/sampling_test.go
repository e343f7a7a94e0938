package telemetry

import (
	"context"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

func TestSamplerVariables(t *testing.T) {
	for _, tc := range []struct {
		name, sampler, argument string
		want                    string // of the description, or of the error
		none, partial, fails    bool
	}{
		{name: "unset samples all", want: "ParentBased{root:AlwaysOnSampler"},
		{name: "always_on", sampler: "always_on", want: "ParentBased{root:AlwaysOnSampler"},
		{name: "always_off is off altogether", sampler: "always_off", want: "AlwaysOffSampler", none: true},
		{name: "parentbased_always_off", sampler: "parentbased_always_off", want: "AlwaysOffSampler", none: true},
		{name: "a ratio keeps errors", sampler: "traceidratio", argument: "0.25", want: "errors or ParentBased{root:TraceIDRatioBased{0.25}", partial: true},
		{name: "a ratio of traces with parents", sampler: "ParentBased_TraceIDRatio", argument: " 0 ", want: "errors or ParentBased{root:TraceIDRatioBased{0}", partial: true},
		{name: "a ratio without number is one", sampler: "traceidratio", want: "ParentBased{root:TraceIDRatioBased{1}"},
		{name: "a ratio above one", sampler: "traceidratio", argument: "1.5", want: `OTEL_TRACES_SAMPLER_ARG is "1.5": want a number from 0 to 1`, fails: true},
		{name: "no number", sampler: "traceidratio", argument: "NaN", want: "want a number", fails: true},
		{name: "a sampler of another system", sampler: "jaeger_remote", want: `OTEL_TRACES_SAMPLER is "jaeger_remote": want always_on`, fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", tc.sampler)
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", tc.argument)
			got, err := samplingFromEnv()
			if tc.fails {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("error %v, want %q in it", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := got.sampler.Description(); !strings.HasPrefix(d, tc.want) {
				t.Errorf("sampler %q, want %q", d, tc.want)
			}
			if got.none != tc.none || got.partial != tc.partial {
				t.Errorf("none %v, partial %v", got.none, got.partial)
			}
		})
	}
}

// exported runs f with a provider as the variables shape it and returns the
// names of what reaches the exporter.
func exported(t *testing.T, f func(trace.Tracer)) tracetest.SpanStubs {
	t.Helper()
	sample, err := samplingFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	exporter := &keepsAfterShutdown{}
	provider, _ := sample.provider(exporter, nil)
	f(provider.Tracer("test"))
	if err := provider.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	return exporter.spans
}

// keepsAfterShutdown is an exporter whose spans can be looked at in the end.
type keepsAfterShutdown struct{ spans tracetest.SpanStubs }

func (e *keepsAfterShutdown) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.spans = append(e.spans, tracetest.SpanStubsFromReadOnlySpans(spans)...)
	return nil
}

func (e *keepsAfterShutdown) Shutdown(context.Context) error { return nil }

func TestATraceWithAnErrorIsExportedAlthoughItWasNotSampled(t *testing.T) {
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
	t.Setenv("OTEL_TRACES_SAMPLER_ARG", "0")
	spans := exported(t, func(tracer trace.Tracer) {
		for _, fails := range []bool{false, true} {
			ctx, root := tracer.Start(t.Context(), "root")
			_, before := tracer.Start(ctx, "before")
			before.End()
			_, failing := tracer.Start(ctx, "failing")
			if fails {
				failing.SetStatus(codes.Error, "x")
			}
			failing.End()
			_, after := tracer.Start(ctx, "after")
			after.End()
			root.End()
		}
	})
	var names []string
	for _, s := range spans {
		names = append(names, s.Name)
		if s.SpanContext.TraceID() != spans[0].SpanContext.TraceID() || !s.SpanContext.IsSampled() {
			t.Errorf("span %q of another trace, or not to be exported: %v", s.Name, s.SpanContext)
		}
		if len(s.Attributes) != 1 || s.Attributes[0] != AttrKept.Bool(true) {
			t.Errorf("span %q has %v", s.Name, s.Attributes)
		}
	}
	if got := strings.Join(names, " "); got != "before failing after root" {
		t.Errorf("exported %q", got)
	}
}

func TestASampledTraceIsExportedAsItIs(t *testing.T) {
	t.Setenv("OTEL_TRACES_SAMPLER", "")
	spans := exported(t, func(tracer trace.Tracer) {
		_, s := tracer.Start(t.Context(), "fine")
		s.End()
	})
	if len(spans) != 1 || len(spans[0].Attributes) != 0 {
		t.Errorf("exported %v", spans)
	}
}
