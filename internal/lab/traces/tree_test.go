package traces

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func TestTracesBuildTreesWhateverTheOrder(t *testing.T) {
	all := spans("a 1 - root", "a 2 1 child", "b 1 - other", "a 3 1 later", "a 4 2 grandchild", "a 5 x orphan")
	reversed := make([]Span, 0, len(all)+1)
	for i := len(all) - 1; i >= 0; i-- {
		reversed = append(reversed, all[i])
	}
	reversed = append(reversed, all[0]) // it arrived twice
	for _, order := range [][]Span{all, reversed} {
		var b strings.Builder
		for _, trace := range Traces(order) {
			b.WriteString(trace.ID + ":")
			for _, n := range trace.Nodes() {
				b.WriteString(" " + n.Name)
			}
			b.WriteString("; ")
		}
		if got, want := b.String(), "a: root child grandchild later orphan; b: other; "; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestATraceIsDrawnAsATree(t *testing.T) {
	all := spans("a 1 - root", "a 2 1 child", "a 3 2 grandchild", "a 4 1 last")
	all[0].Attributes = map[string]string{"client.id": "x", "actor.kind": "peer"}
	all[1].Error = "broke\nat length"
	all[1].Events = []Event{{Name: "exception", At: all[1].Start}, {Name: "dropped", At: all[1].Start, Attributes: map[string]string{"error.type": "client-unknown"}}}
	all[3].Links = []Link{{TraceID: "b", SpanID: "7", Why: "failure"}}
	var b bytes.Buffer
	if err := Traces(all)[0].Write(&b); err != nil {
		t.Fatal(err)
	}
	want := `
    +0.00 ms     1.00 ms  root client.id=x
    +1.00 ms     1.00 ms  ├─ child
    +2.00 ms              │  │ ✗ broke
    +1.00 ms              │  │ · dropped error.type=client-unknown
    +2.00 ms     1.00 ms  │  └─ grandchild
    +3.00 ms     1.00 ms  └─ last
    +3.00 ms                   → failure: span 7 of trace b
`
	if got := "\n" + b.String(); got != want {
		t.Errorf("got%swant%s", got, want)
	}
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

func TestSinkTakesWhatACollectorSends(t *testing.T) {
	body, err := proto.Marshal(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", "firezone-gateway")}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{
			TraceId: []byte{1}, SpanId: []byte{2}, ParentSpanId: []byte{3}, Name: "peer Authorize",
			StartTimeUnixNano: 5, EndTimeUnixNano: 9,
			Attributes: []*commonpb.KeyValue{
				text("a", "b"),
				{Key: "n", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 7}}},
				{Key: "f", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: 0.5}}},
				{Key: "t", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}},
			},
			Events: []*tracepb.Span_Event{{Name: "dropped", TimeUnixNano: 6}},
			Links:  []*tracepb.Span_Link{{TraceId: []byte{4}, SpanId: []byte{5}, Attributes: []*commonpb.KeyValue{text("link", "failure")}}},
			Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "x"},
		}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sink := &Sink{}
	server := sink.Serve(listener)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	post := func(body []byte) int {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+listener.Addr().String()+"/v1/traces", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	if code := post(body); code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	if code := post([]byte("rubbish")); code != http.StatusBadRequest {
		t.Errorf("status of rubbish: %d", code)
	}
	got := sink.Spans()
	if len(got) != 1 {
		t.Fatalf("%d spans", len(got))
	}
	s := got[0]
	if s.Service != "firezone-gateway" || s.TraceID != "01" || s.ID != "02" || s.ParentID != "03" || s.Name != "peer Authorize" ||
		s.Start.UnixNano() != 5 || s.End.UnixNano() != 9 || s.Error != "x" || len(s.Events) != 1 || s.Events[0].At.UnixNano() != 6 ||
		len(s.Links) != 1 || s.Links[0] != (Link{"04", "05", "failure"}) {
		t.Errorf("span %+v", s)
	}
	for key, want := range map[string]string{"a": "b", "n": "7", "f": "0.5", "t": "true"} {
		if s.Attributes[key] != want {
			t.Errorf("attribute %s is %q, want %q", key, s.Attributes[key], want)
		}
	}
}
