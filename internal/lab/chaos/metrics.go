package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// errNoMetrics says that the daemon has no metrics endpoint.
var errNoMetrics = errors.New("the gateway has no metrics")

const metricsURL = "http://127.0.0.1:8080/metrics"

// sample is one line of the Prometheus text format.
type sample struct {
	name   string
	labels string // between the braces
	value  float64
}

// label returns the value of a label, "" without it. Escapes are left as they
// are: the values of interest have none.
func (s sample) label(name string) string {
	rest := s.labels
	for rest != "" {
		key, after, ok := strings.Cut(rest, `="`)
		if !ok {
			return ""
		}
		value, next, _ := strings.Cut(after, `"`)
		if strings.TrimLeft(key, ", ") == name {
			return value
		}
		rest = next
	}
	return ""
}

// scrape reads the daemon's metrics.
func (w *world) scrape(ctx context.Context) ([]sample, error) {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, metricsURL, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: w.net.Gateway.Host.DialContext, DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return parseMetrics(io.LimitReader(response.Body, maxAnswer))
	case http.StatusNotFound:
		return nil, errNoMetrics
	}
	return nil, fmt.Errorf("metrics: %s", response.Status)
}

// parseMetrics reads the Prometheus text format without times.
func parseMetrics(r io.Reader) (samples []sample, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil, fmt.Errorf("metrics: %q has no value", line)
		}
		s := sample{name: line[:at]}
		if s.value, err = strconv.ParseFloat(line[at+1:], 64); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		if name, labels, ok := strings.Cut(s.name, "{"); ok {
			s.name, s.labels = name, strings.TrimSuffix(labels, "}")
		}
		samples = append(samples, s)
	}
	return samples, lines.Err()
}

// Names of metrics that the lab reads.
const (
	restartsMetric   = "actor_restarts_total"
	kindLabel        = "actor_kind"
	goroutinesMetric = "go_goroutine_count"
	heapMetric       = "go_memory_live_bytes"
)

// restartMetric returns the restarts of each kind, errNoMetrics where there are
// none.
func (w *world) restartMetric(ctx context.Context) (map[string]int, error) {
	samples, err := w.scrape(ctx)
	if err != nil {
		return nil, err
	}
	restarts := map[string]int{}
	for _, s := range samples {
		if s.name == restartsMetric {
			restarts[s.label(kindLabel)] += int(s.value)
		}
	}
	return restarts, nil
}

func difference(after, before map[string]int) map[string]int {
	d := map[string]int{}
	for k, n := range after {
		if n != before[k] {
			d[k] = n - before[k]
		}
	}
	return d
}
