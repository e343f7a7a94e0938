package main

import (
	"net/netip"
	"os"

	"firezone-gateway/internal/lab/bench"
)

type benchCommand struct {
	daemonFlags
	Rounds  int     `name:"rounds" default:"5" help:"Rounds; each measures both ways in both directions."`
	Seconds float64 `name:"seconds" default:"4" help:"Duration of each direction of each round."`
}

// Help implements kong.HelpProvider.
func (benchCommand) Help() string {
	return `One TCP stream from a client to a resource and back, through the same network,
with the same client engine (golang.zx2c4.com/wireguard with its offloading TUN
device), alternating between the gateway and golang.zx2c4.com/wireguard itself
in its place. CPU time and peak resident memory are those of the process in the
middle. All of it shares this machine's processors, so compare the ratios, not
the rates of different machines.`
}

// Run implements the command.
func (c *benchCommand) Run(s *session) error {
	binary, cleanup, err := c.prepare(s)
	defer cleanup()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	report, err := bench.Run(s.ctx, bench.Options{
		Gateway: binary, TUNDriver: c.TUNDriver, LogDir: c.LogDir,
		Plain:  []string{self, "plain-wireguard"},
		Rounds: c.Rounds, Seconds: c.Seconds, Progress: s.progress.Note,
	})
	if err != nil {
		return err
	}
	s.progress.Note("")
	return s.print(report, report.Write)
}

type plainCommand struct {
	Name    string         `name:"name" required:"" help:"Name of the TUN device."`
	Address []netip.Prefix `name:"address" help:"Address of the TUN device, with its prefix length."`
	Route   []netip.Prefix `name:"route" help:"Prefix to route into the TUN device."`
}

// Run implements the command.
func (c *plainCommand) Run(s *session) error {
	plain := bench.Plain{Name: c.Name, Addresses: c.Address, Routes: c.Route}
	return plain.Run(s.ctx, s.stdin, s.stdout)
}
