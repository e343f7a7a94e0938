package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/alecthomas/kong"

	"firezone-gateway/actors"
	"firezone-gateway/internal/admin"
)

const faultDescription = `Let something go wrong in the gateway that runs on this host, to see how the rest of it bears that. It has to have been started with --enable-fault-injection.

  firezone-gateway fault crash --actor gateway/portal
  firezone-gateway fault crash --actor 'gateway/peers/*' --messages 3
  firezone-gateway fault hang  --actor gateway/tun --for 2s
  firezone-gateway fault delay --actor 'gateway/transport/**' --for 200ms --messages 50
  firezone-gateway fault drop  --actor 'gateway/peers/*/nat.*'

The faults:

  crash  the actor panics with the next message that it takes; with --messages
         so many times in a row, which may be more than its row of the
         supervision table bears (docs/architecture.md)
  hang   the actor does nothing for --for, or until it is found stuck and replaced,
         which takes 5 s to 6 s; --messages as for crash
  delay  each of the next --messages messages waits --for before it is handled
  drop   the next --messages messages from other actors are lost

A crash or hang comes behind the messages that wait already. Actors are named by their paths, which firezone-gateway status --all shows: * stands for one element or a part of one, ** at the end for everything below. Clients keep their connections in all of this, but for those whose peer is given up, and but for gateway itself, whose end is the end of the process. What happened is told by the log, status and watch, and counted there and in the metrics.

The paths of the actors that it happens to are printed, one a line. It has to run as the gateway's user or as root, and in a container inside of it.

Exit codes:

  0  the fault was brought about in at least one actor
  1  it was not: no actor matches, fault injection is off, no gateway there,
     not permitted, no answer in time
  2  wrong usage`

var errNoActor = errors.New("no actor matches, status --all shows their paths")

type faultFlags struct {
	controlFlags
	Fault    string     `arg:"" enum:"crash,hang,delay,drop" help:"What goes wrong: crash, hang, delay or drop."`
	Actor    string     `name:"actor" required:"" placeholder:"PATTERN" help:"Actors that it happens to, such as gateway/portal or 'gateway/peers/*'."`
	For      *humanSpan `name:"for" help:"How long a hang or a delay lasts (500ms, 2s)."`
	Messages int        `name:"messages" default:"1" help:"Messages that are delayed or dropped, or crashes and hangs in a row."`
}

// allowFaults lets ops bring about faults if the operator wants that.
func (d *daemon) allowFaults(ops *admin.Operations, tree *actors.Tree) {
	if !d.flags.FaultInjection {
		return
	}
	d.log.Warn("fault injection is on: whoever may use the control socket can let this gateway fail", "flag", admin.FaultFlag)
	ops.Inject = tree.Inject
}

// runFault is the process of the command fault: it returns the exit code.
func runFault(args []string, stdout, stderr io.Writer) int {
	f := &faultFlags{}
	fault, err := f.read(args, stdout, stderr)
	if err != nil {
		return misused(faultCommand, err, stderr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(f.Timeout))
	defer cancel()
	paths, err := admin.Inject(ctx, f.ControlSocket, fault)
	switch {
	case err != nil:
		return f.fail(f.advise(err), stdout, stderr)
	case f.JSON:
		err = json.NewEncoder(stdout).Encode(map[string][]string{"actors": paths})
	case len(paths) == 0:
		return f.fail(errNoActor, stdout, stderr)
	default:
		for _, p := range paths {
			_, err = fmt.Fprintln(stdout, clean(p))
		}
	}
	if err != nil || len(paths) == 0 {
		return exitFailure
	}
	return exitOK
}

func (f *faultFlags) read(args []string, stdout, stderr io.Writer) (admin.Fault, error) {
	parser := kong.Must(f, kong.Name("firezone-gateway "+faultCommand), kong.Description(faultDescription),
		kong.Writers(stdout, stderr), kong.Vars{"control_socket": defaultControlSocket})
	if err := parseArgs(parser, args); err != nil {
		return admin.Fault{}, err
	}
	if err := f.check(); err != nil {
		return admin.Fault{}, err
	}
	fault := admin.Fault{Actor: f.Actor, Fault: f.Fault, Messages: f.Messages}
	if f.For != nil {
		fault.For = time.Duration(*f.For)
	}
	if f.Messages < 1 {
		return admin.Fault{}, fmt.Errorf("--messages: %d is less than 1", f.Messages)
	}
	if err := fault.Validate(); err != nil {
		return admin.Fault{}, fmt.Errorf("--%w", err)
	}
	return fault, nil
}
