package actorkit

import (
	"context"
	"reflect"

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

var (
	propagator propagation.TraceContext
	consumer   = trace.WithSpanKind(trace.SpanKindConsumer)
)

// spanState is the span of the message being handled.
type spanState struct {
	ctx    context.Context
	span   trace.Span
	header map[string]string // the span's headers, once made; read-only
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
	c.span.ctx, c.span.span = tracer.Start(parent, m.name, m.options, c.onSpans, consumer)
}

func (c *cell) endSpan(f *Fault) {
	span := c.span.span
	if span == nil {
		return
	}
	if f != nil {
		span.RecordError(f, trace.WithAttributes(attribute.String("exception.stacktrace", string(f.Stack))))
		span.SetStatus(codes.Error, f.Error())
	}
	span.End()
	c.span = spanState{}
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
