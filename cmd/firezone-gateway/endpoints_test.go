package main

import (
	"strings"
	"syscall"
	"testing"
)

func TestWhereMetricsAre(t *testing.T) {
	t.Parallel()
	const own = "127.0.0.1:9470"
	for name, tc := range map[string]struct {
		env       variablesOf
		health    bool // they are on the health endpoint
		elsewhere bool // they are at own
	}{
		"with health unless told otherwise": {nil, true, false},
		"where the flag says":               {variablesOf{"FIREZONE_METRICS_ADDR": own}, false, true},
		"where both flags say":              {variablesOf{"FIREZONE_METRICS_ADDR": healthAddr}, true, false},
		"where the standard variables say": {variablesOf{
			"OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1", "OTEL_EXPORTER_PROMETHEUS_PORT": "9470",
		}, false, true},
		"where the flag says rather than the variables": {variablesOf{
			"FIREZONE_METRICS_ADDR": own, "OTEL_EXPORTER_PROMETHEUS_PORT": "9471",
		}, false, true},
		"nowhere by the flag":              {variablesOf{"FIREZONE_METRICS_ADDR": "none"}, false, false},
		"nowhere by the standard variable": {variablesOf{"OTEL_METRICS_EXPORTER": "none", "FIREZONE_METRICS_ADDR": own}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			r := s.startJoined(t, launch{env: tc.env})
			for addr, want := range map[string]bool{healthAddr: tc.health, own: tc.elsewhere} {
				if !want {
					continue
				}
				r.await(t, "metrics at "+addr, func() bool {
					status, body := ask(t, s.Namespace, addr, "/metrics")
					return status == 200 && strings.Contains(body, "\nportal_connection_joined 1\n") &&
						strings.Contains(body, `actor_count{actor_kind="peers"} 1`)
				})
			}
			for addr, want := range map[string]bool{healthAddr: tc.health, own: tc.elsewhere} {
				if status, _ := ask(t, s.Namespace, addr, "/metrics"); (status == 200) != want {
					t.Errorf("at %s the status is %d", addr, status)
				}
			}
			if status, _ := health(t, s.Namespace, "/healthz"); status != 200 {
				t.Errorf("/healthz is %d", status)
			}
			r.terminates(t, syscall.SIGTERM)
		})
	}
}

func TestRunsWithoutMetricsEndpoint(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const taken = "127.0.0.1:9470"
	silent(t, s.Namespace, taken)
	r := s.startJoined(t, launch{env: variablesOf{"FIREZONE_METRICS_ADDR": taken}})
	if !r.stdout.has("going on without metrics endpoint") {
		t.Error("nothing was said about it")
	}
	r.terminates(t, syscall.SIGTERM)
}
