package main

import "firezone-gateway/internal/lab/traces"

type traceCommand struct {
	daemonFlags
	CollectorBin string `name:"collector-bin" placeholder:"PATH" help:"OpenTelemetry Collector to use, the lab's. Default: built from internal/lab/collector, a module of its own."`
}

// Help implements kong.HelpProvider.
func (traceCommand) Help() string {
	return `A client asks for a DNS resource and reaches it through the gateway; the actor
of that client crashes, the portal cuts the connection, and the client asks for
another resource. The gateway sends its traces by OTLP to a real OpenTelemetry
Collector, which passes them on to the lab. What is drawn has been through both:

  +0.0 ms     0.2 ms  portal pushed                   began, took, what it is
  +0.1 ms     0.1 ms  └─ peers FromPortal             a message, and what it caused
  +0.2 ms     0.5 ms     └─ peer Authorize client.id=…
  +0.5 ms    41.0 ms        └─ client connect         until the first packet
  +0.6 ms                      · candidates sent      an event
                               ✗ …                    an error
                               → … span … of trace …  a link to another trace

A name is the kind of actor and its message, such as "relay BindChannels". Not
messages are: the start of an actor, "actor restart", "client connect" with "ice
checks", "wireguard handshake" and "first packet", "relay channel" (from the
request until it is bound), and the connections to the portal.

The first build of the Collector fetches some hundred modules (about 1 GB on
disk with what is compiled) and takes minutes; later ones take seconds.

  firezone-lab trace                                       draw them
  firezone-lab trace --json | jq .authorization            for scripts
  firezone-lab trace --json | jq -r '.. | .name? // empty'  names of all spans

Exit code 1 when something is missing in the traces.`
}

// Run implements the command.
func (c *traceCommand) Run(s *session) error {
	collector, removeCollector, err := theCollector.find(s, c.CollectorBin)
	defer removeCollector()
	if err != nil {
		return err
	}
	binary, cleanup, err := c.prepare(s)
	defer cleanup()
	if err != nil {
		return err
	}
	report, err := traces.Run(s.ctx, traces.Options{
		Gateway: binary, Collector: collector, TUNDriver: c.TUNDriver, LogDir: c.LogDir, Progress: s.progress.Note,
	})
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

var theCollector = executable{
	flag: "--collector-bin", what: "the OpenTelemetry Collector (minutes the first time)", name: "collector", variable: "FIREZONE_LAB_COLLECTOR",
	build:    traces.Build,
	noSource: traces.ErrNoSource,
}
