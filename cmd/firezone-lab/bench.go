package main

import (
	"net/netip"
	"os"

	"firezone-gateway/internal/lab/bench"
)

type benchCommand struct {
	daemonFlags
	Rounds    int     `name:"rounds" default:"5" help:"Rounds; each measures both ways in both directions."`
	Seconds   float64 `name:"seconds" default:"4" help:"Duration of each direction of each round."`
	Relayed   bool    `name:"relayed" xor:"way" help:"Compare the gateway with itself: through a relay and directly."`
	DNS       bool    `name:"dns" xor:"way" help:"Compare the gateway with itself: by a DNS resource and by a CIDR resource."`
	Telemetry bool    `name:"telemetry" xor:"way" help:"Compare the gateway with itself: with all telemetry on and without."`
}

// Help implements kong.HelpProvider.
func (benchCommand) Help() string {
	return `One TCP stream from a client to a resource and back, through the same network,
with the same client engine (golang.zx2c4.com/wireguard with its offloading TUN
device), alternating between the gateway and golang.zx2c4.com/wireguard itself
in its place. CPU time and peak resident memory are those of the process in the
middle. All of it shares this machine's processors, so compare the ratios, not
the rates of different machines.

With --relayed the comparison is of the gateway with itself. A second client,
from which no packet gets to the gateway directly, uses a TURN relay as strict
as the real one; the first one goes directly. The relay's share of the work is
on the same processors, but not in the gateway's CPU time. "relay MB" is what the
relay forwarded in the stream's direction; the run fails if a relayed stream did
not go through it, or a direct one did.

With --dns it is of the gateway with itself, too. One client reaches the resource
by a domain, so that the gateway translates the addresses of every packet; the
other by its address. Both are on the same host, both go directly. The
difference is small: where other work is on the machine, take many short rounds
and the median of their ratios, or the gigabits per CPU second.

With --telemetry two gateways are compared, each in a network of its own. From
one come traces of everything and metrics every second over OTLP, and it is
scraped every second; from the other nothing. The run fails if any of that did
not arrive.

  firezone-lab bench                                  against wireguard-go
  firezone-lab bench --relayed                        what a relay costs
  firezone-lab bench --dns --rounds=30 --seconds=0.5  what DNS resources cost
  firezone-lab bench --telemetry --rounds=100 --seconds=0.25
  firezone-lab bench --relayed --json | jq .ratio_to_resource.medians`
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
	o := c.options()
	o.Gateway, o.Plain, o.Progress = binary, []string{self, "plain-wireguard"}, s.progress.Note
	report, err := bench.Run(s.ctx, o)
	if err != nil {
		return err
	}
	s.progress.Note("")
	return s.print(report, report.Write)
}

// options returns what the command line says of a run.
func (c *benchCommand) options() bench.Options {
	return bench.Options{TUNDriver: c.TUNDriver, LogDir: c.LogDir, Rounds: c.Rounds, Seconds: c.Seconds, Relayed: c.Relayed, DNS: c.DNS, Telemetry: c.Telemetry}
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
