package traces

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/lab/labtest"
)

func TestTracesArriveAtACollector(t *testing.T) {
	if testing.Short() {
		t.Skip("building the Collector takes minutes the first time")
	}
	labtest.NeedNamespaces(t)
	report, err := Run(t.Context(), Options{Gateway: labtest.Daemon(), Collector: needCollector(t), Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Error(p)
	}
	if !report.Faults {
		t.Error("no actor was made to fail")
	}
	var b bytes.Buffer
	if err := report.Write(&b); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", &b)
}

// spans makes spans of lines "trace id parent name", with "-" for no parent.
// The order of the lines is that of their starts.
func spans(lines ...string) (made []Span) {
	for i, line := range lines {
		f := strings.SplitN(line, " ", 4)
		s := Span{TraceID: f[0], ID: f[1], ParentID: strings.TrimPrefix(f[2], "-"), Name: f[3], Attributes: map[string]string{}}
		s.Start = time.UnixMilli(int64(i))
		s.End = s.Start.Add(time.Millisecond)
		made = append(made, s)
	}
	return made
}

// complete is what arrives when nothing is missing.
func complete() []Span {
	all := spans(
		"a 1 - portal pushed", "a 2 1 peers FromPortal", "a 3 2 peer start", "a 4 2 peer Authorize", "a 5 4 portal SendToPortal",
		"a 6 4 client connect", "a 7 6 portal pushed", "a 8 7 peers FromPortal", "a 9 8 peer AddCandidates", "a a 9 relay channel",
		"a b 6 ice checks", "a c 6 wireguard handshake", "a d 6 resolver Resolve", "a e d peer Resolved", "a f e nat AssignDomain", "a g 6 first packet",
		"b 1 - peer Authorize",
		"c 1 - peer crash", "d 1 - actor restart",
		"e 1 - portal connect", "f 1 - portal connect",
	)
	for i := range all {
		switch s := &all[i]; s.TraceID {
		case "b":
			s.Links = []Link{{TraceID: "a", SpanID: "4", Why: "earlier authorisation"}}
		case "c":
			s.Error = "injected"
		case "d":
			s.Attributes["actor.kind"] = "peer"
			s.Links = []Link{{TraceID: "c", SpanID: "1", Why: "failure"}}
		case "f":
			s.Links = []Link{{TraceID: "e", SpanID: "1", Why: "connection before"}}
		}
	}
	return all
}

func TestJudgeSeesWhatIsMissing(t *testing.T) {
	without := func(trace, id string) func([]Span) []Span {
		return func(all []Span) []Span {
			return slices.DeleteFunc(all, func(s Span) bool { return s.TraceID == trace && s.ID == id })
		}
	}
	unlinked := func(trace string) func([]Span) []Span {
		return func(all []Span) []Span {
			for i := range all {
				if all[i].TraceID == trace {
					all[i].Links = nil
				}
			}
			return all
		}
	}
	for _, tc := range []struct {
		name   string
		change func([]Span) []Span
		want   string
	}{
		{"nothing", func(all []Span) []Span { return all }, ""},
		{"all", func([]Span) []Span { return nil }, "no trace of an authorisation"},
		{"the first packet", without("a", "g"), `no span "first packet"`},
		{"a span in the middle", without("a", "e"), "2 roots"},
		{"the channel", without("a", "a"), `no span "relay channel"`},
		{"the way back to the first authorisation", unlinked("b"), "leads back to the first"},
		{"the restart", without("d", "1"), "the restart of the client's actor did not arrive"},
		{"the way from the restart to its cause", unlinked("d"), "does not lead to the failure"},
		{"the failure", without("c", "1"), "does not lead to the failure"},
		{"the way from one connection to the one before", unlinked("f"), "connection 2 to the portal"},
		{"a connection", without("f", "1"), "1 connections to the portal"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := Report{Faults: true}
			r.judge(Traces(tc.change(complete())))
			all := strings.Join(r.Problems, "\n")
			if r.OK != (tc.want == "") || !strings.Contains(all, tc.want) {
				t.Errorf("OK %v, problems %q, want %q", r.OK, all, tc.want)
			}
		})
	}
}

func TestTheReportShowsEachTraceOnce(t *testing.T) {
	r := Report{Faults: true}
	r.judge(Traces(complete()))
	seen := map[string]int{r.Authorization.ID: 1}
	for _, related := range r.Related {
		seen[related.Trace.ID]++
	}
	if got := fmt.Sprint(seen); got != "map[a:1 b:1 c:1 d:1 e:1 f:1]" {
		t.Errorf("traces shown: %s", got)
	}
}
