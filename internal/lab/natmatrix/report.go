package natmatrix

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	labnet "firezone-gateway/internal/lab/net"
)

// WriteMatrix prints one table for each family: a row for each NAT of the
// client's, a column for each of the gateway's, and in each cell the way and the
// set-up time in milliseconds. A cell that contradicts theory is marked by "!".
func WriteMatrix(out io.Writer, results []Result) error {
	for f := range Family(len(familyNames)) {
		of := slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return r.Family != f })
		if len(of) == 0 {
			continue
		}
		if err := writeFamily(out, f, of); err != nil {
			return err
		}
	}
	return nil
}

func writeFamily(out io.Writer, f Family, results []Result) error {
	kinds := func(of func(Result) labnet.NATKind) []labnet.NATKind {
		return slices.DeleteFunc(labnet.NATKinds(), func(kind labnet.NATKind) bool {
			return !slices.ContainsFunc(results, func(r Result) bool { return of(r) == kind })
		})
	}
	clients := kinds(func(r Result) labnet.NATKind { return r.Client })
	gateways := kinds(func(r Result) labnet.NATKind { return r.Gateway })

	fmt.Fprintf(out, "\n%v\n", f)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := []string{"client \\ gateway"}
	for _, gateway := range gateways {
		row = append(row, gateway.String())
	}
	fmt.Fprintln(table, strings.Join(row, "\t"))
	for _, client := range clients {
		row := []string{client.String()}
		for _, gateway := range gateways {
			i := slices.IndexFunc(results, func(r Result) bool { return r.Client == client && r.Gateway == gateway })
			if i < 0 {
				row = append(row, "-")
				continue
			}
			row = append(row, results[i].short())
		}
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
}

// short returns a result in a few characters.
func (r Result) short() string {
	switch {
	case r.OK:
		return fmt.Sprintf("%v %.0f", r.Observed, r.SetUp)
	case r.SetUp == 0:
		return "! no way"
	default:
		return fmt.Sprintf("! %v", r.Observed)
	}
}

// Line returns a result as one line of progress.
func (r Result) Line() string {
	if !r.OK {
		reason, _, _ := strings.Cut(r.Error, "\n")
		return fmt.Sprintf("✗ %v: theory says %v: %s (%.1f s)", r.Cell, r.Theory, reason, r.Seconds)
	}
	later := ""
	if r.Settled-r.SetUp > 100 {
		later = fmt.Sprintf(", %v after %.0f ms", r.Observed, r.Settled)
	}
	return fmt.Sprintf("✓ %v: %v, set-up %.0f ms%s, %d MB at %.0f Mbit/s, intact (%.1f s)",
		r.Cell, r.Observed, r.SetUp, later, r.Bytes/1e6, r.Rate/1e6, r.Seconds)
}

func prefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
