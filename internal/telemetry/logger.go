package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
)

// Format is how log lines look.
type Format string

// The formats.
const (
	FormatHuman Format = "human"
	FormatJSON  Format = "json"
)

// DefaultTarget is the target of a logger that For was not applied to.
const DefaultTarget = "gateway"

// targetKey is the attribute that names a logger's target.
const targetKey = "target"

// The fields that lead to a trace (OpenTelemetry specification, trace context in
// logs of other formats).
const (
	keyTrace = "trace_id"
	keySpan  = "span_id"
)

// NewLogger makes a logger that writes one line per record to w, each with one
// call of Write. See parseDirectives for the directives.
//
// Human lines (dataplane §8.3) are
//
//	2026-01-31T12:00:00.000Z  INFO target: message key=value
//
// with colours if w is a terminal and NO_COLOR is not set. JSON lines are
// objects with timestamp, level, target and message, and the fields next to
// them. Groups join their names with dots, and what could end the line or
// drive a terminal is escaped. A record whose context has a span ends with the
// fields trace_id and span_id.
func NewLogger(w io.Writer, format Format, directives string) (*slog.Logger, error) {
	f, err := parseDirectives(directives)
	if err != nil {
		return nil, err
	}
	h := &handler{out: &output{w: w}, filter: f}
	switch format {
	case FormatHuman:
		h.encode = human{colour: colourful(w)}
	case FormatJSON:
		h.encode = jsonLine{}
	default:
		return nil, fmt.Errorf("log format %q: want human or json", format)
	}
	return slog.New(h.at(DefaultTarget)), nil
}

// For returns a logger for a target: it is named in each line and has the
// level that the directives give to it.
func For(logger *slog.Logger, target string) *slog.Logger {
	return logger.With(targetKey, target)
}

// line is what an encoder makes bytes of.
type line struct {
	at      time.Time
	level   slog.Level
	target  string
	message string
	fields  []field
}

// field is a resolved attribute; its value is not a group.
type field struct {
	key   string
	value slog.Value
}

// encoder appends l to buf, with the newline.
type encoder interface {
	encode(buf []byte, l *line) []byte
}

type output struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte // guarded by mu
}

// largestKept bounds the buffer that is kept between lines.
const largestKept = 64 << 10

type handler struct {
	out    *output
	encode encoder
	filter filter

	target string
	level  slog.Level
	prefix string // of groups, with the dot
	fields []field
}

func (h *handler) at(target string) *handler {
	c := *h
	c.target, c.level = target, h.filter.level(target)
	return &c
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.fields = append([]field(nil), h.fields...)
	for _, a := range attrs {
		if a.Key == targetKey && h.prefix == "" && a.Value.Kind() == slog.KindString {
			c = *c.at(a.Value.String())
			continue
		}
		c.fields = appendField(c.fields, h.prefix, a)
	}
	return &c
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	l := line{at: r.Time, level: r.Level, target: h.target, message: r.Message}
	l.fields = append(make([]field, 0, len(h.fields)+r.NumAttrs()), h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		l.fields = appendField(l.fields, h.prefix, a)
		return true
	})
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		l.fields = append(l.fields, field{keyTrace, slog.StringValue(span.TraceID().String())}, field{keySpan, slog.StringValue(span.SpanID().String())})
	}
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	buf := h.encode.encode(h.out.buf[:0], &l)
	if cap(buf) <= largestKept {
		h.out.buf = buf
	}
	_, err := h.out.w.Write(buf)
	return err
}

// appendField flattens groups and leaves empty attributes out.
func appendField(fields []field, prefix string, a slog.Attr) []field {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			fields = appendField(fields, prefix, member)
		}
		return fields
	}
	if a.Equal(slog.Attr{}) {
		return fields
	}
	return append(fields, field{prefix + a.Key, v})
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "TRACE"
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARN"
	}
	return "ERROR"
}

func appendTime(buf []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(buf, "2006-01-02T15:04:05.000Z")
}

func colourful(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
