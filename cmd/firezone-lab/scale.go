package main

import (
	"slices"
	"time"

	"firezone-gateway/internal/lab/scale"
)

type scaleCommand struct {
	daemonFlags
	Clients int           `name:"clients" default:"1000" help:"Clients that are connected at the same time."`
	Latency int           `name:"latency" default:"0" help:"Clients that are connected one after the other before, for latencies without a crowd. Each leaves with a goodbye."`
	Relayed bool          `name:"relayed" help:"Let clients reach the gateway through a TURN relay only."`
	Idle    time.Duration `name:"idle" default:"30s" help:"How long the processor time of idle clients is measured."`

	MaxConnect time.Duration `name:"max-connect" default:"20s" help:"Target: until all clients are connected. 0 for none."`
	MaxHeap    int64         `name:"max-heap" default:"64" help:"Target: KiB of live heap in the gateway for each idle client. 0 for none."`
	MaxCPU     float64       `name:"max-cpu" default:"5" help:"Target: percent of one processor for all idle clients together. 0 for none."`
}

// Help implements kong.HelpProvider.
func (scaleCommand) Help() string {
	return `Simulated clients in this process, real ones on the wire: each logs in to the
portal, asks for access, makes connectivity checks as a Firezone client does, a
WireGuard handshake and one echo request to a resource behind the gateway.
Connected means that the answer has come back through the tunnel. Then they are
idle, as a laptop at rest is, and are all asked for another echo at the end.

What is measured is the gateway, a process of its own: its processor time
(/proc), its live heap and stacks (GODEBUG=gctrace=1, after collections), its
resident memory, and its goroutines (SIGQUIT, which ends it). Portal, relay and
clients share this machine's processors with it, which lengthens the set-up. A
latency begins when the portal queues the authorization for the gateway and ends
with the first inner answer.

  firezone-lab scale --clients 1000                 a crowd
  firezone-lab scale --clients 100 --latency 200    and 200 one after the other
  firezone-lab scale --relayed --latency 200        the same through a relay
  firezone-lab scale --json | jq .targets           for scripts

Exit code 1 when a target was missed.`
}

// Run implements the command.
func (c *scaleCommand) Run(s *session) error {
	binary, cleanup, err := c.prepare(s)
	defer cleanup()
	if err != nil {
		return err
	}
	options := c.options()
	options.Gateway, options.Progress = binary, s.progress.Note
	report, err := scale.Run(s.ctx, options)
	if err != nil {
		return err
	}
	s.progress.Note("")
	if err := s.print(report, report.Write); err != nil {
		return err
	}
	if !report.OK {
		return errBroken
	}
	return nil
}

// options returns what the flags ask for.
func (c *scaleCommand) options() scale.Options {
	return scale.Options{
		TUNDriver: c.TUNDriver, LogDir: c.LogDir,
		Clients: c.Clients, Latency: c.Latency, Relayed: c.Relayed, Idle: c.Idle,
		Targets: scale.Targets{Connect: c.MaxConnect, Heap: c.MaxHeap << 10, Load: c.MaxCPU / 100},
	}
}

// doubleDashes lets the flags of scale be written with one dash, as those of Go
// programs often are.
func doubleDashes(args []string) []string {
	if len(args) == 0 || args[0] != "scale" {
		return args
	}
	out := slices.Clone(args)
	for i, a := range out {
		if len(a) > 2 && a[0] == '-' && a[1] >= 'a' && a[1] <= 'z' {
			out[i] = "-" + a
		}
	}
	return out
}
