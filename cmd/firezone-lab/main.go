// Command firezone-lab builds a whole Firezone deployment on one machine, in
// network namespaces, around the real gateway daemon: it shows what the gateway
// promises, measures it, and stands in for the portal of real clients.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"firezone-gateway/internal/lab/tour"
)

const (
	exitOK     = 0
	exitFailed = 1 // a promise did not hold, or the lab could not be built
	exitUsage  = 2
)

const description = `A Firezone deployment on one machine: portal, relay, NAT routers, clients and
private resources around the real gateway daemon, in network namespaces that
vanish with this process. Without root it enters a user namespace of its own.

Try these:

  firezone-lab                  show and measure what the gateway promises
  firezone-lab --keep           the same, and leave it up to look around
  firezone-lab --json | jq .ok  the same, for scripts
  firezone-lab bench            throughput against plain wireguard-go
  firezone-lab bench --relayed  throughput through a relay against direct
  firezone-lab bench --dns      throughput by a DNS resource against a CIDR resource
  firezone-lab scale            a thousand clients, and what each costs
  firezone-lab test nat         every pair of NATs, against theory
  firezone-lab chaos            parts of the gateway fail under traffic
  firezone-lab trace            one authorisation as a tree, out of a real Collector
  firezone-lab portal           a portal for real gateways and clients

Exit code: 0 when every promise held, 1 when one did not or the lab could not
be built, 2 for a wrong command line.`

type cli struct {
	Tour  tourCommand   `cmd:"" default:"withargs" help:"Take a tour: bring a deployment up, let a client use a private network through the gateway, print a table of what was promised and measured. The default."`
	Bench benchCommand  `cmd:"" help:"Measure one TCP stream through the gateway and through plain wireguard-go in its place, through a relay and directly, or by a DNS resource and by a CIDR resource."`
	Scale scaleCommand  `cmd:"" help:"Connect a thousand simulated clients and measure what each of them costs the gateway."`
	Test  testCommand   `cmd:"" name:"test" help:"Take the gateway through many deployments."`
	Chaos chaosCommand  `cmd:"" help:"Let parts of the gateway fail, one a second, under traffic, and hold that nobody notices."`
	Trace traceCommand  `cmd:"" help:"Draw one authorisation as it arrives at an OpenTelemetry Collector: every step with its duration, events and links."`
	Serve portalCommand `cmd:"" name:"portal" help:"Run the development portal alone, for real gateways, clients and relays."`
	Plain plainCommand  `cmd:"" name:"plain-wireguard" hidden:"" help:"The middle process of bench that the gateway is compared with."`

	JSON bool `name:"json" help:"Print the result as JSON on standard output; progress goes to standard error."`
}

// session is what commands share.
type session struct {
	ctx      context.Context
	stdin    io.Reader
	stdout   io.Writer
	stderr   io.Writer
	json     bool
	progress *tour.Progress
}

// errBroken says that promises did not hold, which has been printed already.
var errBroken = errors.New("not every promise held")

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	exited, code := false, exitOK
	parser, err := kong.New(&c,
		kong.Name("firezone-lab"), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { exited, code = true, n }),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "firezone-lab:", err)
		return exitFailed
	}
	command, err := parser.Parse(doubleDashes(args))
	if exited { // after --help
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "firezone-lab: %v\nTry firezone-lab --help.\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	s := &session{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, json: c.JSON, progress: tour.NewProgress(stdout)}
	if c.JSON {
		s.progress = tour.NewProgress(stderr)
	}
	err = command.Run(s)
	switch {
	case err == nil:
		return exitOK
	case !errors.Is(err, errBroken):
		fmt.Fprintln(stderr, "firezone-lab:", err)
	}
	return exitFailed
}

// print writes v as JSON, or calls text, as was asked for.
func (s *session) print(v any, text func(io.Writer) error) error {
	if !s.json {
		return text(s.stdout)
	}
	encoder := json.NewEncoder(s.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
