package telemetry

import (
	"regexp"
	"strings"
	"testing"
)

func TestMetricNames(t *testing.T) {
	// The syntax of instrument names, narrowed to lower case.
	name := regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)
	unit := regexp.MustCompile(`^(s|By|\{[a-z_]+\})$`)
	seen := map[string]bool{}
	for _, m := range Metrics() {
		if !name.MatchString(m.Name) || len(m.Name) > 63 {
			t.Errorf("%q is not a metric name", m.Name)
		}
		if seen[m.Name] {
			t.Errorf("%q is declared twice", m.Name)
		}
		seen[m.Name] = true
		// A name in which another continues becomes a folder and a file of one name.
		for other := range seen {
			if strings.HasPrefix(other, m.Name+".") || strings.HasPrefix(m.Name, other+".") {
				t.Errorf("%s and %s contain each other", m.Name, other)
			}
		}
		if !unit.MatchString(m.Unit) {
			t.Errorf("%s: unit %q", m.Name, m.Unit)
		}
		if !strings.HasSuffix(m.Description, ".") {
			t.Errorf("%s: description %q is not a sentence", m.Name, m.Description)
		}
		if m.Kind < Counter || m.Kind > Histogram {
			t.Errorf("%s: kind %d", m.Name, m.Kind)
		}
	}
	if len(seen) == 0 {
		t.Error("no metric is declared")
	}
}
