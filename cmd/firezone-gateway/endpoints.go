package main

import (
	"firezone-gateway/actors"
	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/telemetry"
)

// noMetrics is the --metrics-addr of a gateway that answers no scrapes.
const noMetrics = "none"

// openEndpoints opens the health endpoint and that of the metrics, and has the
// metrics of tree collected. The gateway works without any of it. The function
// returned closes the endpoints.
func (d *daemon) openEndpoints(tree *actors.Tree) (closeAll func()) {
	// The exporters are to get the last figures as well, so this is never undone.
	if _, err := tree.Observe(d.providers, d.began); err != nil {
		d.log.Warn("going on without metrics", "error", err)
	}
	var closers []func()
	opened := func(what string, s *admin.Server, err error) {
		if err != nil {
			d.log.Warn("going on without "+what, "error", err)
			return
		}
		closers = append(closers, func() { d.end(what, s.Close) })
	}
	health := admin.Health{Alive: tree.Pulse().Alive, Missing: d.plane.Missing}
	metrics, at := d.providers.Prometheus, d.flags.metricsPlace()
	if at == d.flags.HealthCheckAddr {
		health.Metrics = metrics
	}
	s, err := admin.Serve(d.flags.HealthCheckAddr, health)
	opened("health endpoint", s, err)
	if metrics != nil && at != d.flags.HealthCheckAddr {
		s, err := admin.ServeMetrics(at, metrics)
		opened("metrics endpoint", s, err)
	}
	return func() {
		for _, closeIt := range closers {
			closeIt()
		}
	}
}

// metricsPlace returns where /metrics is: where the flag says, else where the
// standard variables do, else with the health endpoint.
func (f *flags) metricsPlace() string {
	if f.MetricsAddr != "" {
		return f.MetricsAddr
	}
	if at := telemetry.PrometheusAddr(); at != "" {
		return at
	}
	return f.HealthCheckAddr
}
