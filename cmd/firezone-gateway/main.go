// Command firezone-gateway connects the clients of a Firezone account to the
// resources next to it. See --help for its configuration and exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"firezone-gateway/internal/telemetry"
)

// version is set by the linker for releases.
var version = "0.1.0-dev"

// reportedVersion is what the portal sees: the one that clients 1.4, 1.5 and 1.6
// all accept (portal protocol §5.2).
const reportedVersion = "1.5.3"

// Exit codes, as --help documents them.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// errUsage is wrapped where a setting turns out to be wrong after parsing.
var errUsage = errors.New("wrong usage")

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	// The daemon's only argument is its token, which is never one of these words.
	if len(args) > 0 && commands[args[0]] != nil {
		return commands[args[0]](args[1:], stdout, stderr)
	}
	f, err := parse(args, stdout, stderr)
	var log *slog.Logger
	if err == nil {
		log, err = telemetry.NewLogger(stdout, telemetry.Format(f.LogFormat), f.LogDirectives)
		if err != nil {
			err = fmt.Errorf("--log-level: %w", err)
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "firezone-gateway: %v\nRun with --help for usage.\n", err)
		return exitUsage
	}

	ctx := untilSignalled()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	context.AfterFunc(ctx, func() { log.Info("ending, another signal ends at once") })
	h := hostOS()
	log.Info("starting", "version", version, "arch", runtime.GOARCH, "os", h.name, "os_version", h.version, "kernel", h.kernel, "uptime", h.uptime)
	d, err := prepare(ctx, f, log)
	if err != nil {
		return refuse(err, f, log, stderr)
	}
	code, err := d.serve(ctx, hangups)
	if err != nil {
		log.Error("stopped", "error", advise(err), "exit_code", code)
		return code
	}
	log.Info("goodbye")
	return code
}

// refuse reports why the gateway cannot start. People read that on stderr
// whatever the log is like; a log that machines read gets it too.
func refuse(err error, f *flags, log *slog.Logger, stderr io.Writer) int {
	code := exitFailure
	if errors.Is(err, errUsage) {
		code = exitUsage
	}
	err = advise(err)
	fmt.Fprintf(stderr, "firezone-gateway: %v\n", err)
	if telemetry.Format(f.LogFormat) == telemetry.FormatJSON {
		log.Error("cannot start", "error", err, "exit_code", code)
	}
	return code
}

// untilSignalled returns a context that ends with the first SIGINT or SIGTERM.
// The second one ends the process, whatever hangs.
func untilSignalled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	// Without this a reader of the log that goes away takes the gateway along.
	signal.Ignore(syscall.SIGPIPE)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitFailure)
	}()
	return ctx
}
