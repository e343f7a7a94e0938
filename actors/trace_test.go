package actors

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/actorkit"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/messages"
)

// traces are the spans so far, by trace, each as the names from the root to the
// span.
func traces(spans tracetest.SpanStubs) map[trace.TraceID][]string {
	byID := map[trace.SpanID]tracetest.SpanStub{}
	for _, s := range spans {
		byID[s.SpanContext.SpanID()] = s
	}
	out := map[trace.TraceID][]string{}
	for _, s := range spans {
		line := []string{s.Name}
		for p := s.Parent; p.IsValid(); {
			parent, ok := byID[p.SpanID()]
			if !ok {
				line = append(line, "?")
				break
			}
			line = append(line, parent.Name)
			p = parent.Parent
		}
		slices.Reverse(line)
		id := s.SpanContext.TraceID()
		out[id] = append(out[id], strings.Join(line, " > "))
	}
	for _, lines := range out {
		slices.Sort(lines)
	}
	return out
}

// tracesWith returns the traces that hold a span of that name.
func tracesWith(spans tracetest.SpanStubs, name string) (found [][]string) {
	for _, lines := range traces(spans) {
		if slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, name) }) {
			found = append(found, lines)
		}
	}
	return found
}

// traced starts the tree of r with spans, until it is ready.
func (r *treeRig) traced() *tracetest.InMemoryExporter {
	r.t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	r.t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	r.start(provider.Tracer("test"))
	r.ready()
	r.tun = receive(r.t, r.plane.host.opened, "device")
	return exporter
}

// spansOf returns the spans of a name.
func spansOf(exporter *tracetest.InMemoryExporter, name string) (found tracetest.SpanStubs) {
	for _, s := range exporter.GetSpans() {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

func expectTrace(t *testing.T, got []string, want ...string) {
	t.Helper()
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOneAuthorizationIsOneTraceUntilTheFirstPacket(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	exporter.Reset()
	g := c.access(id)
	c.signal(g.GatewayID, remoteSrflx)
	eventually(t, func() bool { return len(spansOf(exporter, "relay channel")) == 1 }, "the channel is bound")
	wg.connect(r.plane, g)
	wg.passes(r.tun, c.ipv4, 10)
	// A span shows when it ends, which may be after those that follow from it.
	eventually(t, func() bool {
		return len(spansOf(exporter, "client connect")) == 1 && len(spansOf(exporter, "relay BindChannels")) == 1 && len(spansOf(exporter, "portal SendToPortal")) == 2
	}, "the client has arrived")

	found := tracesWith(exporter.GetSpans(), "peer Authorize")
	if len(found) != 1 {
		t.Fatalf("%d traces of an authorization: %q", len(found), found)
	}
	const authorize = "portal pushed > peers FromPortal > peer Authorize"
	const candidates = authorize + " > client connect > portal pushed > peers FromPortal > peer AddCandidates > transport BindChannels > relay BindChannels"
	expectTrace(t, found[0],
		"portal pushed",
		"portal pushed > peers FromPortal",
		"portal pushed > peers FromPortal > peer start",
		authorize,
		authorize+" > portal SendToPortal",
		authorize+" > portal SendToPortal",
		authorize+" > client connect",
		authorize+" > client connect > ice checks",
		authorize+" > client connect > wireguard handshake",
		authorize+" > client connect > first packet",
		authorize+" > client connect > portal pushed",
		authorize+" > client connect > portal pushed > peers FromPortal",
		authorize+" > client connect > portal pushed > peers FromPortal > peer AddCandidates",
		authorize+" > client connect > portal pushed > peers FromPortal > peer AddCandidates > transport BindChannels",
		candidates,
		candidates+" > relay channel",
	)
	arrival := spansOf(exporter, "client connect")[0]
	var events []string
	for _, e := range arrival.Events {
		events = append(events, e.Name)
	}
	if want := []string{"candidates sent", "candidates received", "path"}; !slices.Equal(events[:3], want) {
		t.Errorf("events %q", events)
	}
	for _, e := range arrival.Events {
		if e.Name == "path" && !slices.Contains(e.Attributes, telemetry.AttrPathKind.String("direct")) {
			t.Errorf("path %v", e.Attributes)
		}
	}
	if !slices.Contains(arrival.Attributes, telemetry.AttrClientID.String(c.id)) {
		t.Errorf("attributes %v", arrival.Attributes)
	}
	phases := map[string]tracetest.SpanStub{}
	for _, name := range []string{"wireguard handshake", "first packet"} {
		phases[name] = spansOf(exporter, name)[0]
	}
	if phases["first packet"].StartTime.Before(phases["wireguard handshake"].StartTime) || arrival.EndTime.Before(phases["first packet"].EndTime) {
		t.Error("the phases are out of order")
	}
}

// linksOf returns what the links of a span are for, and whether all lead to one
// of the targets.
func linksOf(s tracetest.SpanStub, targets tracetest.SpanStubs) (why []string, known bool) {
	known = true
	for _, l := range s.Links {
		why = append(why, l.Attributes[0].Value.AsString())
		known = known && slices.ContainsFunc(targets, func(t tracetest.SpanStub) bool { return t.SpanContext.SpanID() == l.SpanContext.SpanID() })
	}
	return why, known
}

func TestAnotherAuthorizationLeadsBackToTheOneBefore(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	id, other := r.resource(10), r.resource(11)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	g := c.access(id)
	// The connection is on its way: this one adds to it.
	c.access(other)
	wg.connect(r.plane, g)
	wg.passes(r.tun, c.ipv4, 10)
	eventually(t, func() bool { return len(spansOf(exporter, "client connect")) == 1 }, "the client has arrived")
	wg.sayGoodbye()
	eventually(t, func() bool { return len(r.plane.store.ids()) == 0 && len(r.tree.peers()) == 0 }, "nothing is left")
	// The client comes back, with the peer that forgot it.
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	eventually(t, func() bool { return len(spansOf(exporter, "client connect")) == 2 }, "the client has arrived again")

	spans := exporter.GetSpans()
	authorizations := spansOf(exporter, "peer Authorize")
	for i, want := range [][]string{nil, {"earlier authorisation", "connection under way"}, {"earlier authorisation"}} {
		why, known := linksOf(authorizations[i], spans)
		if !slices.Equal(why, want) || !known {
			t.Errorf("authorization %d has links %q, leading to spans %v", i, why, known)
		}
	}
	if why := authorizations[2].Links[0].SpanContext; why.SpanID() != authorizations[1].SpanContext.SpanID() {
		t.Error("the last one does not lead to the one before")
	}
}

func TestAnArrivalOutlivesItsPeer(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	g := c.access(r.resource(10))
	r.tree.system.Send(r.pid(KindPeer), boom{})
	eventually(t, func() bool { return len(spansOf(exporter, "actor restart")) == 1 }, "the peer is back")
	wg.connect(r.plane, g)
	wg.passes(r.tun, c.ipv4, 10)
	eventually(t, func() bool { return len(spansOf(exporter, "client connect")) == 1 }, "the client has arrived")
	failed, restart := spansOf(exporter, "peer boom"), spansOf(exporter, "actor restart")[0]
	if len(failed) != 1 || failed[0].Status.Code != codes.Error || failed[0].Events[1].Name != "actor failed" {
		t.Fatalf("the failure: %+v", failed)
	}
	if why, known := linksOf(restart, failed); !slices.Equal(why, []string{"failure"}) || !known {
		t.Errorf("the restart has links %q, to the failure %v", why, known)
	}
}

func TestAnAuthorizationThatIsNotAnsweredIsAnError(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	r.tree.system.Send(r.plane.siblings.load().Transport, messages.UpdateRelays{Disconnected: []string{r.lab.State().Relays[0].ID}})
	eventually(t, func() bool { return len(r.plane.offers.load().Relays) == 0 }, "the relay is gone")
	c := dialClient(t, r.lab, "client", nil)
	c.request(r.resource(10))
	eventually(t, func() bool { return len(spansOf(exporter, "peer Authorize")) > 0 }, "it is authorised")
	if s := spansOf(exporter, "peer Authorize")[0].Status; s.Code != codes.Error || !strings.Contains(s.Description, "no usable relay") {
		t.Errorf("status %+v", s)
	}
}

func TestConnectionsToThePortalLeadBackToTheOneBefore(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	r.tree.system.Send(r.plane.siblings.load().Portal, boom{})
	eventually(t, func() bool { return len(spansOf(exporter, "portal connect")) == 2 }, "the portal is joined again")
	connects := spansOf(exporter, "portal connect")
	if len(connects[0].Links) != 0 {
		t.Errorf("the first one has links %v", connects[0].Links)
	}
	if why, known := linksOf(connects[1], connects[:1]); !slices.Equal(why, []string{"connection before"}) || !known {
		t.Errorf("the second one has links %q, to the first one %v", why, known)
	}
	if over := spansOf(exporter, "portal connection"); len(over) != 1 || over[0].Parent.SpanID() != connects[0].SpanContext.SpanID() {
		t.Errorf("the first connection: %+v", over)
	}
}

// A row of the table without a span would leave its actors out of every trace.
func TestEveryKindOfActorHasSpans(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	id := r.resource(10)
	dialClient(t, r.lab, "client", nil).access(id)
	// A domain brings a resolver to work, and a translation into being.
	done := make(chan struct{})
	r.tree.system.Send(r.pid(KindPeer), act(func(ctx actorkit.Context) {
		r.peer.ensureNAT(ctx)
		ctx.Request(r.plane.siblings.load().DNS, messages.Resolve{Setup: messages.DomainSetup{Domain: "example.invalid"}})
		close(done)
	}))
	await(t, done, "the peer's turn")
	eventually(t, func() bool {
		seen := map[string]bool{}
		for _, s := range exporter.GetSpans() {
			for _, a := range s.Attributes {
				if a.Key == telemetry.AttrActorKind {
					seen[a.Value.AsString()] = true
				}
			}
		}
		for kind := range Table {
			if !seen[kind] {
				return false
			}
		}
		return true
	}, "a span of every kind")
}

// With a thousand clients, what keeps each of them alive must not fill the traces.
func TestAnIdleClientHasNoSpans(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(r.resource(10)))
	wg.passes(r.tun, c.ipv4, 10)
	eventually(t, func() bool { return len(spansOf(exporter, "client connect")) == 1 }, "the client has arrived")
	peer, relay, nat := r.pid(KindPeer), r.pid(KindRelay), make(chan actorkit.PID, 1)
	r.tree.system.Send(peer, act(func(ctx actorkit.Context) { r.peer.ensureNAT(ctx); nat <- r.peer.nat }))
	translation := receive(t, nat, "translation")
	eventually(t, func() bool { return len(spansOf(exporter, "nat start")) == 1 }, "the translation starts")
	exporter.Reset()
	system := r.tree.system
	for range 100 {
		system.Send(peer, messages.ClientChanged{})
		system.Send(peer, messages.ControlReceived{Packet: []byte("unknown")})
		system.Send(translation, messages.PacketsWait{})
		system.Send(relay, messages.FromRelay{})
		system.Send(relay, receivedTick{})
		system.Send(r.plane.siblings.load().Transport, channelWanted{})
		wg.passes(r.tun, c.ipv4, 10)
	}
	r.tree.system.Send(peer, act(func(ctx actorkit.Context) { nat <- nil }))
	receive(t, nat, "turn")
	for _, s := range exporter.GetSpans() {
		t.Errorf("span %q", s.Name)
	}
}

// What follows new relays keeps its own trace although it had to wait.
func TestInitIsOneTraceAndWhatWaitsForItAnother(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })

	r := newTreeRig(t, labportal.Config{})
	id := r.resource(10)
	c := dialClient(t, r.lab, "client", nil)
	r.start(provider.Tracer("test"))
	waitEvent(t, r.lab, 0, labportal.PeerJoined, func(e labportal.Event) bool { return e.Role == labportal.Gateway })
	c.access(id)
	var inits []string
	// A span shows when it ends.
	eventually(t, func() bool {
		found := tracesWith(exporter.GetSpans(), "portal RelaysUpdated")
		if len(found) != 1 {
			return false
		}
		inits = found[0]
		for _, want := range []string{
			"portal pushed", "portal pushed > tun ConfigureTUN", "portal pushed > peers FromPortal",
			"portal pushed > transport UpdateRelays", "portal pushed > transport UpdateRelays > peers RelaysChanged",
			"portal pushed > transport UpdateRelays > portal RelaysUpdated",
		} {
			if !slices.Contains(inits, want) {
				return false
			}
		}
		return true
	}, "the trace of init is complete")
	if slices.ContainsFunc(inits, func(l string) bool { return strings.Contains(l, "Authorize") }) {
		t.Errorf("the authorization is in the trace of init:\n%s", strings.Join(inits, "\n"))
	}
}

func TestAClientThatNeverConnectsIsAnError(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	exporter := r.traced()
	c := dialClient(t, r.lab, "client", nil)
	c.access(r.resource(10))
	a := r.plane.arrivals
	a.mu.Lock()
	open := a.open[c.id]
	a.mu.Unlock()
	if open == nil {
		t.Fatal("no arrival is under way")
	}
	a.expire(c.id, &arrival{}) // the timer of an earlier one
	a.expire(c.id, open)
	a.expire(c.id, open)
	got := spansOf(exporter, "client connect")
	if len(got) != 1 || got[0].Status.Code != codes.Error {
		t.Fatalf("spans %+v", got)
	}
	last := got[0].Events[len(got[0].Events)-1]
	if last.Name != "ended without a packet" || last.Attributes[0].Value.AsString() != "nothing came for 1m0s" {
		t.Errorf("last event %+v", last)
	}
	if checks := spansOf(exporter, "ice checks"); len(checks) != 1 || checks[0].Events[0].Name != "cut short" {
		t.Errorf("checks %+v", checks)
	}
}

func TestEarlierAuthorizationsAreBounded(t *testing.T) {
	a := newArrivals()
	name := func(i int) string { return strconv.Itoa(i) }
	for i := range earlierLimit + 10 {
		a.remember(name(i), trace.SpanContext{})
		a.remember(name(i), trace.SpanContext{})
	}
	_, first := a.earlier[name(9)]
	_, kept := a.earlier[name(10)]
	if len(a.earlier) != earlierLimit || len(a.order) != earlierLimit || first || !kept {
		t.Errorf("%d remembered, %d in order; the tenth %v, the eleventh %v", len(a.earlier), len(a.order), first, kept)
	}
}

// spanned runs in a turn, as act does, within a span.
type spanned func(ctx actorkit.Context)

func TestBindingsAreBoundedAndTold(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	system := actorkit.NewSystem(actorkit.Config{Table: Table, Tracer: provider.Tracer("test")})
	t.Cleanup(func() { stopSystem(t, system); _ = provider.Shutdown(context.Background()) })
	pid, err := system.Spawn(KindRelay, "relay", func() actorkit.Actor {
		return actorkit.ActorFunc(func(ctx actorkit.Context) {
			switch f := ctx.Message().(type) {
			case spanned:
				f(ctx)
			case act:
				f(ctx)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	peer := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(i))
	}
	var b bindings
	now, done := time.Now(), make(chan struct{})
	system.Send(pid, act(func(ctx actorkit.Context) {
		b.begin(ctx, "relay", peer(1), now)
		if len(b.open) != 0 {
			t.Error("a message without a span is followed")
		}
	}))
	system.Send(pid, spanned(func(ctx actorkit.Context) {
		defer close(done)
		for i := range bindingsLimit + 5 {
			b.begin(ctx, "relay", peer(i), now)
			b.begin(ctx, "relay", peer(i), now)
		}
		if len(b.open) != bindingsLimit || len(b.since) != bindingsLimit {
			t.Errorf("%d are followed, since %d", len(b.open), len(b.since))
		}
		b.end(peer(0), "")
		b.end(peer(0), "twice")
		b.end(peer(1), "refused")
		b.begin(ctx, "relay", peer(9999), now.Add(bindingPatience))
		if len(b.open) != 1 {
			t.Errorf("%d are followed after the patience of all others", len(b.open))
		}
		b.drop("relay ended")
	}))
	await(t, done, "the turn")
	told := map[string]int{}
	for _, s := range spansOf(exporter, "relay channel") {
		told[s.Status.Description]++
	}
	if want := map[string]int{"": 1, "refused": 1, "no answer, or refused": bindingsLimit - 2, "relay ended": 1}; !maps.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
