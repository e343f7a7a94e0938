package telemetry

import (
	"fmt"
	"log/slog"
	"math"
	"strings"
)

// LevelTrace is below slog.LevelDebug.
const LevelTrace = slog.LevelDebug - 4

// levelOff is above every level that is logged.
const levelOff = slog.Level(math.MaxInt)

// quiet precedes the operator's directives, which override it target by
// target: these libraries say at info what an operator does not need.
const quiet = "grpc=warn,pion=warn,wireguard=warn"

// filter decides the level of each target.
type filter struct {
	fallback slog.Level
	targets  map[string]slog.Level
}

// parseDirectives reads directives of the form of RUST_LOG: a comma-separated
// list of "level", "target=level" and "target" (which is target=trace), with
// the levels off, error, warn, info, debug and trace in any case. A target
// covers those below it ("dns" covers "dns/udp4"), the longest match wins, and
// of two directives for one target the last. An empty list means info; a list
// without a bare level leaves the targets it does not name at error.
func parseDirectives(text string) (filter, error) {
	f := filter{fallback: slog.LevelError, targets: make(map[string]slog.Level)}
	if strings.Trim(text, ", \t\r\n") == "" {
		f.fallback = slog.LevelInfo
	}
	for part := range strings.SplitSeq(quiet+","+text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		target, name, assigned := strings.Cut(part, "=")
		target, name = strings.TrimSpace(target), strings.TrimSpace(name)
		level, known := parseLevel(name)
		bare, isLevel := parseLevel(target)
		switch {
		case strings.ContainsAny(part, "[]{}"):
			return filter{}, fmt.Errorf("log directive %q: filters on spans are not supported", part)
		case assigned && (!known || target == "" || strings.ContainsAny(target, " \t")):
			return filter{}, fmt.Errorf("log directive %q: want target=level", part)
		case assigned:
			f.targets[target] = level
		case isLevel:
			f.fallback = bare
		case strings.ContainsAny(target, " \t"):
			return filter{}, fmt.Errorf("log directive %q: not a level", part)
		default:
			f.targets[target] = LevelTrace
		}
	}
	return f, nil
}

// level returns the lowest level that target logs.
func (f filter) level(target string) slog.Level {
	for t := target; t != ""; t = parentTarget(t) {
		if l, ok := f.targets[t]; ok {
			return l
		}
	}
	return f.fallback
}

// parentTarget cuts the last segment off; separators are those in use for
// paths of actors, Go names and Rust names.
func parentTarget(t string) string {
	i := strings.LastIndexAny(t, "/.:")
	if i < 0 {
		return ""
	}
	return strings.TrimRight(t[:i], "/.:")
}

func parseLevel(name string) (slog.Level, bool) {
	switch strings.ToLower(name) {
	case "off":
		return levelOff, true
	case "error":
		return slog.LevelError, true
	case "warn":
		return slog.LevelWarn, true
	case "info":
		return slog.LevelInfo, true
	case "debug":
		return slog.LevelDebug, true
	case "trace":
		return LevelTrace, true
	}
	return 0, false
}
