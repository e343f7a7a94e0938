package actorkit

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
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

// messagesOf leaves out the spans in which actors start.
func messagesOf(exporter *tracetest.InMemoryExporter) tracetest.SpanStubs {
	return slices.DeleteFunc(exporter.GetSpans(), func(s tracetest.SpanStub) bool { return strings.HasSuffix(s.Name, " start") })
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

		spans := messagesOf(exporter)
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

func TestAFailureIsToldInItsSpanAndTheRestartLeadsBackToIt(t *testing.T) {
	for _, tc := range []struct {
		name, span string
		fail       func(r *rig, pid PID)
	}{
		{"a message", "a boom", func(r *rig, pid PID) { r.tell(pid, boom("x")) }},
		{"a timer, which has no span", "a boom", func(r *rig, pid PID) {
			timers := &Timers{}
			r.tell(pid, do(func(ctx Context) { timers.After(ctx, 0, time.Second, boom("x")) }))
			time.Sleep(time.Second)
			synctest.Wait()
		}},
		{"a goroutine", "a result", func(r *rig, pid PID) {
			r.tell(pid, do(func(ctx Context) { Go(ctx, func(context.Context) any { panic("x") }) }))
		}},
		{"a message that does not open a span", "a fuse", func(r *rig, pid PID) { r.tell(pid, fuse{}) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				tracer, exporter := tracing(t)
				r := newRig(t, Config{Tracer: tracer}, spec("a"))
				pid := r.spawn("a", "a", probes(&diary{}))
				exporter.Reset()
				tc.fail(r, pid)
				failed := named(t, exporter.GetSpans(), tc.span)
				if failed.Status.Code != codes.Error || failed.Status.Description != "x" {
					t.Errorf("status %+v", failed.Status)
				}
				if len(failed.Events) != 2 || failed.Events[0].Name != "exception" || failed.Events[1].Name != "actor failed" {
					t.Fatalf("events %+v", failed.Events)
				}
				for key, want := range map[attribute.Key]string{
					telemetry.AttrActorPath: "a", telemetry.AttrCause: "x", telemetry.AttrFailures: "1", telemetry.AttrActorDelay: "0.1",
				} {
					if got := valueOf(failed.Events[1].Attributes, key); got != want {
						t.Errorf("event has %s=%q, want %q", key, got, want)
					}
				}
				time.Sleep(time.Second)
				synctest.Wait()
				restart := named(t, exporter.GetSpans(), "actor restart")
				if len(restart.Links) != 1 || !restart.Links[0].SpanContext.Equal(failed.SpanContext) {
					t.Errorf("links %+v, want one to %v", restart.Links, failed.SpanContext)
				}
				if got := valueOf(restart.Attributes, telemetry.AttrActorRestart); got != "1" || restart.Parent.IsValid() {
					t.Errorf("restart %q, parent %v", got, restart.Parent)
				}
				r.stop()
			})
		})
	}
}

// fuse makes a probe panic without a span.
type fuse struct{}

func (fuse) Untraced() {}

func valueOf(attributes []attribute.KeyValue, key attribute.Key) string {
	for _, a := range attributes {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

func TestAGiveUpIsToldInTheSpanOfItsLastFailure(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"), spec("b", func(s *Spec) { s.Restart = Never }))
		a := r.spawn("a", "a", probes(&diary{}))
		b := r.child(a, "b", "b", probes(&diary{}))
		r.tell(b, boom("x"))
		failed := named(t, exporter.GetSpans(), "b boom")
		if n := len(failed.Events); n != 2 || failed.Events[1].Name != "actor gave up" ||
			valueOf(failed.Events[1].Attributes, telemetry.AttrGiveUp) != "degrade" {
			t.Errorf("events %+v", failed.Events)
		}
		r.stop()
	})
}

func TestAStartThatFailsIsAnError(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"))
		first := true
		r.spawn("a", "a", func() Actor {
			p := &probe{d: &diary{}}
			if first {
				p.panicOn = "Started"
			}
			first = false
			return p
		})
		time.Sleep(time.Second)
		synctest.Wait()
		failed := named(t, exporter.GetSpans(), "a start")
		restart := named(t, exporter.GetSpans(), "actor restart")
		if failed.Status.Code != codes.Error || len(restart.Links) != 1 || !restart.Links[0].SpanContext.Equal(failed.SpanContext) {
			t.Errorf("start %+v, restart linked to %+v", failed.Status, restart.Links)
		}
		r.stop()
	})
}

func TestAPanicInTheEndIsAnError(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"))
		r.spawn("a", "a", func() Actor { return &probe{d: &diary{}, panicOn: "Stopping"} })
		r.stop()
		if s := named(t, exporter.GetSpans(), "a Stopping"); s.Status.Code != codes.Error || len(s.Events) != 2 {
			t.Errorf("status %+v, events %+v", s.Status, s.Events)
		}
	})
}

func TestAStuckMessageIsToldInItsSpan(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("p"), stuckRow("c"))
		c := r.child(r.spawn("p", "p", probes(&diary{})), "c", "c", probes(&diary{}))
		b := newBlocked(nil)
		r.tell(c, do(b.handle))
		exporter.Reset()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		spans := exporter.GetSpans()
		stuck, restart := named(t, spans, "c do"), named(t, spans, "actor restart")
		if len(spans) != 2 {
			t.Errorf("%d spans: %v", len(spans), spans.Snapshots())
		}
		if stuck.Status.Code != codes.Error || len(stuck.Events) != 2 || stuck.Events[0].Name != "actor is stuck" || stuck.Events[1].Name != "actor failed" {
			t.Errorf("status %+v, events %+v", stuck.Status, stuck.Events)
		}
		if len(restart.Links) != 1 || !restart.Links[0].SpanContext.Equal(stuck.SpanContext) {
			t.Errorf("links %+v", restart.Links)
		}
		exporter.Reset()
		close(b.release)
		synctest.Wait()
		if n := len(exporter.GetSpans()); n != 0 {
			t.Errorf("%d spans of a handler that was left behind", n)
		}
		r.stop()
	})
}

func TestAMessageThatAnInjectionDropsIsToldInItsTrace(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"))
		pid := r.spawn("a", "a", probes(&diary{}))
		if _, err := r.Inject(Injection{Actor: "a", Fault: Drop}); err != nil {
			t.Fatal(err)
		}
		outside, root := tracer.Start(t.Context(), "outside")
		r.SendContext(outside, pid, "x")
		root.End()
		synctest.Wait()
		lost := named(t, exporter.GetSpans(), "a string")
		if lost.Parent.SpanID() != root.SpanContext().SpanID() || len(lost.Events) != 1 ||
			valueOf(lost.Events[0].Attributes, telemetry.AttrCause) != "injected drop" {
			t.Errorf("parent %v, events %+v", lost.Parent, lost.Events)
		}
		r.stop()
	})
}

func TestAChildStartsInTheTraceOfItsParentsMessage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"), spec("b"))
		r.child(r.spawn("a", "a", probes(&diary{})), "b", "b", probes(&diary{}))
		spans := exporter.GetSpans()
		if start, parent := named(t, spans, "b start"), named(t, spans, "a do"); start.Parent.SpanID() != parent.SpanContext.SpanID() {
			t.Errorf("parent %v, want %v", start.Parent, parent.SpanContext)
		}
		r.stop()
	})
}

func TestAFailureThatNobodyJudgesEndsItsSpan(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"), spec("b"))
		a := r.spawn("a", "a", probes(&diary{}))
		b := r.child(a, "b", "b", probes(&diary{}))
		// The child fails while its parent waits for its own restart.
		r.tell(a, boom("parent"))
		r.tell(b, boom("child"))
		r.stop()
		if s := named(t, exporter.GetSpans(), "b boom"); s.Status.Code != codes.Error {
			t.Errorf("status %+v", s.Status)
		}
	})
}

func TestFollowContinuesATrace(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		r := newRig(t, Config{Tracer: tracer}, spec("a"), spec("b"))
		b := r.spawn("b", "b", probes(&diary{}))
		_, before := tracer.Start(t.Context(), "before")
		_, linked := tracer.Start(t.Context(), "linked")
		a := r.spawn("a", "a", func() Actor {
			return ActorFunc(func(ctx Context) {
				if _, ok := ctx.Message().(bulk); ok {
					if SpanContext(ctx).IsValid() {
						t.Error("an untraced message has a span")
					}
					Follow(ctx, before.SpanContext(), trace.Link{SpanContext: linked.SpanContext()})
					AddEvent(ctx, "seen", telemetry.AttrCause.String("y"))
					Follow(ctx, linked.SpanContext())
					ctx.Send(b, "x")
				}
			})
		})
		r.tell(a, bulk{})
		spans := exporter.GetSpans()
		followed, next := named(t, spans, "a bulk"), named(t, spans, "b string")
		if followed.Parent.SpanID() != before.SpanContext().SpanID() || next.Parent.SpanID() != followed.SpanContext.SpanID() {
			t.Errorf("parents %v and %v", followed.Parent, next.Parent)
		}
		if len(followed.Links) != 1 || len(followed.Events) != 1 || followed.Events[0].Name != "seen" {
			t.Errorf("links %v, events %v", followed.Links, followed.Events)
		}
		r.stop()
	})
}

func TestALoggerCarriesTheSpanOfItsMessage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		tracer, exporter := tracing(t)
		seen := &spansSeen{}
		r := newRig(t, Config{Tracer: tracer, Logger: slog.New(seen)}, spec("a"))
		var outer Context
		pid := r.spawn("a", "a", probes(&diary{}))
		seen.take()
		r.tell(pid, do(func(ctx Context) {
			outer = ctx
			ctx.Logger().Info("of the message")
			ctx.Logger().With("k", 1).WithGroup("g").Info("derived", "k", 2)
			log := ctx.Logger()
			Go(ctx, func(work context.Context) any {
				log.Info("later")
				return nil
			})
		}))
		want := named(t, exporter.GetSpans(), "a do").SpanContext
		for i, got := range seen.take() {
			if got.SpanID() != want.SpanID() || got.TraceID() != want.TraceID() {
				t.Errorf("line %d carries %v, want %v", i, got, want)
			}
		}
		timers := &Timers{}
		r.tell(pid, do(func(ctx Context) {
			timers.After(ctx, 0, time.Second, do(func(Context) { outer.Logger().Info("tick") }))
		}))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := seen.take(); len(got) != 1 || got[0].IsValid() {
			t.Errorf("a tick's line carries %v", got)
		}
		r.stop()
	})
}

// spansSeen is a log handler that notes the spans its records come with.
type spansSeen struct {
	mu    sync.Mutex
	spans []trace.SpanContext
}

func (s *spansSeen) Enabled(context.Context, slog.Level) bool { return true }
func (s *spansSeen) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *spansSeen) WithGroup(string) slog.Handler            { return s }

func (s *spansSeen) Handle(ctx context.Context, _ slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spans = append(s.spans, trace.SpanContextFromContext(ctx))
	return nil
}

func (s *spansSeen) take() (seen []trace.SpanContext) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, s.spans = s.spans, nil
	return seen
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
