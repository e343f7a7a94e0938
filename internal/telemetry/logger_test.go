package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
)

func logTo(t *testing.T, format Format, directives string) (*slog.Logger, *bytes.Buffer) {
	t.Helper()
	var buf bytes.Buffer
	l, err := NewLogger(&buf, format, directives)
	if err != nil {
		t.Fatal(err)
	}
	return l, &buf
}

// record writes one record with a fixed time.
func record(l *slog.Logger, level slog.Level, message string, attrs ...slog.Attr) {
	at := time.Date(2026, 1, 31, 13, 4, 5, 6_700_000, time.FixedZone("", 3600))
	r := slog.NewRecord(at, level, message, 0)
	r.AddAttrs(attrs...)
	if ctx := context.Background(); l.Enabled(ctx, level) {
		_ = l.Handler().Handle(ctx, r)
	}
}

type secretive struct{}

func (secretive) LogValue() slog.Value { return slog.StringValue("redacted") }

func TestHumanLines(t *testing.T) {
	const at = "2026-01-31T12:04:05.006Z"
	for _, tc := range []struct {
		name    string
		level   slog.Level
		message string
		attrs   []slog.Attr
		want    string
	}{
		{"the level is padded to five", slog.LevelInfo, "hello", nil, " INFO gateway: hello"},
		{"error needs no padding", slog.LevelError, "hello", nil, "ERROR gateway: hello"},
		{"trace is below debug", LevelTrace, "hello", nil, "TRACE gateway: hello"},
		{"fields follow as key=value", slog.LevelWarn, "m", []slog.Attr{slog.Int("n", 1), slog.Bool("b", true), slog.Duration("d", 1500*time.Millisecond)},
			" WARN gateway: m n=1 b=true d=1.5s"},
		{"texts that need it are quoted", slog.LevelDebug, "m",
			[]slog.Attr{slog.String("a", "two words"), slog.String("e", ""), slog.String("q", `x"y`), slog.String("eq", "a=b"), slog.String("p", "plain-1.2")},
			`DEBUG gateway: m a="two words" e="" q="x\"y" eq="a=b" p=plain-1.2`},
		{"groups join with dots", slog.LevelInfo, "m",
			[]slog.Attr{slog.Group("g", slog.Int("a", 1), slog.Group("h", slog.Int("b", 2))), slog.Group("", slog.Int("inline", 3)), {}},
			" INFO gateway: m g.a=1 g.h.b=2 inline=3"},
		{"errors, addresses and times are texts", slog.LevelInfo, "m",
			[]slog.Attr{slog.Any("error", errors.New("no route")), slog.Any("addr", netip.MustParseAddr("::1")), slog.Time("t", time.Unix(0, 0))},
			` INFO gateway: m error="no route" addr=::1 t=1970-01-01T00:00:00.000Z`},
		{"log valuers are resolved", slog.LevelInfo, "m", []slog.Attr{slog.Any("s", secretive{})}, " INFO gateway: m s=redacted"},
		{"a newline cannot forge a line", slog.LevelInfo, "one\ntwo", []slog.Attr{slog.String("k\n", "v\x1b[31m")},
			` INFO gateway: one\ntwo "k\n"="v\x1b[31m"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, buf := logTo(t, FormatHuman, "trace")
			record(l, tc.level, tc.message, tc.attrs...)
			if got, want := buf.String(), at+" "+tc.want+"\n"; got != want {
				t.Errorf("line\n got %q\nwant %q", got, want)
			}
		})
	}
}

func TestJSONLines(t *testing.T) {
	l, buf := logTo(t, FormatJSON, "")
	l = For(l, "portal").With("k", 1).WithGroup("g").With("in", "x")
	record(l, slog.LevelInfo, "a \"message\"\n", slog.Any("error", errors.New("bad")),
		slog.Float64("nan", math.NaN()), slog.Float64("f", 1.5), slog.Duration("d", time.Second),
		slog.Any("list", []int{1, 2}), slog.Uint64("u", math.MaxUint64), slog.Any("ch", make(chan int)))
	if strings.Count(buf.String(), "\n") != 1 {
		t.Errorf("not one line: %q", buf)
	}
	var got map[string]any
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, buf)
	}
	for key, want := range map[string]any{
		"timestamp": "2026-01-31T12:04:05.006Z", "level": "INFO", "target": "portal", "message": "a \"message\"\n",
		"k": 1.0, "g.in": "x", "g.error": "bad", "g.nan": "NaN", "g.f": 1.5, "g.d": "1s", "g.list": []any{1.0, 2.0},
		"g.u": float64(math.MaxUint64),
	} {
		if fmt.Sprint(got[key]) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestJSONKeysAreUnique(t *testing.T) {
	l, buf := logTo(t, FormatJSON, "")
	record(l.With("a", 1), slog.LevelInfo, "m", slog.Int("a", 2), slog.String("level", "mine"), slog.String("target", "t"))
	for _, key := range []string{`"a":`, `"level":`, `"level_":`, `"target":`, `"target_":`} {
		if strings.Count(buf.String(), key) != 1 {
			t.Errorf("%s occurs %d times in %s", key, strings.Count(buf.String(), key), buf)
		}
	}
	if !strings.Contains(buf.String(), `"a":2`) {
		t.Errorf("the later field does not win: %s", buf)
	}
}

func TestDirectives(t *testing.T) {
	const off = levelOff
	for _, tc := range []struct {
		name, directives string
		want             map[string]slog.Level
	}{
		{"nothing means info", "", map[string]slog.Level{"x": slog.LevelInfo}},
		{"commas and blanks mean nothing", " , ,", map[string]slog.Level{"x": slog.LevelInfo}},
		{"a bare level is for all", "Debug", map[string]slog.Level{"x": slog.LevelDebug, DefaultTarget: slog.LevelDebug}},
		{"a target has its own level", "warn,dns=trace", map[string]slog.Level{"x": slog.LevelWarn, "dns": LevelTrace, "dns/udp4": LevelTrace}},
		{"the longest match wins in any order", "peer/nat=off,info,peer=debug",
			map[string]slog.Level{"peer": slog.LevelDebug, "peer/nat": off, "peer/nat/x": off, "peers": slog.LevelInfo}},
		{"Rust's separator separates", "error,flow_logs=trace", map[string]slog.Level{"flow_logs::tcp": LevelTrace}},
		{"without a bare level the others are at error", "dns=debug", map[string]slog.Level{"x": slog.LevelError}},
		{"a bare target is at trace", "dns", map[string]slog.Level{"dns": LevelTrace, "x": slog.LevelError}},
		{"the last of two wins", "dns=debug,dns=warn", map[string]slog.Level{"dns": slog.LevelWarn}},
		{"noisy libraries are quiet", "trace", map[string]slog.Level{"pion": slog.LevelWarn, "wireguard": slog.LevelWarn}},
		{"unless asked for", "info,pion=debug", map[string]slog.Level{"pion": slog.LevelDebug, "pion/ice": slog.LevelDebug}},
		{"off is off", "off", map[string]slog.Level{"x": off}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := parseDirectives(tc.directives)
			if err != nil {
				t.Fatal(err)
			}
			for target, want := range tc.want {
				if got := f.level(target); got != want {
					t.Errorf("%s: level %v, want %v", target, got, want)
				}
			}
		})
	}
	for _, bad := range []string{"dns=loud", "=info", "dns=", "a b", "a b=info", "x[span]=info", "dns=info=debug"} {
		if _, err := NewLogger(&bytes.Buffer{}, FormatHuman, bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := NewLogger(&bytes.Buffer{}, "xml", ""); err == nil {
		t.Error("an unknown format is accepted")
	}
}

func TestTargetsFilter(t *testing.T) {
	l, buf := logTo(t, FormatHuman, "warn,dns=debug")
	l.Info("hidden")
	For(l, "portal").Info("hidden")
	For(l, "dns").Debug("shown", "a", 1)
	For(For(l, "dns"), "portal").Info("hidden")
	For(l, "dns").WithGroup("g").With("target", "x").Debug("a group's target is a field")
	got := buf.String()
	if strings.Contains(got, "hidden") || !strings.Contains(got, "DEBUG dns: shown a=1\n") ||
		!strings.Contains(got, "dns: a group's target is a field g.target=x\n") {
		t.Errorf("log\n%s", got)
	}
}

func TestColoursAreForTerminalsOnly(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if colourful(write) || colourful(&bytes.Buffer{}) {
		t.Error("a pipe is taken for a terminal")
	}
	line := human{colour: true}.encode(nil, &line{level: slog.LevelInfo, target: "t", message: "m"})
	if want := "\x1b[32m INFO\x1b[0m \x1b[2mt:\x1b[0m m\n"; string(line) != want {
		t.Errorf("line %q, want %q", line, want)
	}
}

func TestATerminalIsRecognised(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("no pseudo-terminal: %v", err)
	}
	defer tty.Close()
	t.Setenv("NO_COLOR", "")
	if !colourful(tty) {
		t.Error("a terminal is not recognised")
	}
	t.Setenv("NO_COLOR", "1")
	if colourful(tty) {
		t.Error("NO_COLOR is ignored")
	}
}

func TestConcurrentLinesStayWhole(t *testing.T) {
	l, buf := logTo(t, FormatHuman, "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l.Info("message", "k", "v")
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
	if len(lines) != 1600 {
		t.Errorf("%d lines, want 1600", len(lines))
	}
	for _, line := range lines {
		if !strings.HasSuffix(line, " INFO gateway: message k=v") {
			t.Fatalf("line %q", line)
		}
	}
}

func FuzzDirectives(f *testing.F) {
	for _, seed := range []string{"", "info", "warn,dns=debug", "a::b=off", "=", "x[y{z}]", "::=info"} {
		f.Add(seed, "dns/udp4")
	}
	f.Fuzz(func(t *testing.T, directives, target string) {
		parsed, err := parseDirectives(directives)
		if err != nil {
			return
		}
		level := parsed.level(target)
		switch level {
		case LevelTrace, slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError, levelOff:
		default:
			t.Errorf("level %v", level)
		}
	})
}

// FuzzLines: whatever is logged, a record is one line without control
// characters, and in JSON an object.
func FuzzLines(f *testing.F) {
	f.Add("message", "key", "value")
	f.Add("a\nb", "k\x00", "\xff\x1b]0;x\a")
	f.Add("", "", "\u2028\u202e")
	f.Add("\x7f", "\u009b31m", "\u0085")
	f.Fuzz(func(t *testing.T, message, key, value string) {
		for _, format := range []Format{FormatHuman, FormatJSON} {
			l, buf := logTo(t, format, "")
			l.Info(message, slog.String(key, value))
			line := buf.Bytes()
			if bytes.IndexByte(line, '\n') != len(line)-1 {
				t.Errorf("%s: %q is not one line", format, line)
			}
			for _, c := range string(line[:len(line)-1]) {
				if unicode.IsControl(c) {
					t.Errorf("%s: %q has control characters", format, line)
					break
				}
			}
			if format == FormatJSON && !json.Valid(line) {
				t.Errorf("%q is not JSON", line)
			}
		}
	})
}
