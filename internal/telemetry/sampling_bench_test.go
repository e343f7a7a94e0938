package telemetry_test

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/telemetry"
)

// nowhere is an exporter that takes everything and sends nothing.
type nowhere struct{}

func (nowhere) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (nowhere) Shutdown(context.Context) error                             { return nil }

// begin is the message of the first actor, hop that of the second.
type (
	begin struct{}
	hop   struct{}
)

// BenchmarkTracedHop is two messages: one that begins a trace, and one that its
// handler sends, so that the second has the first's context in its headers. An
// authorisation has about thirty of these; packets have none.
func BenchmarkTracedHop(b *testing.B) {
	for _, bc := range []struct{ name, sampler, ratio string }{
		{"Off", "always_off", ""},
		{"Ratio1Percent", "parentbased_traceidratio", "0.01"},
		{"On", "parentbased_always_on", ""},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.Setenv("OTEL_TRACES_SAMPLER", bc.sampler)
			b.Setenv("OTEL_TRACES_SAMPLER_ARG", bc.ratio)
			provider, err := telemetry.SampledProvider(nowhere{})
			if err != nil {
				b.Fatal(err)
			}
			if sdk, ok := provider.(*sdktrace.TracerProvider); ok {
				defer func() { _ = sdk.Shutdown(context.Background()) }()
			}
			table, err := actorkit.NewTable(actorkit.Spec{Kind: "a", Restart: actorkit.Always, GiveUp: actorkit.Degrade, ShutdownBudget: 1e9,
				Backoff: actorkit.Backoff{Factor: 1}})
			if err != nil {
				b.Fatal(err)
			}
			system := actorkit.NewSystem(actorkit.Config{Table: table, Tracer: provider.Tracer("bench")})
			defer func() { _ = system.Shutdown(context.Background()) }()
			arrived := make(chan struct{}, 256)
			spawn := func(name string, receive func(actorkit.Context)) actorkit.PID {
				pid, err := system.Spawn("a", name, func() actorkit.Actor { return actorkit.ActorFunc(receive) })
				if err != nil {
					b.Fatal(err)
				}
				return pid
			}
			second := spawn("second", func(ctx actorkit.Context) {
				if _, ok := ctx.Message().(hop); ok {
					<-arrived
				}
			})
			first := spawn("first", func(ctx actorkit.Context) {
				if _, ok := ctx.Message().(begin); ok {
					ctx.Send(second, hop{})
				}
			})
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				arrived <- struct{}{}
				system.Send(first, begin{})
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is that of the process, which other work on the machine does not
// lengthen as it does the time that passes.
func processorTime(b *testing.B) int64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
