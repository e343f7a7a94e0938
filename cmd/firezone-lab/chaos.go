package main

import (
	"fmt"
	"io"
	"time"

	"firezone-gateway/internal/lab/chaos"
)

type chaosCommand struct {
	daemonFlags
	Parts   []string      `name:"parts" sep:"," placeholder:"PART" help:"What to do: faults, hang, loop, give-up, kill. Default: all of it, or with --kind or --fault only faults."`
	Kinds   []string      `name:"kind" sep:"," placeholder:"KIND" help:"Actors that fail, each kind in a deployment of its own; random is any of them. Default: every kind, then random."`
	Fault   string        `name:"fault" placeholder:"FAULT" help:"How they fail: crash (the default), hang, delay or drop."`
	Seconds float64       `name:"seconds" default:"60" help:"How long actors of each kind fail, one a second."`
	Relayed bool          `name:"relayed" help:"Let the client reach the gateway through a TURN relay only."`
	Soak    time.Duration `name:"soak" placeholder:"DURATION" help:"Nothing but random crashes under load for this long (30m), with a look at memory and goroutines every 10 s."`
	Seed    uint64        `name:"seed" default:"1" help:"Of what is left to chance: the same actors fail in the same order again."`
	Traces  bool          `name:"traces" help:"Have the gateway export its traces as well, and look for every restart in them."`
	Level   string        `name:"log-level" placeholder:"LEVEL" help:"What the gateway logs. Default: info."`
}

// Help implements kong.HelpProvider.
func (chaosCommand) Help() string {
	return `Users must not notice that a part of the gateway fails. In each deployment a
client downloads and uploads over one TCP connection each, sends 1,000 datagrams
a second to an echo service, asks for names, sets domains up, opens connections
to a DNS resource, and is granted and refused a resource again and again, while
one actor a second is made to fail over the gateway's control socket. Then it is
held that

  - no TCP connection was reset, and the checksums of both ends are equal
  - at most 0.1 % of the datagrams did not come back within a second
  - nothing reached a resource that was revoked, or never granted
  - revocations, names, domains and new connections came through in time
  - each actor came back as often as it failed, by the account of the status, the
    metrics, and with --traces the traces

What a busy machine does is told from what the gateway does by a second stream of
datagrams that does not go through it: losses while that one stands still are
counted apart ("while the machine stood still").

Parts:

  faults   crashes of one kind of actor after the other, then of any at random
  hang     each kind once stops handling messages; the heartbeat replaces it
  loop     one client's actor crashes in a loop, beside 50 other clients
  give-up  actors that fail as soon as they are back: what each kind ends with
  kill     kill -9, and a restart as by a service manager: traffic within 3 s

  firezone-lab chaos                                 all, some 20 minutes
  firezone-lab chaos --kind tun --seconds 10         one kind
  firezone-lab chaos --kind random --fault delay     another fault
  firezone-lab chaos --parts give-up,kill            some parts
  firezone-lab chaos --soak 30m                      for long
  firezone-lab chaos --json | jq '.results[] | select(.ok | not)'

The kinds are those of firezone-gateway status: portal, tun, transport, relay,
peers, peer, nat, dns, dns_server, resolver.

Exit code 1 when a promise was broken.`
}

// chaosReport is the JSON form of a run.
type chaosReport struct {
	OK      bool           `json:"ok"`
	Seconds float64        `json:"seconds"`
	Seed    uint64         `json:"seed"`
	Results []chaos.Result `json:"results"`
}

// Validate implements kong's check of the command line.
func (c *chaosCommand) Validate() error { return chaos.Check(c.options(), c.Parts) }

func (c *chaosCommand) options() chaos.Options {
	o := chaos.Options{
		TUNDriver: c.TUNDriver, LogDir: c.LogDir, LogLevel: c.Level, Traces: c.Traces, Relayed: c.Relayed,
		Kinds: c.Kinds, Fault: c.Fault, Duration: time.Duration(c.Seconds * float64(time.Second)), Seed: c.Seed,
	}
	if c.Soak > 0 {
		o.Duration = c.Soak
	}
	return o
}

// parts returns what the command line asks for.
func (c *chaosCommand) parts() []string {
	switch {
	case len(c.Parts) > 0:
		return c.Parts
	case len(c.Kinds) > 0 || c.Fault != "":
		return []string{"faults"}
	default:
		return chaos.Parts
	}
}

// Run implements the command.
func (c *chaosCommand) Run(s *session) error {
	binary, cleanup, err := c.prepare(s)
	defer cleanup()
	if err != nil {
		return err
	}
	o := c.options()
	o.Gateway, o.Progress = binary, s.progress.Note
	begin := time.Now()
	report := chaosReport{Seed: c.Seed}
	ended := func(r chaos.Result) {
		s.progress.Note("%s", r.Line())
		if !r.OK {
			for _, line := range r.Log {
				s.progress.Note("      %s", line)
			}
		}
	}
	if c.Soak > 0 {
		r := chaos.Soak(s.ctx, o)
		ended(r)
		report.Results = []chaos.Result{r}
	} else if report.Results, err = chaos.Run(s.ctx, o, c.parts(), ended); err != nil {
		return err
	}
	report.Seconds = time.Since(begin).Seconds()
	report.OK = chaos.Held(report.Results) && s.ctx.Err() == nil
	if err := s.print(report, report.write); err != nil {
		return err
	}
	if !report.OK {
		return errBroken
	}
	return nil
}

func (r chaosReport) write(w io.Writer) error {
	held := 0
	for _, result := range r.Results {
		if result.OK {
			held++
		}
	}
	_, err := fmt.Fprintf(w, "\n%d of %d parts held, %.1f s\n", held, len(r.Results), r.Seconds)
	return err
}
