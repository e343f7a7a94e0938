package actorkit

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"firezone-gateway/internal/telemetry"
)

// Messages of the relayed conversation.
type (
	first  struct{}
	second struct{}
	third  struct{}
	answer struct{}
	bulk   struct{}
)

func (bulk) Untraced() {}

func tracing(t *testing.T) (trace.Tracer, *tracetest.InMemoryExporter) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return provider.Tracer("test"), exporter
}

func named(t *testing.T, spans tracetest.SpanStubs, name string) tracetest.SpanStub {
	t.Helper()
	for _, s := range spans {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no span %q in %v", name, spans.Snapshots())
	return tracetest.SpanStub{}
}

func TestASpanPerMessageAcrossThreeActors(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"), spec("b"), spec("c"))
		actor := func(f func(ctx Context)) func() Actor {
			return func() Actor { return ActorFunc(f) }
		}
		c := r.spawn("c", "c", actor(func(ctx Context) {
			if _, ok := ctx.Message().(third); ok {
				ctx.Respond(answer{})
			}
		}))
		b := r.spawn("b", "b", actor(func(ctx Context) {
			switch ctx.Message().(type) {
			case second:
				ctx.Request(c, third{})
				ctx.Send(c, bulk{})
			case answer:
				Go(ctx, func(context.Context) any { return bulkless{} })
			}
		}))
		a := r.spawn("a", "a", actor(func(ctx Context) {
			if _, ok := ctx.Message().(first); ok {
				if !trace.SpanContextFromContext(TraceContext(ctx)).IsValid() {
					t.Error("the handler has no span")
				}
				Send(ctx, b, second{})
			}
		}))
		outside, root := tracer.Start(t.Context(), "outside")
		r.SendContext(outside, a, first{})
		root.End()
		synctest.Wait()
		r.stop()

		spans := exporter.GetSpans()
		chain := []string{"outside", "a first", "b second", "c third", "b answer", "b bulkless"}
		if len(spans) != len(chain) {
			t.Fatalf("%d spans, want %d: %v", len(spans), len(chain), spans.Snapshots())
		}
		for i := 1; i < len(chain); i++ {
			parent, child := named(t, spans, chain[i-1]), named(t, spans, chain[i])
			if child.Parent.SpanID() != parent.SpanContext.SpanID() ||
				child.SpanContext.TraceID() != parent.SpanContext.TraceID() {
				t.Errorf("%q is not a child of %q", chain[i], chain[i-1])
			}
		}
		attributes := map[string]string{}
		for _, kv := range named(t, spans, "c third").Attributes {
			attributes[string(kv.Key)] = kv.Value.AsString()
		}
		for key, want := range map[string]string{
			string(telemetry.AttrActorKind):   "c",
			string(telemetry.AttrActorPath):   "c",
			string(telemetry.AttrMessageType): "third",
		} {
			if attributes[key] != want {
				t.Errorf("attribute %s is %q, want %q", key, attributes[key], want)
			}
		}
	})
}

// bulkless is the result of a goroutine, traced like any message.
type bulkless struct{}

func TestNoSpanForTimersAndUntracedMessages(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r, d := newRig(t, Config{Tracer: tracer}, spec("a")), &diary{}
		pid := r.spawn("a", "a", clockworks(d))
		r.tell(pid, bulk{})
		exporter.Reset()
		r.tell(pid, func(ctx Context, ts *Timers) { ts.After(ctx, 0, time.Second, "tick") })
		time.Sleep(2 * time.Second)
		r.stop()
		d.expect(t, "Started", "bulk", "tick", "Stopping", "Stopped")
		if n := len(exporter.GetSpans()); n != 1 {
			t.Errorf("%d spans, want the one that armed the timer", n)
		}
	})
}

func TestAPanicIsRecordedInItsSpan(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		r.tell(pid, boom("x"))
		s := named(t, exporter.GetSpans(), "a boom")
		if s.Status.Code != codes.Error || s.Status.Description != "x" || len(s.Events) != 1 {
			t.Errorf("status %+v, events %+v", s.Status, s.Events)
		}
		r.stop()
	})
}

func TestTheHandlersContextEndsWithTheIncarnation(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, Config{}, spec("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		var ctx context.Context
		r.tell(pid, do(func(c Context) { ctx = TraceContext(c) }))
		if ctx.Err() != nil {
			t.Error("the context has ended early")
		}
		r.tell(pid, boom("x"))
		if ctx.Err() == nil {
			t.Error("the context outlives the incarnation")
		}
		r.stop()
	})
}

func TestANoopTracerIsNoTracer(t *testing.T) {
	if enabled(noop.NewTracerProvider().Tracer("x")) != nil {
		t.Error("the no-op tracer is used")
	}
}
