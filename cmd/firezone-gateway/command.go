package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/alecthomas/kong"

	"firezone-gateway/internal/admin"
)

const (
	resetCommand         = "reset"
	defaultControlSocket = "/run/firezone/gateway.sock"
	noControlSocket      = "none"
)

const resetDescription = `Give the gateway that runs on this host a new WireGuard key.

Clients are told to go, UDP sockets are bound anew, and the gateway joins the portal again at once under its new key. Clients come back by themselves; what they do through the tunnel stands still meanwhile. Use it when the key may be known to somebody else, or when clients are stuck after a change of the host's network.

  firezone-gateway reset
  firezone-gateway reset --control-socket /run/firezone/second.sock --json

It has to run as the gateway's user or as root, and in a container inside of it (docker exec CONTAINER firezone-gateway reset). SIGHUP does the same and tells nobody but the log whether it worked. With --json, standard output is one object: {"reset":true,"seconds":0.2} or {"reset":false,"seconds":10,"error":"..."}.

Exit codes:

  0  the new key is in use
  1  it is not: no gateway there, not permitted, no answer in time
  2  wrong usage`

// resetFlags are the command line of the command reset.
type resetFlags struct {
	ControlSocket string    `name:"control-socket" env:"FIREZONE_CONTROL_SOCKET" default:"${control_socket}" help:"Control socket of the gateway, as the gateway itself was told."`
	JSON          bool      `name:"json" help:"Print the result as JSON."`
	Timeout       humanSpan `name:"timeout" default:"10s" help:"How long to wait (10s, 1m)."`
}

// runReset is the process of the command reset: it returns the exit code.
func runReset(args []string, stdout, stderr io.Writer) int {
	f, err := parseReset(args, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "firezone-gateway: %v\nRun with reset --help for usage.\n", err)
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(f.Timeout))
	defer cancel()
	began := time.Now()
	err = admin.Control{Path: f.ControlSocket}.Reset(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v: it may still happen, the gateway's log tells; --timeout waits longer", f.Timeout)
	}
	return f.report(stdout, stderr, time.Since(began), advise(err))
}

func parseReset(args []string, stdout, stderr io.Writer) (*resetFlags, error) {
	f := &resetFlags{}
	parser := kong.Must(f, kong.Name("firezone-gateway reset"), kong.Description(resetDescription), kong.Writers(stdout, stderr),
		kong.Vars{"control_socket": defaultControlSocket})
	if err := parseArgs(parser, args); err != nil {
		if unexpectedArgument(err) {
			err = errors.New("the command reset takes no argument")
		}
		return nil, err
	}
	if f.ControlSocket == noControlSocket {
		return nil, errors.New("--control-socket: a gateway with none takes no commands; send it SIGHUP instead")
	}
	return f, checkControlSocket(f.ControlSocket)
}

// report prints the result and returns the exit code.
func (f *resetFlags) report(stdout, stderr io.Writer, took time.Duration, err error) int {
	result := struct {
		Reset   bool    `json:"reset"`
		Seconds float64 `json:"seconds"`
		Error   string  `json:"error,omitempty"`
	}{Reset: err == nil, Seconds: took.Round(time.Millisecond).Seconds()}
	code := exitOK
	if err != nil {
		result.Error, code = err.Error(), exitFailure
	}
	switch {
	case f.JSON:
		_ = json.NewEncoder(stdout).Encode(result) // the exit code says it as well
	case err != nil:
		fmt.Fprintf(stderr, "firezone-gateway: %v\n", err)
	default:
		fmt.Fprintf(stdout, "The gateway uses a new key and joins the portal again (%.1f s). Clients connect by themselves.\n", took.Seconds())
	}
	return code
}

func checkControlSocket(path string) error {
	if err := admin.CheckControlPath(path); err != nil {
		return fmt.Errorf("--control-socket: %w, expected something like %s", err, defaultControlSocket)
	}
	return nil
}
