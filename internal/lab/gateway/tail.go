package gateway

import (
	"bytes"
	"io"
	"slices"
	"sync"
)

const (
	linesKept = 200
	maxLine   = 4 << 10 // bytes; what is longer is kept in pieces
)

// tail passes everything on to next, if there is one, and remembers the last
// lines. It is safe for concurrent use.
type tail struct {
	next io.Writer

	mu      sync.Mutex
	lines   []string // guarded by mu, at most linesKept
	partial []byte   // guarded by mu, at most maxLine
}

// Write implements io.Writer. A next that fails does not stop the memory.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != nil {
		_, _ = t.next.Write(p)
	}
	for rest := p; len(rest) > 0; {
		line, after, complete := bytes.Cut(rest, []byte("\n"))
		room := maxLine - len(t.partial)
		if len(line) > room {
			line, after, complete = line[:room], rest[room:], true
		}
		t.partial = append(t.partial, line...)
		if !complete {
			break
		}
		t.keep()
		rest = after
	}
	return len(p), nil
}

func (t *tail) keep() {
	if len(t.lines) == linesKept {
		t.lines = slices.Delete(t.lines, 0, 1)
	}
	t.lines = append(t.lines, string(t.partial))
	t.partial = t.partial[:0]
}

func (t *tail) last(n int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := slices.Clone(t.lines)
	if len(t.partial) > 0 {
		lines = append(lines, string(t.partial))
	}
	return lines[max(0, len(lines)-n):]
}
