package main

import (
	"fmt"
	"io"
	"time"

	"firezone-gateway/internal/lab/natmatrix"
)

// testCommand groups what takes the gateway through many deployments.
type testCommand struct {
	NAT natCommand `cmd:"" name:"nat" help:"Connect a client and a gateway through every pair of NATs, and compare the way they find with theory."`
}

type natCommand struct {
	daemonFlags
	Only []string `name:"only" sep:"," placeholder:"CLIENT:GATEWAY:FAMILY" help:"Run these cells only. * stands for anything, and for what is left out at the end."`
	Jobs int      `name:"jobs" default:"2" help:"Cells that are run at the same time."`
	Size int64    `name:"size" default:"10000000" help:"Bytes that each cell downloads."`
}

// Help implements kong.HelpProvider.
func (natCommand) Help() string {
	return `Each cell of the matrix is a deployment of its own with the real daemon: a client
behind one kind of NAT, the gateway behind another, over IPv4, IPv6 or both. The
client asks for access, pings the resource, waits for the best way that theory
allows, and downloads a file, whose checksums must match at both ends. That the
file went directly, or through the relay, is held against the relay's counters.

Kinds of NAT, in the terms of RFC 4787 (mapping, filtering):

  none                no translation, no filter
  full-cone           endpoint-independent, endpoint-independent
  address-restricted  endpoint-independent, address-dependent
  port-restricted     endpoint-independent, address-and-port-dependent
  symmetric           address-and-port-dependent, both
  double-nat          port-restricted twice, home and carrier
  udp-blocked         port-restricted, and UDP to relays only

IPv6 is never translated, but filtered by the same rule. A table is printed for
each family: rows are NATs of the client, columns of the gateway, numbers the
milliseconds from the client's request to the answer to its first ping.

  firezone-lab test nat                               the whole matrix, some minutes
  firezone-lab test nat --only symmetric:symmetric    one pair, every family
  firezone-lab test nat --only '*:full-cone:ipv4'     one column
  firezone-lab test nat --json | jq '.cells[] | select(.ok | not)'

Exit code 1 when a cell contradicts theory.`
}

// natReport is the JSON form of a run.
type natReport struct {
	OK      bool               `json:"ok"`
	Seconds float64            `json:"seconds"`
	Wanted  int                `json:"wanted"` // cells asked for
	Cells   []natmatrix.Result `json:"cells"`  // cells run
}

// Run implements the command.
func (c *natCommand) Run(s *session) error {
	cells, err := natmatrix.Select(natmatrix.Cells(), c.Only...)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	if c.Size <= 0 {
		return fmt.Errorf("--size: %d bytes cannot be downloaded", c.Size)
	}
	binary, cleanup, err := c.prepare(s)
	defer cleanup()
	if err != nil {
		return err
	}
	begin := time.Now()
	s.progress.Note("running %d cells, %d at a time", len(cells), max(c.Jobs, 1))
	ended := 0
	results := natmatrix.Run(s.ctx, natmatrix.Options{
		Gateway: binary, TUNDriver: c.TUNDriver, LogDir: c.LogDir, Cells: cells, Jobs: c.Jobs, Size: c.Size,
	}, func(r natmatrix.Result) {
		ended++
		s.progress.Note("%*d/%d %s", len(fmt.Sprint(len(cells))), ended, len(cells), r.Line())
	})
	report := natReport{Seconds: time.Since(begin).Seconds(), Wanted: len(cells), Cells: results}
	report.OK = len(results) == len(cells) && natmatrix.Held(results)
	if err := s.print(report, report.write); err != nil {
		return err
	}
	if !report.OK {
		return errBroken
	}
	return nil
}

func (r natReport) write(w io.Writer) error {
	if err := natmatrix.WriteMatrix(w, r.Cells); err != nil {
		return err
	}
	held := 0
	for _, cell := range r.Cells {
		if cell.OK {
			held++
			continue
		}
		if _, err := fmt.Fprintf(w, "\n%v: theory says %v\n%s\n", cell.Cell, cell.Theory, cell.Error); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\n%d of %d cells are as theory says, %.1f s\n", held, r.Wanted, r.Seconds)
	return err
}
