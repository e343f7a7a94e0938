package telemetry

import (
	"context"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.opentelemetry.io/otel/attribute"
)

// scrape returns the families of one scrape by name.
func scrape(t testing.TB, p *Providers) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	p.Prometheus.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("status %d, %v", w.Code, err)
	}
	return families
}

func scrapeable(t testing.TB) *Providers {
	t.Helper()
	config := service
	config.Prometheus = true
	p, shutdown, err := Setup(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func labels(m *dto.Metric) (out []string) {
	for _, l := range m.GetLabel() {
		out = append(out, l.GetName()+"="+l.GetValue())
	}
	slices.Sort(out)
	return out
}

func TestObservationsAreScraped(t *testing.T) {
	p := scrapeable(t)
	kind := AttrActorKind.String("peer")
	stop, err := p.Observe(func(o Observation) {
		o.Count(ActorRestarts, 3, kind)
		o.Count(ActorCount, 2, kind)
		o.Seconds(ActorWait, 1.5, kind)
		o.Seconds(ActorMaxWait, 0.5, kind)
		p.Histograms.Publish([]Distribution{
			{ActorDuration, attribute.NewSet(kind), []float64{0.1, 1}, []uint64{5, 2, 1}, 4.5},
			{ActorDuration, attribute.NewSet(AttrActorKind.String("nat")), []float64{0.1, 1}, []uint64{0, 0, 0}, 0},
			{DNSLookup, attribute.NewSet(), []float64{1}, []uint64{1, 0}, 0.25},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	got := scrape(t, p)
	for name, want := range map[string]struct {
		kind  dto.MetricType
		value float64
	}{
		"actor_restarts_total":             {dto.MetricType_COUNTER, 3},
		"actor_count":                      {dto.MetricType_GAUGE, 2},
		"actor_mailbox_wait_seconds_total": {dto.MetricType_COUNTER, 1.5},
		"actor_mailbox_max_wait_seconds":   {dto.MetricType_GAUGE, 0.5},
	} {
		f := got[name]
		if f == nil || f.GetType() != want.kind || len(f.GetMetric()) != 1 {
			t.Errorf("%s is %v", name, f)
			continue
		}
		m := f.GetMetric()[0]
		if v := m.GetCounter().GetValue() + m.GetGauge().GetValue(); v != want.value || !slices.Equal(labels(m), []string{"actor_kind=peer"}) {
			t.Errorf("%s is %v of %v, want %v", name, v, labels(m), want.value)
		}
	}
	durations := got["actor_handler_duration_seconds"].GetMetric()
	if len(durations) != 2 {
		t.Fatalf("durations %v", durations)
	}
	i := slices.IndexFunc(durations, func(m *dto.Metric) bool { return slices.Contains(labels(m), "actor_kind=peer") })
	h := durations[i].GetHistogram()
	if h.GetSampleCount() != 8 || h.GetSampleSum() != 4.5 || h.GetBucket()[0].GetCumulativeCount() != 5 || h.GetBucket()[1].GetCumulativeCount() != 7 {
		t.Errorf("histogram %v", h)
	}
	if n := got["dns_lookup_duration_seconds"].GetMetric()[0].GetHistogram().GetSampleCount(); n != 1 {
		t.Errorf("%d look-ups", n)
	}
	info := got["target_info"].GetMetric()[0]
	if !slices.Contains(labels(info), "service_name=gateway") || !slices.Contains(labels(info), "service_version=1.2.3") {
		t.Errorf("target info %v", labels(info))
	}

	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if f := scrape(t, p)["actor_count"]; f != nil {
		t.Errorf("after the end: %v", f)
	}
}

// A name that clients of a newer Prometheus would see differently breaks queries.
func TestNamesAreTheSameForEveryScraper(t *testing.T) {
	p := scrapeable(t)
	if _, err := p.Observe(func(o Observation) { o.Count(ActorCount, 1) }); err != nil {
		t.Fatal(err)
	}
	for _, accept := range []string{"", "text/plain;version=1.0.0;escaping=allow-utf-8", "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8"} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		p.Prometheus.ServeHTTP(w, r)
		if !strings.Contains(w.Body.String(), "\nactor_count 1") {
			t.Errorf("%q: got\n%s", accept, w.Body)
		}
	}
}

func TestTheProcessIsMeasured(t *testing.T) {
	p := scrapeable(t)
	if _, err := p.Observe(func(o Observation) { ObserveProcess(o, time.Now().Add(-time.Hour)) }); err != nil {
		t.Fatal(err)
	}
	ballast := make([]byte, 32<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := scrape(t, p)
	value := func(name string) (sum float64) {
		if got[name] == nil {
			t.Fatalf("no %s", name)
		}
		for _, m := range got[name].GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		return sum
	}
	for name, least := range map[string]float64{
		"process_uptime_seconds": 3600, "process_cpu_time_seconds_total": 0.001, "process_unix_file_descriptor_count": 4,
		"process_memory_usage_bytes": 32 << 20, "go_memory_heap_bytes": 32 << 20, "go_memory_live_bytes": 1, "go_memory_used_bytes": 32 << 20,
		"go_memory_allocated_bytes_total": 32 << 20, "go_memory_allocations_total": 1000, "go_memory_gc_goal_bytes": 1 << 20,
		"go_goroutine_count": 2, "go_processor_limit": 1,
	} {
		if v := value(name); v < least {
			t.Errorf("%s is %v, below %v", name, v, least)
		}
	}
	if v := value("process_memory_usage_bytes"); v > 8<<30 {
		t.Errorf("resident memory of %v bytes", v)
	}
	before := value("go_gc_cycles_total")
	runtime.GC()
	got = scrape(t, p)
	if after := value("go_gc_cycles_total"); after <= before {
		t.Errorf("%v collections, %v before one more", after, before)
	}
	runtime.KeepAlive(ballast)
}
