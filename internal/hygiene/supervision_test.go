package hygiene

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/actors"
	"firezone-gateway/internal/actorkit"
)

// Marks around the generated table in docs/architecture.md.
const (
	tableBegin = "<!-- actors.Table begins -->\n"
	tableEnd   = "<!-- actors.Table ends -->\n"
)

var update = flag.Bool("update", false, "write generated parts of the documentation")

func TestArchitectureShowsTheSupervisionTable(t *testing.T) {
	const name = "docs/architecture.md"
	text, want := string(contents(t, name)), renderTable(actors.Table)
	before, got, after, ok := between(text, tableBegin, tableEnd)
	switch {
	case !ok:
		t.Fatalf("%s has no place for the supervision table", name)
	case got == want:
	case *update:
		if err := os.WriteFile(filepath.Join(root, name), []byte(before+want+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s does not show actors.Table, run: go test ./internal/hygiene -update\nIt should be:\n\n%s", name, want)
	}
}

func TestBetweenFindsTheMarks(t *testing.T) {
	before, inside, after, ok := between("a<b>c", "<", ">")
	if before != "a<" || inside != "b" || after != ">c" || !ok {
		t.Errorf("found %q, %q, %q, %v", before, inside, after, ok)
	}
	for _, text := range []string{"a<b", "a>b", ""} {
		if _, _, _, ok := between(text, "<", ">"); ok {
			t.Errorf("found both marks in %q", text)
		}
	}
}

func TestRenderTableShowsWhatMatters(t *testing.T) {
	table, err := actorkit.NewTable(
		actorkit.Spec{Kind: "b", Restart: actorkit.Never, Stuck: time.Minute, ShutdownBudget: time.Second, Survives: "nothing", GiveUp: actorkit.Exit(1)},
		actorkit.Spec{
			Kind: "a", Restart: actorkit.OnFailure, ShutdownBudget: 2 * time.Second, Survives: "all", GiveUp: actorkit.Degrade,
			Backoff:   actorkit.Backoff{Start: 20 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.3, ResetAfter: time.Minute},
			Intensity: actorkit.Intensity{Max: 20, Within: 5 * time.Minute},
		},
	)
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSpace(renderTable(table)), "\n")
	want := []string{
		"| `a` | on failure | 20ms ×2 up to 5s, less 0 to 30 %; anew after 1m0s of health | more than 20 in a row in 5m0s: degrade | all | 5s | 2s |",
		"| `b` | never | – | first failure: exit 1 | nothing | 1m0s | 1s |",
	}
	if got := rows[2:]; !slices.Equal(got, want) {
		t.Errorf("rows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// renderTable makes the Markdown form of a supervision table.
func renderTable(table actorkit.Table) string {
	var b strings.Builder
	b.WriteString("| actor | restarts | after | gives up at | survives a restart | stuck after | ends within |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, kind := range slices.Sorted(maps.Keys(table)) {
		s := table[kind]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n",
			kind, s.Restart, delays(s), giveUp(s), s.Survives, s.Stuck, s.ShutdownBudget)
	}
	return b.String()
}

func delays(s actorkit.Spec) string {
	if s.Restart == actorkit.Never {
		return "–"
	}
	b := s.Backoff
	text := fmt.Sprintf("%s ×%g up to %s, less 0 to %g %%", b.Start, b.Factor, b.Cap, b.Jitter*100)
	if b.ResetAfter > 0 {
		text += fmt.Sprintf("; anew after %s of health", b.ResetAfter)
	}
	return text
}

func giveUp(s actorkit.Spec) string {
	switch {
	case s.Restart == actorkit.Never:
		return "first failure: " + s.GiveUp.String()
	case s.Intensity.Max == 0:
		return "never"
	}
	return fmt.Sprintf("more than %d in a row in %s: %s", s.Intensity.Max, s.Intensity.Within, s.GiveUp)
}

// between splits text at the first begin and the end that follows. The marks stay
// with what surrounds them.
func between(text, begin, end string) (before, inside, after string, ok bool) {
	before, rest, ok := strings.Cut(text, begin)
	if !ok {
		return "", "", "", false
	}
	inside, after, ok = strings.Cut(rest, end)
	return before + begin, inside, end + after, ok
}
