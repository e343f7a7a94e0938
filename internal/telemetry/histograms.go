package telemetry

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Distribution is one series of a histogram whose source counts by itself, since
// the process started. There is no observable instrument for that.
type Distribution struct {
	Metric     Metric
	Attributes attribute.Set
	Bounds     []float64 // upper bounds in the unit of Metric, ascending; not written to again
	Counts     []uint64  // one for each of Bounds, and one for what is above; not written to again
	Sum        float64   // in the unit of Metric
}

// Histograms hands distributions to the exporters.
type Histograms struct {
	start  time.Time
	latest atomic.Pointer[[]Distribution]
}

var _ sdkmetric.Producer = (*Histograms)(nil)

// Publish replaces what the exporters see. Those of one Metric follow each other.
// It belongs into the callback by which a meter collects: exporters take
// histograms right after their callbacks.
func (h *Histograms) Publish(d []Distribution) { h.latest.Store(&d) }

// Produce implements the SDK's source of metrics that it did not measure.
func (h *Histograms) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	latest := h.latest.Load()
	if latest == nil {
		return nil, nil
	}
	now := time.Now()
	scope := metricdata.ScopeMetrics{Scope: instrumentation.Scope{Name: MeterName}}
	var points []metricdata.HistogramDataPoint[float64]
	for i, d := range *latest {
		point := metricdata.HistogramDataPoint[float64]{
			Attributes: d.Attributes, StartTime: h.start, Time: now, Bounds: d.Bounds, BucketCounts: d.Counts, Sum: d.Sum,
		}
		for _, n := range d.Counts {
			point.Count += n
		}
		points = append(points, point)
		if i+1 < len(*latest) && (*latest)[i+1].Metric == d.Metric {
			continue
		}
		scope.Metrics = append(scope.Metrics, metricdata.Metrics{
			Name: d.Metric.Name, Description: d.Metric.Description, Unit: d.Metric.Unit,
			Data: metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality, DataPoints: points},
		})
		points = nil
	}
	return []metricdata.ScopeMetrics{scope}, nil
}
