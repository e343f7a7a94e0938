package actors

import (
	"context"
	"slices"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	labportal "firezone-gateway/internal/lab/portal"
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

func TestOneAuthorizationIsOneTrace(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })

	r := newTreeRig(t, labportal.Config{})
	r.start(provider.Tracer("test"))
	r.ready()
	id, other := r.resource(10), r.resource(11)
	c := dialClient(t, r.lab, "client", nil)
	exporter.Reset()
	g := c.access(id)
	c.access(other)
	c.signal(g.GatewayID, remoteSrflx)
	// A span shows when it ends, which may be after those that follow from it.
	eventually(t, func() bool {
		spans := exporter.GetSpans()
		bound := tracesWith(spans, "relay BindChannels")
		return len(bound) == 1 && len(bound[0]) == 5 && len(tracesWith(spans, "peer Authorize")) == 2
	}, "the channels are asked for")

	authorizations := tracesWith(exporter.GetSpans(), "peer Authorize")
	if len(authorizations) != 2 {
		t.Fatalf("%d traces of two authorizations: %q", len(authorizations), authorizations)
	}
	for _, got := range authorizations {
		if want := []string{
			"portal pushed",
			"portal pushed > peers FromPortal",
			"portal pushed > peers FromPortal > peer Authorize",
			"portal pushed > peers FromPortal > peer Authorize > portal SendToPortal",
			"portal pushed > peers FromPortal > peer Authorize > portal SendToPortal",
		}; !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	candidates := tracesWith(exporter.GetSpans(), "relay BindChannels")[0]
	if want := []string{
		"portal pushed",
		"portal pushed > peers FromPortal",
		"portal pushed > peers FromPortal > peer AddCandidates",
		"portal pushed > peers FromPortal > peer AddCandidates > transport BindChannels",
		"portal pushed > peers FromPortal > peer AddCandidates > transport BindChannels > relay BindChannels",
	}; !slices.Equal(candidates, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(candidates, "\n"), strings.Join(want, "\n"))
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
	eventually(t, func() bool { return len(tracesWith(exporter.GetSpans(), "portal RelaysUpdated")) == 1 }, "the relays are known")
	inits := tracesWith(exporter.GetSpans(), "portal RelaysUpdated")[0]
	for _, want := range []string{
		"portal pushed", "portal pushed > tun ConfigureTUN", "portal pushed > peers FromPortal",
		"portal pushed > transport UpdateRelays", "portal pushed > transport UpdateRelays > peers RelaysChanged",
		"portal pushed > transport UpdateRelays > portal RelaysUpdated",
	} {
		if !slices.Contains(inits, want) {
			t.Errorf("%q is not in\n%s", want, strings.Join(inits, "\n"))
		}
	}
	if slices.ContainsFunc(inits, func(l string) bool { return strings.Contains(l, "Authorize") }) {
		t.Errorf("the authorization is in the trace of init:\n%s", strings.Join(inits, "\n"))
	}
}
