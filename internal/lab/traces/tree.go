package traces

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Span is one span as it arrived. Identifiers are in hexadecimal.
type Span struct {
	Service    string            `json:"service"`
	Name       string            `json:"name"`
	TraceID    string            `json:"trace_id"`
	ID         string            `json:"span_id"`
	ParentID   string            `json:"parent_span_id,omitempty"` // empty for a root
	Start      time.Time         `json:"start"`
	End        time.Time         `json:"end"`
	Error      string            `json:"error,omitempty"` // empty unless its status is an error
	Attributes map[string]string `json:"attributes,omitempty"`
	Events     []Event           `json:"events,omitempty"`
	Links      []Link            `json:"links,omitempty"`
}

// Event is something that happened within a span.
type Event struct {
	Name       string            `json:"name"`
	At         time.Time         `json:"at"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Link leads to a span of another trace, or to another one of this.
type Link struct {
	TraceID string `json:"trace_id"`
	SpanID  string `json:"span_id"`
	Why     string `json:"why"`
}

// Node is a span with those that followed from it, the earliest first.
type Node struct {
	Span
	Children []*Node `json:"children,omitempty"`
}

// Trace is the spans of one trace: a tree, or several where a parent is
// missing.
type Trace struct {
	ID    string  `json:"trace_id"`
	Roots []*Node `json:"roots"`
}

// Traces puts spans together to traces, the earliest first. A span that arrived
// twice counts once.
func Traces(spans []Span) []Trace {
	nodes := make(map[string]*Node, len(spans))
	var order []*Node
	for _, s := range spans {
		if nodes[s.TraceID+s.ID] == nil {
			n := &Node{Span: s}
			nodes[s.TraceID+s.ID] = n
			order = append(order, n)
		}
	}
	slices.SortStableFunc(order, func(a, b *Node) int { return a.Start.Compare(b.Start) })
	var traces []Trace
	index := make(map[string]int)
	for _, n := range order {
		if parent := nodes[n.TraceID+n.ParentID]; n.ParentID != "" && parent != nil {
			parent.Children = append(parent.Children, n)
			continue
		}
		i, known := index[n.TraceID]
		if !known {
			i = len(traces)
			index[n.TraceID] = i
			traces = append(traces, Trace{ID: n.TraceID})
		}
		traces[i].Roots = append(traces[i].Roots, n)
	}
	return traces
}

// Nodes returns all spans of the trace, parents before children.
func (t Trace) Nodes() []*Node {
	var all []*Node
	var collect func([]*Node)
	collect = func(list []*Node) {
		for _, n := range list {
			all = append(all, n)
			collect(n.Children)
		}
	}
	collect(t.Roots)
	return all
}

// Find returns the first span of that name, nil if there is none.
func (t Trace) Find(name string) *Node {
	for _, n := range t.Nodes() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Leads reports whether a span of t has a link to one of other.
func (t Trace) Leads(other Trace) bool {
	return slices.ContainsFunc(t.Nodes(), func(n *Node) bool {
		return slices.ContainsFunc(n.Links, func(l Link) bool { return l.TraceID == other.ID })
	})
}

// Write draws the trace: for each span when it began, how long it took, and what
// it is, then its events and links.
//
//	+0.0 ms    0.4 ms  portal pushed
//	+0.3 ms    0.1 ms  └─ peers FromPortal
//	+0.3 ms               · dropped error.type=client-unknown
func (t Trace) Write(w io.Writer) error {
	if len(t.Roots) == 0 {
		return nil
	}
	d := drawing{w: w, begin: t.Roots[0].Start}
	for _, root := range t.Roots {
		d.draw(root, "", "")
	}
	return d.err
}

// drawing writes lines until the first error.
type drawing struct {
	w     io.Writer
	begin time.Time
	err   error
}

// draw writes n; first is what stands before its name, then before all that is
// below it.
func (d *drawing) draw(n *Node, first, then string) {
	d.line(n.Start, milliseconds(n.End.Sub(n.Start)), first+n.Name+details(n.Attributes))
	below := then + "  "
	if len(n.Children) > 0 {
		below = then + "│ "
	}
	if n.Error != "" {
		d.line(n.End, "", below+"✗ "+firstLine(n.Error))
	}
	for _, e := range n.Events {
		if e.Name == "exception" {
			continue // the error says it
		}
		d.line(e.At, "", below+"· "+e.Name+details(e.Attributes))
	}
	for _, l := range n.Links {
		d.line(n.Start, "", below+"→ "+l.Why+": span "+l.SpanID+" of trace "+l.TraceID)
	}
	for i, child := range n.Children {
		if i == len(n.Children)-1 {
			d.draw(child, then+"└─ ", then+"   ")
		} else {
			d.draw(child, then+"├─ ", then+"│  ")
		}
	}
}

func (d *drawing) line(at time.Time, took, text string) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.w, "%12s %11s  %s\n", "+"+milliseconds(at.Sub(d.begin)), took, text)
	}
}

// hidden are attributes that say what the name says, or more than fits.
var hidden = map[string]bool{
	"actor.kind": true, "actor.path": true, "messaging.message.type": true,
	"exception.type": true, "exception.stacktrace": true, "exception.message": true,
}

func details(attributes map[string]string) string {
	var b strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(attributes), cmp.Compare[string]) {
		if !hidden[key] {
			fmt.Fprintf(&b, " %s=%s", key, firstLine(attributes[key]))
		}
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000)
}
