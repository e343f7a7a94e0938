package telemetry

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
)

func TestLinesLeadToTheirTrace(t *testing.T) {
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{0xab, 15: 1}, SpanID: trace.SpanID{0xcd, 7: 2}})
	const traceID, spanID = "ab000000000000000000000000000001", "cd00000000000002"
	active := trace.ContextWithSpanContext(t.Context(), span)

	log, buf := logTo(t, FormatHuman, "")
	log.With("actor", "gateway/peers").WithGroup("g").InfoContext(active, "granted", "id", 7)
	if want := " granted actor=gateway/peers g.id=7 trace_id=" + traceID + " span_id=" + spanID + "\n"; !strings.HasSuffix(buf.String(), want) {
		t.Errorf("line %q, want the end %q", buf, want)
	}

	log, buf = logTo(t, FormatJSON, "")
	log.InfoContext(active, "granted")
	var record map[string]any
	if err := json.Unmarshal(buf.Bytes(), &record); err != nil {
		t.Fatal(err)
	}
	if record["trace_id"] != traceID || record["span_id"] != spanID {
		t.Errorf("record %v", record)
	}

	for name, ctx := range map[string]context.Context{
		"no span":      t.Context(),
		"an empty one": trace.ContextWithSpanContext(t.Context(), trace.SpanContext{}),
	} {
		log, buf = logTo(t, FormatHuman, "")
		log.InfoContext(ctx, "granted")
		if strings.Contains(buf.String(), "_id=") {
			t.Errorf("%s: line %q", name, buf)
		}
	}
}
