package telemetry

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestMetricNames(t *testing.T) {
	// The syntax of instrument names, narrowed to lower case.
	name := regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)
	unit := regexp.MustCompile(`^(s|By|\{[a-z]+\})$`)
	seen := map[string]bool{}
	for _, m := range Metrics() {
		if !name.MatchString(m.Name) || len(m.Name) > 63 {
			t.Errorf("%q is not a metric name", m.Name)
		}
		if seen[m.Name] {
			t.Errorf("%q is declared twice", m.Name)
		}
		seen[m.Name] = true
		if !unit.MatchString(m.Unit) {
			t.Errorf("%s: unit %q", m.Name, m.Unit)
		}
		if !strings.HasSuffix(m.Description, ".") {
			t.Errorf("%s: description %q is not a sentence", m.Name, m.Description)
		}
		if (m.Kind == Histogram) != (len(m.Buckets) > 0) || !slices.IsSorted(m.Buckets) {
			t.Errorf("%s: buckets %v", m.Name, m.Buckets)
		}
	}
	if len(seen) == 0 {
		t.Error("no metric is declared")
	}
}
