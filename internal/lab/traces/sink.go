package traces

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxRequest bounds one export, in bytes.
const maxRequest = 64 << 20

// Sink takes spans as OTLP over HTTP with protobuf bodies (OTLP 1.x, §
// OTLP/HTTP) and keeps them. It is safe for concurrent use.
type Sink struct {
	mu    sync.Mutex
	spans []Span // guarded by mu
}

// Serve takes spans from a listener until the server that it returns is closed.
func (s *Sink) Serve(l net.Listener) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", s.export)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }() // it ends with the server
	return server
}

// Spans returns what has arrived so far, in order of arrival.
func (s *Sink) Spans() []Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Span(nil), s.spans...)
}

func (s *Sink) export(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	spans, err := decode(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.spans = append(s.spans, spans...)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(http.StatusOK) // an empty body is an empty response message
}

func decode(body []byte) ([]Span, error) {
	var request collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		return nil, fmt.Errorf("export request: %w", err)
	}
	var spans []Span
	for _, r := range request.GetResourceSpans() {
		service := attributesOf(r.GetResource().GetAttributes())["service.name"]
		for _, scope := range r.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				spans = append(spans, spanOf(service, s))
			}
		}
	}
	return spans, nil
}

func spanOf(service string, s *tracepb.Span) Span {
	out := Span{
		Service: service, Name: s.GetName(),
		TraceID: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), ParentID: hex.EncodeToString(s.GetParentSpanId()),
		Start: timeOf(s.GetStartTimeUnixNano()), End: timeOf(s.GetEndTimeUnixNano()),
		Attributes: attributesOf(s.GetAttributes()),
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		out.Error = s.GetStatus().GetMessage()
		if out.Error == "" {
			out.Error = "error"
		}
	}
	for _, e := range s.GetEvents() {
		out.Events = append(out.Events, Event{Name: e.GetName(), At: timeOf(e.GetTimeUnixNano()), Attributes: attributesOf(e.GetAttributes())})
	}
	for _, l := range s.GetLinks() {
		out.Links = append(out.Links, Link{
			TraceID: hex.EncodeToString(l.GetTraceId()), SpanID: hex.EncodeToString(l.GetSpanId()), Why: attributesOf(l.GetAttributes())["link"],
		})
	}
	return out
}

func timeOf(nanos uint64) time.Time { return time.Unix(0, int64(nanos)) }

func attributesOf(list []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string, len(list))
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out[kv.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[kv.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		case *commonpb.AnyValue_DoubleValue:
			out[kv.GetKey()] = strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
		case *commonpb.AnyValue_BoolValue:
			out[kv.GetKey()] = strconv.FormatBool(v.BoolValue)
		default:
			out[kv.GetKey()] = fmt.Sprint(kv.GetValue())
		}
	}
	return out
}
