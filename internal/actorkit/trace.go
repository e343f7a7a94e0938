package actorkit

import (
	"context"
	"log/slog"
	"reflect"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"firezone-gateway/internal/telemetry"
)

// TraceContext returns the context of the handler: it carries the span of the
// message and is cancelled when the actor fails, restarts or stops.
func TraceContext(ctx Context) context.Context {
	c := ctx.kit()
	if c.span.ctx != nil {
		return c.span.ctx
	}
	return c.lifetime()
}

// SpanContext returns the span of the message being handled. It is not valid if
// there is none.
func SpanContext(ctx Context) trace.SpanContext {
	return trace.SpanContextFromContext(ctx.kit().span.ctx)
}

// AddEvent adds an event to the span of the message being handled, if it has one.
func AddEvent(ctx Context, name string, attributes ...attribute.KeyValue) {
	if span := ctx.kit().span.span; span != nil {
		span.AddEvent(name, trace.WithAttributes(attributes...))
	}
}

// SetError marks the span of the message being handled as failed although its
// handler did not panic; why must not hold anything secret.
func SetError(ctx Context, why string) {
	if span := ctx.kit().span.span; span != nil {
		span.SetStatus(codes.Error, why)
	}
}

// Follow gives a message that has no span, because it is Untraced or a timer's
// tick, one that continues the trace of parent; an invalid parent begins a trace.
// What the handler sends from then on belongs to it. It does nothing if there is
// a span.
func Follow(ctx Context, parent trace.SpanContext, links ...trace.Link) {
	c := ctx.kit()
	if c.sys.tracer == nil || c.span.span != nil {
		return
	}
	m := c.kind.message(c.msg)
	c.openSpan(trace.ContextWithSpanContext(c.lifetime(), parent), m.name, m.options, consumer, trace.WithLinks(links...))
}

// Tracer returns what makes the system's spans; one that makes none if the system
// was given none.
func (s *System) Tracer() trace.Tracer {
	if s.tracer == nil {
		return noop.Tracer{}
	}
	return s.tracer
}

var (
	propagator propagation.TraceContext
	consumer   = trace.WithSpanKind(trace.SpanKindConsumer)
)

// spanState is what an actor's cell keeps about spans. Fields without a comment
// are about the message being handled and belong to the turn.
type spanState struct {
	ctx    context.Context
	span   trace.Span
	header map[string]string // the span's headers, once made; read-only
	logger *slog.Logger      // the actor's with the span, once made

	running atomic.Pointer[trace.Span] // span, for those who watch the turn
	failed  atomic.Pointer[trace.Span] // of a failure that was not judged yet; whoever swaps it out ends it
	cause   trace.SpanContext          // of the failure that was judged last; read by the incarnation that follows
	origin  trace.SpanContext          // of whoever spawned the actor
}

// headerFor returns what a message sent from the handler carries.
func (s *spanState) headerFor(msg any) map[string]string {
	if s.span == nil {
		return nil
	}
	if _, silent := msg.(Untraced); silent {
		return nil
	}
	if s.header == nil {
		s.header = headerOf(s.ctx)
	}
	return s.header
}

// headerOf returns the W3C trace context of ctx, or nil if it has none.
func headerOf(ctx context.Context) map[string]string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return nil
	}
	header := make(propagation.MapCarrier, 1)
	propagator.Inject(ctx, header)
	return header
}

// carrier reads a message's headers.
type carrier struct{ actor.ReadonlyMessageHeader }

func (carrier) Set(string, string) {}

// messageKind is what spans of one message type in one kind of actor share.
type messageKind struct {
	untraced bool
	name     string
	options  trace.SpanStartEventOption
}

func (k *kind) message(msg any) *messageKind {
	t := reflect.TypeOf(msg)
	if known, ok := k.messages.Load(t); ok {
		return known.(*messageKind)
	}
	_, untraced := msg.(Untraced)
	name := typeName(msg)
	made := &messageKind{
		untraced: untraced,
		name:     k.spec.Kind + " " + name,
		options: trace.WithAttributes(
			telemetry.AttrActorKind.String(k.spec.Kind),
			telemetry.AttrMessageType.String(name),
		),
	}
	k.messages.Store(t, made)
	return made
}

func (c *cell) startSpan(lib actor.Context, msg any) {
	tracer := c.sys.tracer
	if tracer == nil {
		return
	}
	m := c.kind.message(msg)
	if m.untraced {
		return
	}
	parent := c.lifetime()
	if h := lib.MessageHeader(); h != nil && h.Length() > 0 {
		parent = propagator.Extract(parent, carrier{h})
	}
	c.openSpan(parent, m.name, m.options, consumer)
}

func (c *cell) openSpan(parent context.Context, name string, options ...trace.SpanStartOption) {
	ctx, span := c.sys.tracer.Start(parent, name, append(options, c.onSpans)...)
	c.span.ctx, c.span.span = ctx, span
	c.span.running.Store(&span)
}

// endSpan ends the span of the message that was handled. One of a failure stays
// open until the supervisor has decided.
func (c *cell) endSpan(f *Fault) {
	span := c.span.span
	if span == nil {
		return
	}
	c.span.ctx, c.span.span, c.span.header, c.span.logger = nil, nil, nil, nil
	c.span.running.Store(nil)
	if f == nil {
		span.End()
		return
	}
	recordFault(span, f)
	endIf(c.span.failed.Swap(&span))
}

// startLife opens the span in which an incarnation starts. The first one belongs
// to the trace of who spawned the actor; a later one begins a trace, which leads
// back to the failure.
func (c *cell) startLife() {
	kind := c.kind.spec.Kind
	switch {
	case c.sys.tracer == nil:
	case c.number == 1:
		parent := trace.ContextWithSpanContext(c.lifetime(), c.span.origin)
		c.openSpan(parent, kind+" start", trace.WithAttributes(telemetry.AttrActorKind.String(kind)))
	default:
		var links []trace.Link
		if c.span.cause.IsValid() {
			links = append(links, trace.Link{
				SpanContext: c.span.cause, Attributes: []attribute.KeyValue{telemetry.AttrLink.String("failure")},
			})
		}
		c.openSpan(c.lifetime(), "actor restart", trace.WithNewRoot(), trace.WithLinks(links...), trace.WithAttributes(
			telemetry.AttrActorKind.String(kind), telemetry.AttrActorRestart.Int64(int64(c.number-1)),
		))
	}
}

// origin is the span in which parent spawns a child.
func origin(parent *cell) trace.SpanContext {
	if parent == nil || parent.span.span == nil {
		return trace.SpanContext{}
	}
	return parent.span.span.SpanContext()
}

// report emits an event of the actor, and puts it into the span of what caused
// it. It runs in the turn of whoever noticed.
func (c *cell) report(e Event) {
	c.traceEvent(e)
	c.sys.emit(e)
}

func (c *cell) traceEvent(e Event) {
	if c.sys.tracer == nil {
		return
	}
	var failed *trace.Span
	switch e.Type {
	case EventStuck:
		failed = c.span.running.Load()
	case EventFailed, EventGaveUp:
		failed = c.span.failed.Swap(nil)
	case EventSwallowed, EventOverrun:
	default:
		return // the span of the message, or of the new incarnation, tells
	}
	if failed == nil {
		failed = c.failedSpan(e)
	}
	c.span.cause = (*failed).SpanContext()
	(*failed).AddEvent(e.Type.String(), trace.WithAttributes(c.eventAttributes(e)...))
	if e.Type == EventStuck {
		(*failed).SetStatus(codes.Error, e.Type.String())
		failed = c.span.failed.Swap(failed)
	}
	endIf(failed)
}

// traceLoss tells of a message that an injected fault took away.
func (c *cell) traceLoss(lib actor.Context, msg any, f *Fault) {
	c.startSpan(lib, msg)
	AddEvent(c, "dropped", telemetry.AttrCause.String(f.Error()))
	c.endSpan(nil)
}

// failedSpan makes the span of a message that had none and failed.
func (c *cell) failedSpan(e Event) *trace.Span {
	_, span := c.sys.tracer.Start(context.Background(), c.kind.spec.Kind+" "+e.Message,
		trace.WithAttributes(telemetry.AttrActorKind.String(c.kind.spec.Kind)), c.onSpans)
	if e.Fault != nil {
		recordFault(span, e.Fault)
	} else {
		span.SetStatus(codes.Error, e.Type.String())
	}
	return &span
}

func (c *cell) eventAttributes(e Event) []attribute.KeyValue {
	attributes := []attribute.KeyValue{telemetry.AttrActorPath.String(e.Path)}
	if e.Fault != nil {
		attributes = append(attributes, telemetry.AttrCause.String(e.Fault.Error()))
	}
	if e.For > 0 {
		attributes = append(attributes, telemetry.AttrActorStuck.Float64(e.For.Seconds()))
	}
	if e.Failures > 0 {
		attributes = append(attributes, telemetry.AttrFailures.Int(e.Failures))
	}
	switch e.Type {
	case EventFailed:
		attributes = append(attributes, telemetry.AttrActorDelay.Float64(e.Delay.Seconds()))
	case EventGaveUp:
		attributes = append(attributes, telemetry.AttrGiveUp.String(c.kind.spec.GiveUp.String()))
	}
	return attributes
}

// closeFailed ends the span of a failure that nobody judged, because its actor
// ends anyway.
func (c *cell) closeFailed() { endIf(c.span.failed.Swap(nil)) }

// endIf ends a span; nil is none.
func endIf(span *trace.Span) {
	if span != nil {
		(*span).End()
	}
}

func recordFault(span trace.Span, f *Fault) {
	span.RecordError(f, trace.WithAttributes(attribute.String("exception.stacktrace", string(f.Stack))))
	span.SetStatus(codes.Error, f.Error())
}

// withSpan returns a logger whose records carry the span of the message being
// handled. Who keeps the logger keeps no more than the identifiers.
func (c *cell) withSpan(logger *slog.Logger) *slog.Logger {
	if c.span.span == nil {
		return logger
	}
	if c.span.logger == nil {
		ctx := trace.ContextWithSpanContext(context.Background(), c.span.span.SpanContext())
		c.span.logger = slog.New(spanLog{logger.Handler(), ctx})
	}
	return c.span.logger
}

// spanLog hands records on with a span, unless they come with one of their own.
type spanLog struct {
	slog.Handler
	ctx context.Context
}

func (l spanLog) Handle(ctx context.Context, r slog.Record) error {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		ctx = l.ctx
	}
	return l.Handler.Handle(ctx, r)
}

func (l spanLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return spanLog{l.Handler.WithAttrs(attrs), l.ctx}
}

func (l spanLog) WithGroup(name string) slog.Handler {
	return spanLog{l.Handler.WithGroup(name), l.ctx}
}

// enabled returns nil for tracers that do nothing, so that they cost nothing.
func enabled(t trace.Tracer) trace.Tracer {
	if _, silent := t.(noop.Tracer); silent {
		return nil
	}
	return t
}

// typeName is the short name of a message's type, such as "Refresh".
func typeName(msg any) string {
	t := reflect.TypeOf(msg)
	if t == nil {
		return "nil"
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Name() == "" {
		return t.String()
	}
	return t.Name()
}
