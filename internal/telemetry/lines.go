package telemetry

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// human writes lines for people.
type human struct{ colour bool }

// Escape sequences (ECMA-48 §8.3.117).
const (
	dim   = "\x1b[2m"
	reset = "\x1b[0m"
)

var levelColours = map[string]string{
	"TRACE": "\x1b[35m", "DEBUG": "\x1b[34m", "INFO": "\x1b[32m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m",
}

func (h human) encode(buf []byte, l *line) []byte {
	if !l.at.IsZero() {
		buf = h.paint(buf, dim, string(appendTime(nil, l.at)))
		buf = append(buf, ' ')
	}
	name := levelName(l.level)
	buf = h.paint(buf, levelColours[name], strings.Repeat(" ", 5-len(name))+name)
	buf = append(buf, ' ')
	buf = h.paint(buf, dim, plain(l.target)+":")
	buf = append(buf, ' ')
	buf = append(buf, plain(l.message)...)
	for _, f := range l.fields {
		buf = append(buf, ' ')
		buf = append(buf, quoted(f.key)...)
		buf = append(buf, '=')
		buf = append(buf, quoted(text(f.value))...)
	}
	return append(buf, '\n')
}

func (h human) paint(buf []byte, colour, s string) []byte {
	if !h.colour {
		return append(buf, s...)
	}
	buf = append(buf, colour...)
	buf = append(buf, s...)
	return append(buf, reset...)
}

// plain escapes what is not printable, because names from outside reach
// messages: a newline would forge a line, an escape drive the terminal.
func plain(s string) string {
	if clean(s) {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// quoted quotes values that could not be told apart otherwise.
func quoted(s string) string {
	if s != "" && clean(s) && !strings.ContainsAny(s, " \"=") {
		return s
	}
	return strconv.Quote(s)
}

func clean(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// text is the value as people read it.
func text(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return string(appendTime(nil, v.Time()))
	case slog.KindAny:
		return fmt.Sprint(v.Any())
	}
	return v.String()
}

// jsonLine writes lines for machines.
type jsonLine struct{}

// Keys of every JSON line. A field of the same name gets an underscore.
const (
	keyTime    = "timestamp"
	keyLevel   = "level"
	keyMessage = "message"
)

func (jsonLine) encode(buf []byte, l *line) []byte {
	buf = append(buf, '{')
	if !l.at.IsZero() {
		buf = append(appendKey(buf, keyTime), '"')
		buf = append(appendTime(buf, l.at), '"', ',')
	}
	buf = appendString(appendKey(buf, keyLevel), levelName(l.level))
	buf = appendString(appendKey(append(buf, ','), targetKey), l.target)
	buf = appendString(appendKey(append(buf, ','), keyMessage), l.message)
	for i, f := range l.fields {
		if overwritten(l.fields[i+1:], f.key) {
			continue
		}
		key := f.key
		switch key {
		case keyTime, keyLevel, targetKey, keyMessage:
			key += "_"
		}
		buf = appendValue(appendKey(append(buf, ','), key), f.value)
	}
	return append(buf, '}', '\n')
}

// overwritten reports whether a later field has the same key, which would make
// the object ambiguous.
func overwritten(later []field, key string) bool {
	for _, f := range later {
		if f.key == key {
			return true
		}
	}
	return false
}

func appendKey(buf []byte, key string) []byte { return append(appendString(buf, key), ':') }

// appendString also escapes DEL and the C1 controls, which JSON allows but a
// terminal obeys.
func appendString(buf []byte, s string) []byte {
	b, _ := json.Marshal(s) // strings always encode
	if !strings.ContainsFunc(s, control) {
		return append(buf, b...)
	}
	for _, r := range string(b) {
		if control(r) {
			buf = fmt.Appendf(buf, `\u%04x`, r)
		} else {
			buf = utf8.AppendRune(buf, r)
		}
	}
	return buf
}

func control(r rune) bool { return r >= 0x7f && r <= 0x9f }

func appendValue(buf []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(buf, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(buf, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(buf, v.Bool())
	case slog.KindFloat64:
		if f := v.Float64(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return strconv.AppendFloat(buf, f, 'g', -1, 64)
		}
	case slog.KindAny:
		switch a := v.Any().(type) {
		case error, fmt.Stringer, time.Duration:
			// The texts people read; encoding would show their insides.
		default:
			if b, err := json.Marshal(a); err == nil {
				return append(buf, b...)
			}
		}
	}
	return appendString(buf, text(v))
}
