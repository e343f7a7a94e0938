package telemetry

import (
	"container/list"
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// keepLimits bound what keeper holds back. What it holds is bounded by spans,
// at about 1 KiB each.
type keepLimits struct {
	perTrace int           // spans of one trace
	spans    int           // of all traces
	traces   int           // remembered, also those without a span any more
	age      time.Duration // of a trace, from its first span that ended
}

// An authorisation has about thirty spans and is over within a minute.
var defaultKeepLimits = keepLimits{perTrace: 64, spans: 4096, traces: 1024, age: 90 * time.Second}

// keepStats count what keeper did. All grow only.
type keepStats struct {
	Kept      uint64 // traces exported because of an error
	Truncated uint64 // spans that found no place in their trace
	Evicted   uint64 // traces that had to go before their time
}

// keeper exports traces that were not sampled but hold an error: a span whose
// status is Error, or a restart. It holds the spans of such traces back until
// one ends that way, passes them on, and then those that follow.
//
//	sampled span ────────────────────────────────> next
//	other span ──> held ──(error in its trace)──> next
//	                 └──(age, bounds)──> forgotten
//
// The span with the error is passed on whatever has been forgotten.
type keeper struct {
	next   sdktrace.SpanProcessor
	limits keepLimits
	now    func() time.Time

	mu     sync.Mutex
	traces map[trace.TraceID]*list.Element // guarded by mu
	order  list.List                       // of *heldTrace, oldest first; guarded by mu
	spans  int                             // held; guarded by mu
	stats  keepStats                       // guarded by mu
}

var _ sdktrace.SpanProcessor = (*keeper)(nil)

// heldTrace is a trace that was not sampled.
type heldTrace struct {
	id    trace.TraceID
	since time.Time
	wrong bool // has an error
	spans []sdktrace.ReadOnlySpan
	lost  int // spans that found no place
}

func newKeeper(next sdktrace.SpanProcessor, limits keepLimits) *keeper {
	return &keeper{next: next, limits: limits, now: time.Now, traces: make(map[trace.TraceID]*list.Element)}
}

// OnStart implements sdktrace.SpanProcessor.
func (k *keeper) OnStart(parent context.Context, s sdktrace.ReadWriteSpan) { k.next.OnStart(parent, s) }

// OnEnd implements sdktrace.SpanProcessor.
func (k *keeper) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() {
		k.next.OnEnd(s)
		return
	}
	wrong := isError(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgetOld()
	t := k.trace(s.SpanContext().TraceID())
	if wrong && !t.wrong {
		t.wrong = true
		k.stats.Kept++
		for _, held := range t.spans {
			k.next.OnEnd(kept{held, 0})
		}
		k.drop(t)
	}
	switch {
	case t.wrong:
		k.next.OnEnd(kept{s, t.lost})
		t.lost = 0
	case len(t.spans) == k.limits.perTrace:
		t.lost++
		k.stats.Truncated++
	default:
		t.spans = append(t.spans, s)
		k.spans++
		for k.spans > k.limits.spans {
			k.evict()
		}
	}
}

// Shutdown implements sdktrace.SpanProcessor.
func (k *keeper) Shutdown(ctx context.Context) error {
	k.mu.Lock()
	clear(k.traces)
	k.order.Init()
	k.spans = 0
	k.mu.Unlock()
	return k.next.Shutdown(ctx)
}

// ForceFlush implements sdktrace.SpanProcessor. What is held stays held.
func (k *keeper) ForceFlush(ctx context.Context) error { return k.next.ForceFlush(ctx) }

// Stats returns what was counted so far.
func (k *keeper) Stats() keepStats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stats
}

// trace finds the trace or begins to remember it. The caller holds mu.
func (k *keeper) trace(id trace.TraceID) *heldTrace {
	if e, known := k.traces[id]; known {
		return e.Value.(*heldTrace)
	}
	if len(k.traces) == k.limits.traces {
		k.evict()
	}
	t := &heldTrace{id: id, since: k.now()}
	k.traces[id] = k.order.PushBack(t)
	return t
}

// forgetOld forgets traces whose time is up. The caller holds mu.
func (k *keeper) forgetOld() {
	limit := k.now().Add(-k.limits.age)
	for e := k.order.Front(); e != nil && e.Value.(*heldTrace).since.Before(limit); e = k.order.Front() {
		k.forget(e)
	}
}

// evict forgets the oldest trace. The caller holds mu.
func (k *keeper) evict() {
	k.stats.Evicted++
	k.forget(k.order.Front())
}

func (k *keeper) forget(e *list.Element) {
	t := e.Value.(*heldTrace)
	k.drop(t)
	k.order.Remove(e)
	delete(k.traces, t.id)
}

func (k *keeper) drop(t *heldTrace) {
	k.spans -= len(t.spans)
	t.spans = nil
}

// isError reports whether a span is worth its trace.
func isError(s sdktrace.ReadOnlySpan) bool {
	if s.Status().Code == codes.Error {
		return true
	}
	for _, a := range s.Attributes() {
		if a.Key == AttrActorRestart {
			return true
		}
	}
	return false
}

// kept is a span that is exported although it was not sampled. Exporters and
// processors look at the flag.
type kept struct {
	sdktrace.ReadOnlySpan
	lost int
}

// SpanContext implements sdktrace.ReadOnlySpan.
func (k kept) SpanContext() trace.SpanContext {
	sc := k.ReadOnlySpan.SpanContext()
	return sc.WithTraceFlags(sc.TraceFlags().WithSampled(true))
}

// Attributes implements sdktrace.ReadOnlySpan. It says why the span is here, so
// that nobody takes what was kept for a fair sample.
func (k kept) Attributes() []attribute.KeyValue {
	own := k.ReadOnlySpan.Attributes()
	all := append(own[:len(own):len(own)], AttrKept.Bool(true))
	if k.lost > 0 {
		all = append(all, AttrSpansLost.Int(k.lost))
	}
	return all
}
