package actorkit

import (
	"context"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// load is a message that is boxed once, so that only the kit is measured.
type load struct{}

// window bounds what is in flight, as a Gate does in the gateway.
const window = 256

func BenchmarkSendReceive(b *testing.B) {
	sampled := func(s sdktrace.Sampler) trace.Tracer {
		p := sdktrace.NewTracerProvider(sdktrace.WithSampler(s))
		b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
		return p.Tracer("bench")
	}
	for _, bc := range []struct {
		name   string
		tracer trace.Tracer
	}{
		{"tracing off", nil},
		{"span not sampled", sampled(sdktrace.NeverSample())},
		{"span sampled", sampled(sdktrace.AlwaysSample())},
	} {
		b.Run(bc.name, func(b *testing.B) {
			sys := benchSystem(b, bc.tracer)
			slots := make(chan struct{}, window)
			pid, _ := sys.Spawn("a", "a", func() Actor {
				return ActorFunc(func(ctx Context) {
					if _, ok := ctx.Message().(*load); ok {
						<-slots
					}
				})
			})
			msg := &load{}
			b.ReportAllocs()
			for b.Loop() {
				slots <- struct{}{}
				sys.Send(pid, msg)
			}
		})
	}
}

// BenchmarkLibraryAlone is the same loop without the kit, to compare with.
func BenchmarkLibraryAlone(b *testing.B) {
	sys := benchSystem(b, nil)
	slots := make(chan struct{}, window)
	pid := sys.lib.Root.Spawn(actor.PropsFromFunc(func(ctx actor.Context) {
		if _, ok := ctx.Message().(*load); ok {
			<-slots
		}
	}))
	defer sys.lib.Root.Stop(pid)
	msg := &load{}
	b.ReportAllocs()
	for b.Loop() {
		slots <- struct{}{}
		sys.lib.Root.Send(pid, msg)
	}
}

func BenchmarkGate(b *testing.B) {
	sys := benchSystem(b, nil)
	gate := NewGate(window)
	pid, _ := sys.Spawn("a", "a", func() Actor { return ActorFunc(func(Context) {}) })
	msg := &load{}
	b.ReportAllocs()
	for b.Loop() {
		for !gate.TrySend(sys, pid, msg) {
			time.Sleep(0)
		}
	}
}

func BenchmarkAsk(b *testing.B) {
	sys := benchSystem(b, nil)
	pid, _ := sys.Spawn("a", "a", func() Actor {
		return ActorFunc(func(ctx Context) {
			if m, ok := ctx.Message().(*load); ok {
				ctx.Respond(m)
			}
		})
	})
	msg := &load{}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Ask[*load](b.Context(), sys, pid, msg, time.Minute); err != nil {
			b.Fatal(err)
		}
	}
}

func benchSystem(b *testing.B, tracer trace.Tracer) *System {
	table, err := NewTable(spec("a"))
	if err != nil {
		b.Fatal(err)
	}
	sys := NewSystem(Config{Table: table, Tracer: tracer})
	b.Cleanup(func() {
		if err := sys.Shutdown(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return sys
}
