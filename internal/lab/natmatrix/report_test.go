package natmatrix

import (
	"strings"
	"testing"

	labnet "firezone-gateway/internal/lab/net"
)

func TestTheMatrixIsPrinted(t *testing.T) {
	results := []Result{
		{Cell: Cell{labnet.FullCone, labnet.Symmetric, IPv4}, Observed: Direct, SetUp: 41.6, Settled: 700, OK: true, Bytes: 10e6, Rate: 2e8, Seconds: 2},
		{Cell: Cell{labnet.Symmetric, labnet.Symmetric, IPv4}, Theory: Relayed, Error: "no path\nlog", Seconds: 20},
		{Cell: Cell{labnet.Symmetric, labnet.FullCone, IPv4}, Observed: Relayed, SetUp: 20, Settled: 21, Error: "the way is relayed"},
		{Cell: Cell{labnet.NoNAT, labnet.NoNAT, IPv6}, OK: true},
	}
	var out strings.Builder
	if err := WriteMatrix(&out, results); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nipv4\n", "client \\ gateway  full-cone  symmetric\n", "full-cone         -          direct 42\n",
		"symmetric         ! relayed  ! no way\n", "\nipv6\n", "none              direct 0\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "dual-stack") {
		t.Error("a family that was not run is printed")
	}
	for i, want := range []string{
		"✓ full-cone:symmetric:ipv4: direct, set-up 42 ms, direct after 700 ms, 10 MB at 200 Mbit/s, intact (2.0 s)",
		"✗ symmetric:symmetric:ipv4: theory says relayed: no path (20.0 s)",
	} {
		if got := results[i].Line(); got != want {
			t.Errorf("line is %q, want %q", got, want)
		}
	}
	if Held(results) || !Held(results[:1]) {
		t.Error("what held is wrong")
	}
}
