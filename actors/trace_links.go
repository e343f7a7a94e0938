package actors

import (
	"context"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/messages"
)

// portalTrace follows the connections to the portal, one after the other. Each
// has two spans, because the second one ends with the connection only:
//
//	portal connect       from the attempt until it is joined, or until it failed
//	└── portal connection   from there until the connection is lost
//
// Each attempt leads back to the one before. It is kept by the plane and belongs
// to the portal actor's turn.
type portalTrace struct {
	connect, connection trace.Span // nil if there is none
	before              trace.SpanContext
}

// dialling begins an attempt.
func (p *portalTrace) dialling(ctx actorkit.Context) {
	p.over(nil)
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}
	if p.before.IsValid() {
		options = append(options, trace.WithLinks(link(p.before, "connection before")))
	}
	_, p.connect = ctx.System().Tracer().Start(context.Background(), "portal connect", options...)
	p.before = p.connect.SpanContext()
}

// joined ends the attempt and begins the connection.
func (p *portalTrace) joined(ctx actorkit.Context, route string, number messages.Connection) {
	if p.connect == nil {
		return
	}
	parent := trace.ContextWithSpanContext(context.Background(), p.connect.SpanContext())
	attributes := trace.WithAttributes(telemetry.AttrRoute.String(route), telemetry.AttrConnection.Int64(int64(number)))
	_, p.connection = ctx.System().Tracer().Start(parent, "portal connection", attributes)
	p.connect = ended(p.connect)
}

// over ends what there is: in order without a cause, else with an error.
func (p *portalTrace) over(cause error) {
	for _, span := range []trace.Span{p.connect, p.connection} {
		if span != nil && cause != nil {
			span.SetStatus(codes.Error, cause.Error())
		}
		ended(span)
	}
	p.connect, p.connection = nil, nil
}

const (
	// bindingsLimit bounds the channels whose binding one relay follows at a time.
	bindingsLimit = 64
	// bindingPatience is when a binding counts as refused: the request is repeated
	// for 39.5 s (RFC 8489 §6.2.1), and refused ones are not reported.
	bindingPatience = 40 * time.Second
)

// reaches reports whether there is a channel to peer.
func (a *allocation) reaches(peer netip.AddrPort) bool {
	leg := a.leg(peer)
	if leg == nil {
		return false
	}
	_, ok := leg.paths.Load(peer)
	return ok
}

// bindings are the channels that messages asked a relay for and that are not
// bound yet. They belong to the relay actor's turn.
type bindings struct {
	open  map[netip.AddrPort]trace.Span
	since map[netip.AddrPort]time.Time
}

// begin follows the binding of a channel that the message being handled asks for.
func (b *bindings) begin(ctx actorkit.Context, relayID string, peer netip.AddrPort, now time.Time) {
	if !actorkit.SpanContext(ctx).IsValid() || b.open[peer] != nil {
		return
	}
	for old, since := range b.since {
		if now.Sub(since) >= bindingPatience {
			b.end(old, "no answer, or refused")
		}
	}
	if len(b.open) == bindingsLimit {
		return
	}
	if b.open == nil {
		b.open, b.since = make(map[netip.AddrPort]trace.Span), make(map[netip.AddrPort]time.Time)
	}
	parent := trace.ContextWithSpanContext(context.Background(), actorkit.SpanContext(ctx))
	_, b.open[peer] = ctx.System().Tracer().Start(parent, "relay channel", trace.WithAttributes(telemetry.AttrRelayID.String(relayID)))
	b.since[peer] = now
}

// end ends the span of a channel; an empty cause says that it was bound.
func (b *bindings) end(peer netip.AddrPort, cause string) {
	span := b.open[peer]
	if span == nil {
		return
	}
	if cause != "" {
		span.SetStatus(codes.Error, cause)
	}
	span.End()
	delete(b.open, peer)
	delete(b.since, peer)
}

// drop ends all of them.
func (b *bindings) drop(cause string) {
	for peer := range b.open {
		b.end(peer, cause)
	}
}
