package natmatrix

import (
	"context"
	"testing"

	labnet "firezone-gateway/internal/lab/net"

	"firezone-gateway/internal/lab/labtest"
)

// A cell of each sort. The whole matrix is for the command, because it takes
// minutes.
func TestCellsAreAsTheorySays(t *testing.T) {
	labtest.NeedNamespaces(t)
	o := Options{Gateway: labtest.Daemon(), Jobs: 2, Size: DefaultSize, Cells: []Cell{
		{labnet.FullCone, labnet.Symmetric, IPv4},
		{labnet.Symmetric, labnet.Symmetric, IPv4},
		{labnet.PortRestricted, labnet.Symmetric, IPv4},
		{labnet.UDPBlocked, labnet.PortRestricted, IPv4},
		{labnet.PortRestricted, labnet.DoubleNAT, IPv4},
		{labnet.PortRestricted, labnet.PortRestricted, IPv6},
	}}
	results := Run(t.Context(), o, func(r Result) { t.Log(r.Line()) })
	for _, r := range results {
		if !r.OK {
			t.Errorf("%v: %s", r.Cell, r.Error)
		}
	}
	if len(results) != len(o.Cells) {
		t.Errorf("%d results of %d cells", len(results), len(o.Cells))
	}
}

func TestACellThatCannotBeRunSaysWhy(t *testing.T) {
	labtest.NeedNamespaces(t)
	results := Run(t.Context(), Options{Gateway: "/nonexistent", Cells: Cells()[:1]}, func(Result) {})
	if len(results) != 1 || results[0].OK || results[0].Error == "" {
		t.Errorf("results are %+v", results)
	}
}

func TestNothingIsBegunAfterTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	results := Run(ctx, Options{Gateway: "/nonexistent", Cells: Cells()}, func(Result) {})
	if len(results) > len(Cells())/2 {
		t.Errorf("%d cells were begun", len(results))
	}
}
