package telemetry

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// keeping is a keeper with what it passes on, and a clock.
type keeping struct {
	*keeper
	exporter *tracetest.InMemoryExporter
	now      time.Time
}

func newKeeping(limits keepLimits) *keeping {
	k := &keeping{exporter: tracetest.NewInMemoryExporter(), now: time.Unix(1, 0)}
	k.keeper = newKeeper(sdktrace.NewSimpleSpanProcessor(k.exporter), limits)
	k.keeper.now = func() time.Time { return k.now }
	return k
}

// end ends a span of a trace that was not sampled.
func (k *keeping) end(id byte, name string, attributes ...attribute.KeyValue) {
	stub := tracetest.SpanStub{Name: name, Attributes: attributes, SpanContext: trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{id}, SpanID: trace.SpanID{1},
	})}
	if strings.HasPrefix(name, "error") {
		stub.Status = sdktrace.Status{Code: codes.Error}
	}
	k.OnEnd(stub.Snapshot())
}

func (k *keeping) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, s := range k.exporter.GetSpans() {
		got = append(got, s.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("passed on %q, want %q", got, want)
	}
	held := 0
	for e := k.order.Front(); e != nil; e = e.Next() {
		held += len(e.Value.(*heldTrace).spans)
	}
	if held != k.spans || k.order.Len() != len(k.traces) {
		t.Errorf("%d spans held, counted %d; %d traces in order, %d by id", held, k.spans, k.order.Len(), len(k.traces))
	}
}

var roomy = keepLimits{perTrace: 10, spans: 100, traces: 10, age: time.Minute}

func TestARestartIsWorthItsTrace(t *testing.T) {
	k := newKeeping(roomy)
	k.end(1, "before")
	k.end(1, "restart", AttrActorRestart.Int(1))
	k.end(2, "another trace")
	k.expect(t, "before", "restart")
	if got := k.Stats(); got != (keepStats{Kept: 1}) {
		t.Errorf("counted %+v", got)
	}
}

func TestASecondErrorIsNoSecondTrace(t *testing.T) {
	k := newKeeping(roomy)
	k.end(1, "error 1")
	k.end(1, "error 2")
	k.expect(t, "error 1", "error 2")
	if got := k.Stats(); got.Kept != 1 {
		t.Errorf("counted %+v", got)
	}
}

func TestEachBoundIsKeptAndCounted(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits keepLimits
		act    func(*keeping)
		passed []string
		want   keepStats
	}{
		{"spans of one trace", keepLimits{2, 100, 10, time.Minute}, func(k *keeping) {
			for range 5 {
				k.end(1, "fine")
			}
			k.end(1, "error")
		}, []string{"fine", "fine", "error"}, keepStats{Kept: 1, Truncated: 3}},
		{"spans of all traces", keepLimits{10, 3, 10, time.Minute}, func(k *keeping) {
			k.end(1, "fine 1")
			k.end(2, "fine 2")
			k.end(2, "fine 2")
			k.end(3, "fine 3")
			k.end(1, "error 1")
			k.end(2, "error 2")
		}, []string{"error 1", "fine 2", "fine 2", "error 2"}, keepStats{Kept: 2, Evicted: 1}},
		{"traces", keepLimits{10, 100, 2, time.Minute}, func(k *keeping) {
			k.end(1, "fine 1")
			k.end(2, "fine 2")
			k.end(3, "fine 3")
			k.end(2, "error 2")
			k.end(3, "error 3")
			k.end(1, "error 1")
		}, []string{"fine 2", "error 2", "fine 3", "error 3", "error 1"}, keepStats{Kept: 3, Evicted: 2}},
		{"age", roomy, func(k *keeping) {
			k.end(1, "fine")
			k.now = k.now.Add(time.Minute)
			k.end(2, "fine 2")
			k.now = k.now.Add(1)
			k.end(1, "error")
			k.end(2, "error 2")
		}, []string{"error", "fine 2", "error 2"}, keepStats{Kept: 2}},
		{"a trace larger than all bounds", keepLimits{10, 2, 10, time.Minute}, func(k *keeping) {
			for range 7 {
				k.end(1, "fine")
			}
			k.end(1, "error")
		}, []string{"fine", "error"}, keepStats{Kept: 1, Evicted: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKeeping(tc.limits)
			tc.act(k)
			k.expect(t, tc.passed...)
			if got := k.Stats(); got != tc.want {
				t.Errorf("counted %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestAKeptTraceSaysThatSpansAreMissing(t *testing.T) {
	k := newKeeping(keepLimits{1, 10, 10, time.Minute})
	for _, name := range []string{"fine", "lost", "lost", "error", "later"} {
		k.end(1, name)
	}
	k.expect(t, "fine", "error", "later")
	var lost []int64
	for _, s := range k.exporter.GetSpans() {
		n := int64(0)
		for _, a := range s.Attributes {
			if a.Key == AttrSpansLost {
				n = a.Value.AsInt64()
			}
		}
		lost = append(lost, n)
	}
	if !slices.Equal(lost, []int64{0, 2, 0}) {
		t.Errorf("missing spans %v", lost)
	}
}

func TestShutdownForgetsWhatIsHeld(t *testing.T) {
	k := newKeeping(roomy)
	k.end(1, "fine")
	if err := k.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	k.expect(t)
}
