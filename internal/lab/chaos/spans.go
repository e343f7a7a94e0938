package chaos

import (
	"context"
	"time"

	"firezone-gateway/internal/lab/traces"
)

const (
	spansAt     = "127.0.0.1:4318" // in the daemon's namespace
	restartSpan = "actor restart"
	kindOfSpan  = "actor.kind"
	// spansPatience is how long the last spans may take, which the daemon sends in
	// batches.
	spansPatience = 5 * time.Second
)

// spansTo has the daemon export its spans, often.
var spansTo = []string{
	"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + spansAt + "/v1/traces",
	"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
	"OTEL_BSP_SCHEDULE_DELAY=200",
}

// collectSpans takes the spans of all daemons of this world.
func (w *world) collectSpans() error {
	if w.spans != nil {
		return nil
	}
	listener, err := w.net.Gateway.Host.Listen("tcp", spansAt)
	if err != nil {
		return err
	}
	w.spans = new(traces.Sink)
	w.closers = append(w.closers, w.spans.Serve(listener).Close)
	return nil
}

// restartSpans counts the restarts of each kind among the spans.
func (w *world) restartSpans() map[string]int {
	restarts := map[string]int{}
	for _, s := range w.spans.Spans() {
		if s.Name == restartSpan {
			restarts[s.Attributes[kindOfSpan]]++
		}
	}
	return restarts
}

// awaitRestartSpans waits until as many restarts as wanted have arrived, or no
// more can be expected, and returns how many have.
func (w *world) awaitRestartSpans(ctx context.Context, wanted map[string]int) map[string]int {
	ctx, cancel := context.WithTimeout(ctx, spansPatience)
	defer cancel()
	restarts := w.restartSpans()
	_ = await(ctx, func() bool {
		restarts = w.restartSpans()
		for kind, n := range wanted {
			if restarts[kind] < n {
				return false
			}
		}
		return true
	})
	return restarts
}
