package tour

import (
	"slices"
	"testing"

	labnet "firezone-gateway/internal/lab/net"
)

// TestTour asserts everything that the demonstration promises, with the same
// code.
func TestTour(t *testing.T) {
	o := scaled()
	takeAll(t, newWorld(t, o), Steps(o))
}

// TestTourWithAnOlderPortal asserts the core of it on the older generation of
// the protocol.
func TestTourWithAnOlderPortal(t *testing.T) {
	o := scaled()
	o.V1, o.Clients, o.Transfer = true, 1, 10e6
	core := []string{"joined", "authorized", "direct", "ping", "download", "no-grant", "filters", "revoked", "expired", "rejoined", "relayed", "stopped"}
	steps := slices.DeleteFunc(Steps(o), func(s Step) bool { return !slices.Contains(core, s.Name) })
	if len(steps) != len(core) {
		t.Fatalf("%d of %d steps exist", len(steps), len(core))
	}
	takeAll(t, newWorld(t, o), steps)
}

// TestTourWithWaterTUN asserts that packets move without kernel offloads, too.
func TestTourWithWaterTUN(t *testing.T) {
	o := scaled()
	o.TUNDriver, o.Clients, o.Transfer = "water", 1, 10e6
	require(t, newWorld(t, o), gatewayJoins, clientsAuthorized, pingAnswered, download, upload, echoWithoutLoss, gatewayLeaves)
}

// TestTourOverIPv6 asserts that a dual-stack deployment with stateful filters
// gives a direct path.
func TestTourOverIPv6(t *testing.T) {
	o := scaled()
	o.NAT, o.IPv4Only, o.Clients = labnet.PortRestricted, false, 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized, pathIsDirect, pingAnswered, relayWhenBlocked, directAgain)
}

// TestRevive asserts that a deployment is whole again after its tour.
func TestRevive(t *testing.T) {
	o := scaled()
	o.Clients = 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized, gatewayLeaves)
	if err := w.Revive(t.Context()); err != nil {
		t.Fatal(err)
	}
	require(t, w, pingAnswered)
}

// TestRemovedGatewayFailsItsSteps asserts that the steps can fail: without a
// gateway nothing that was promised holds.
func TestRemovedGatewayFailsItsSteps(t *testing.T) {
	o := scaled()
	o.Clients = 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized)
	if _, err := w.gateway.Stop(stopGrace); err != nil {
		t.Fatal(err)
	}
	wanted := []string{"ping", "download", "echo", "no-grant", "filters", "revoked", "expired", "rejoined", "relayed", "stopped"}
	var steps []Step
	for _, step := range Steps(o) {
		if slices.Contains(wanted, step.Name) {
			step.Needs = nil
			steps = append(steps, step)
		}
	}
	for _, r := range Run(t.Context(), w, steps, silent{}) {
		if r.OK || r.Skipped {
			t.Errorf("%s held without a gateway: %s", r.Name, r.Measured)
		}
	}
}

func takeAll(t *testing.T, w *World, steps []Step) {
	t.Helper()
	results := Run(t.Context(), w, steps, NewProgress(t.Output()))
	if len(results) != len(steps) || !Held(results) {
		t.Errorf("%d results for %d steps", len(results), len(steps))
	}
	for _, r := range results {
		t.Run(r.Name, func(t *testing.T) {
			if !r.OK {
				t.Errorf("%s: %s (measured: %s)", r.Promise, r.Error, r.Measured)
			}
		})
	}
}
