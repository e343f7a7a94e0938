package actors

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
)

const (
	// arrivalPatience bounds the time that a client's arrival is followed.
	arrivalPatience = time.Minute
	// earlierLimit bounds the clients whose last authorisation is remembered.
	earlierLimit = 4096
)

// arrivals are the traces of clients on their way from an authorisation to the
// first packet. What happens on that way in the packet path, in the ICE agent and
// in messages of the portal belongs to the trace of the authorisation:
//
//	portal pushed > peers FromPortal > peer Authorize > client connect
//	                                                    ├── portal pushed (its candidates) > … > relay channel
//	                                                    ├── peer ControlReceived (a domain) > dns > resolver > peer > nat
//	                                                    ├── ice checks
//	                                                    ├── wireguard handshake
//	                                                    └── first packet
//
// They are kept by the plane, so that an arrival outlives its peer. Methods may
// be called from any goroutine and return at once. Without a tracer they do
// nothing.
type arrivals struct {
	mu      sync.Mutex
	open    map[string]*arrival          // by client id; guarded by mu
	earlier map[string]trace.SpanContext // each client's last authorisation, by client id; guarded by mu
	order   []string                     // of the ids in earlier, as they came; guarded by mu
}

// arrival is one client on its way. A phase is nil before it begins and after it
// has ended.
type arrival struct {
	tracer  trace.Tracer
	ctx     context.Context // of connect
	connect trace.Span
	expiry  *time.Timer

	checks, handshake, packet trace.Span // guarded by arrivals.mu
	session                   bool       // there is or was a WireGuard session; guarded by arrivals.mu
}

func newArrivals() *arrivals {
	return &arrivals{open: make(map[string]*arrival), earlier: make(map[string]trace.SpanContext)}
}

// begin follows a client that was authorised by the message being handled. With
// keep its connection exists; an arrival under way goes on then.
func (a *arrivals) begin(ctx actorkit.Context, clientID, resourceID string, keep bool) {
	authorisation := actorkit.SpanContext(ctx)
	if !authorisation.IsValid() {
		return
	}
	message := trace.SpanFromContext(actorkit.TraceContext(ctx))
	message.SetAttributes(telemetry.AttrClientID.String(clientID), telemetry.AttrResourceID.String(resourceID))
	a.mu.Lock()
	defer a.mu.Unlock()
	if before, known := a.earlier[clientID]; known {
		message.AddLink(link(before, "earlier authorisation"))
	}
	a.remember(clientID, authorisation)
	if old := a.open[clientID]; old != nil {
		if keep {
			old.connect.AddEvent("access granted", trace.WithAttributes(telemetry.AttrResourceID.String(resourceID)))
			message.AddLink(link(old.connect.SpanContext(), "connection under way"))
			return
		}
		a.finish(clientID, old, "another authorisation")
	}
	n := &arrival{tracer: ctx.System().Tracer(), session: keep}
	// Not the handler's context, which ends with the incarnation.
	parent := trace.ContextWithSpanContext(context.Background(), authorisation)
	n.ctx, n.connect = n.tracer.Start(parent, "client connect", trace.WithAttributes(telemetry.AttrClientID.String(clientID)))
	if keep {
		n.packet = n.phase("first packet")
	} else {
		n.checks = n.phase("ice checks")
	}
	a.open[clientID] = n
	n.expiry = time.AfterFunc(arrivalPatience, func() { a.expire(clientID, n) })
}

// of is the trace that a message of the portal belongs to.
func (a *arrivals) of(m portal.Message) context.Context {
	clientID := ""
	switch m := m.(type) {
	case portal.ICECandidates:
		clientID = m.ClientID
	case portal.InvalidateICECandidates:
		clientID = m.ClientID
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.open[clientID]; n != nil {
		return n.ctx
	}
	return context.Background()
}

// follow gives a control packet a span, because its message has none: in the
// client's arrival, or in a trace that leads back to it.
func (a *arrivals) follow(ctx actorkit.Context, clientID string) {
	a.mu.Lock()
	n, before := a.open[clientID], a.earlier[clientID]
	a.mu.Unlock()
	switch {
	case n != nil:
		actorkit.Follow(ctx, n.connect.SpanContext())
	case before.IsValid():
		actorkit.Follow(ctx, trace.SpanContext{}, link(before, "authorisation"))
	}
}

// candidates notes how many candidates went to the client or came from it.
func (a *arrivals) candidates(clientID, what string, count int) {
	a.with(clientID, func(n *arrival) {
		n.connect.AddEvent("candidates "+what, trace.WithAttributes(telemetry.AttrCandidates.Int(count)))
	})
}

// checked notes that the agent's first check was answered, or that the client
// nominated a pair.
func (a *arrivals) checked(clientID string) {
	a.with(clientID, func(n *arrival) { n.checks = ended(n.checks) })
}

// nominated notes the pair that the client chose.
func (a *arrivals) nominated(clientID string, relayed bool) {
	a.with(clientID, func(n *arrival) {
		event := trace.WithAttributes(telemetry.AttrPathKind.String(pathKind(relayed)))
		if n.checks != nil {
			n.checks.AddEvent("pair nominated", event)
		} else {
			n.connect.AddEvent("pair nominated", event)
		}
	})
}

// heard notes the path of authenticated packets.
func (a *arrivals) heard(clientID string, p *transport.Path) {
	a.with(clientID, func(n *arrival) {
		n.shakeHands()
		n.connect.AddEvent("path", trace.WithAttributes(telemetry.AttrPathKind.String(pathKind(p.Relay() != nil))))
	})
}

// changed notes the state of the WireGuard session.
func (a *arrivals) changed(clientID string, s tunnel.Session) {
	a.with(clientID, func(n *arrival) {
		switch s {
		case tunnel.SessionHandshake:
			n.shakeHands()
		case tunnel.SessionEstablished:
			n.shakeHands()
			n.session, n.handshake = true, ended(n.handshake)
			if n.packet == nil {
				n.packet = n.phase("first packet")
			}
		}
	})
}

// await has the packet path tell of the client's next packet, if it is waited for.
func (a *arrivals) await(clientID string, client *tunnel.Client) {
	a.with(clientID, func(*arrival) {
		client.OnNextPacket(func(at time.Time) { a.passed(clientID, at) })
	})
}

// passed notes the first packet, which ends the arrival.
func (a *arrivals) passed(clientID string, at time.Time) {
	a.with(clientID, func(n *arrival) {
		if n.packet != nil {
			n.packet.End(trace.WithTimestamp(at))
			n.packet = nil
		}
		a.finish(clientID, n, "")
	})
}

// end ends the arrival of a client whose connection ended.
func (a *arrivals) end(clientID, cause string) {
	a.with(clientID, func(n *arrival) { a.finish(clientID, n, cause) })
}

func (a *arrivals) expire(clientID string, n *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[clientID] != n {
		return
	}
	if !n.session {
		n.connect.SetStatus(codes.Error, "the client did not connect")
	}
	a.finish(clientID, n, "nothing came for "+arrivalPatience.String())
}

// with runs f on a client's arrival, if there is one.
func (a *arrivals) with(clientID string, f func(n *arrival)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.open[clientID]; n != nil {
		f(n)
	}
}

// finish ends all spans of n; cause says why it ended without a packet. The
// caller holds mu.
func (a *arrivals) finish(clientID string, n *arrival, cause string) {
	delete(a.open, clientID)
	n.expiry.Stop()
	for _, phase := range []trace.Span{n.checks, n.handshake, n.packet} {
		if phase != nil && cause != "" {
			phase.AddEvent("cut short")
		}
		ended(phase)
	}
	if cause != "" {
		n.connect.AddEvent("ended without a packet", trace.WithAttributes(telemetry.AttrCause.String(cause)))
	}
	n.connect.End()
}

// remember makes authorisation the last one of the client. The caller holds mu.
func (a *arrivals) remember(clientID string, authorisation trace.SpanContext) {
	if _, known := a.earlier[clientID]; !known {
		if len(a.order) == earlierLimit {
			delete(a.earlier, a.order[0])
			a.order = append(a.order[:0], a.order[1:]...)
		}
		a.order = append(a.order, clientID)
	}
	a.earlier[clientID] = authorisation
}

func (n *arrival) phase(name string) trace.Span {
	_, span := n.tracer.Start(n.ctx, name)
	return span
}

// shakeHands begins the handshake with the first sign of it: the engine tells
// the path of the initiation and the states of the session in any order.
func (n *arrival) shakeHands() {
	if !n.session && n.handshake == nil {
		n.handshake = n.phase("wireguard handshake")
	}
}

// ended ends a span, if there is one, and returns none.
func ended(span trace.Span) trace.Span {
	if span != nil {
		span.End()
	}
	return nil
}

func link(to trace.SpanContext, why string) trace.Link {
	return trace.Link{SpanContext: to, Attributes: []attribute.KeyValue{telemetry.AttrLink.String(why)}}
}

func pathKind(relayed bool) string {
	if relayed {
		return "relayed"
	}
	return "direct"
}

// dropped counts what the handler discards, and notes it in its span.
func dropped(ctx actorkit.Context, counters *drop.Counters, reason drop.Reason, n uint64) {
	if n == 0 {
		return
	}
	counters.Add(reason, n)
	actorkit.AddEvent(ctx, "dropped", telemetry.AttrError.String(reason.String()))
}
