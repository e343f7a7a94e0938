package telemetry

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Observation takes the values of one collection.
type Observation struct {
	instruments *instruments
	to          metric.Observer
}

// instruments are observable ones by the name of their Metric.
type instruments struct {
	ints   map[string]metric.Int64Observable
	floats map[string]metric.Float64Observable
}

// Observe makes every Metric but the histograms an instrument of p's meter and has
// collect called whenever an exporter wants their values. Calls may overlap. What
// collect does not mention is not exported. The function returned ends that.
func (p *Providers) Observe(collect func(Observation)) (stop func() error, err error) {
	meter := p.Meter.Meter(MeterName)
	made := &instruments{ints: map[string]metric.Int64Observable{}, floats: map[string]metric.Float64Observable{}}
	var all []metric.Observable
	for _, m := range declared {
		if m.Kind == Histogram {
			continue
		}
		instrument, e := made.add(meter, m)
		err = errors.Join(err, e)
		all = append(all, instrument)
	}
	if err != nil {
		return nil, err
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, to metric.Observer) error {
		p.keeper.observe(Observation{made, to})
		collect(Observation{made, to})
		return nil
	}, all...)
	if err != nil {
		return nil, fmt.Errorf("observe metrics: %w", err)
	}
	return registration.Unregister, nil
}

// add makes the instrument of m. Seconds are fractions, all else is counted.
func (i *instruments) add(meter metric.Meter, m Metric) (metric.Observable, error) {
	unit, description := metric.WithUnit(m.Unit), metric.WithDescription(m.Description)
	var err error
	if m.Unit == "s" {
		var o metric.Float64Observable
		switch m.Kind {
		case Counter:
			o, err = meter.Float64ObservableCounter(m.Name, unit, description)
		case UpDown:
			o, err = meter.Float64ObservableUpDownCounter(m.Name, unit, description)
		default:
			o, err = meter.Float64ObservableGauge(m.Name, unit, description)
		}
		i.floats[m.Name] = o
		return o, err
	}
	var o metric.Int64Observable
	switch m.Kind {
	case Counter:
		o, err = meter.Int64ObservableCounter(m.Name, unit, description)
	case UpDown:
		o, err = meter.Int64ObservableUpDownCounter(m.Name, unit, description)
	default:
		o, err = meter.Int64ObservableGauge(m.Name, unit, description)
	}
	i.ints[m.Name] = o
	return o, err
}

// Count gives the value of m, which is not in seconds.
func (o Observation) Count(m Metric, value uint64, attributes ...attribute.KeyValue) {
	o.to.ObserveInt64(o.instruments.ints[m.Name], int64(value), metric.WithAttributes(attributes...))
}

// Seconds gives the value of m, which is in seconds.
func (o Observation) Seconds(m Metric, value float64, attributes ...attribute.KeyValue) {
	o.to.ObserveFloat64(o.instruments.floats[m.Name], value, metric.WithAttributes(attributes...))
}
