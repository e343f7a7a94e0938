// Package gateway runs the real daemon, cmd/firezone-gateway, as a process of
// its own inside a namespace of the lab: built from source where that is at
// hand, configured through the same environment as in the field.
package gateway

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

// Options configure a daemon.
type Options struct {
	Binary string // path of the executable
	Portal string // base URL, for example ws://203.0.113.2:8081
	Token  string
	ID     string
	Name   string

	Masquerade bool   // forwarding and source translation are the daemon's work
	TUNDriver  string // "auto" or "water"; "" is the daemon's default
	LogLevel   string // RUST_LOG; "" is info
	HealthAddr string // "" is 127.0.0.1:8080, seen from inside the namespace

	// Env holds further variables, in the form of os.Environ, which win over
	// those of the other options.
	Env []string
	// Files are what the daemon sees in the place of the system's files.
	Files []labnet.File

	// Log receives everything the daemon prints; nil keeps the last lines only.
	Log io.Writer
}

// Gateway is a running daemon.
type Gateway struct {
	process *labnet.Process
	output  *tail
	control string
}

// Start runs the daemon inside the namespace. It is killed when the namespace's
// lab is closed, if not stopped before.
func Start(ns *labnet.Namespace, o Options) (*Gateway, error) {
	// Namespaces of the network do not keep the daemons' sockets apart.
	dir, err := os.MkdirTemp("", "gateway-")
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g := &Gateway{output: &tail{next: o.Log}, control: filepath.Join(dir, "control.sock")}
	cmd := exec.Command(o.Binary)
	cmd.Env = environment(os.Environ(), o, g.control)
	cmd.Stdout, cmd.Stderr = g.output, g.output
	g.process, err = ns.StartProcess(cmd, o.Files...)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	go func() {
		<-g.process.Done()
		_ = os.RemoveAll(dir) // what is left of a temporary directory harms nobody
	}()
	return g, nil
}

// ControlSocket returns the path of the daemon's control socket, which is the
// daemon's own and goes with it.
func (g *Gateway) ControlSocket() string { return g.control }

// Signal sends a signal. A daemon that has ended answers os.ErrProcessDone.
func (g *Gateway) Signal(sig os.Signal) error { return g.process.Signal(sig) }

// PID returns the process id.
func (g *Gateway) PID() int { return g.process.PID() }

// Done returns a channel that is closed when the process has ended.
func (g *Gateway) Done() <-chan struct{} { return g.process.Done() }

// Running reports whether the process has not ended.
func (g *Gateway) Running() bool {
	select {
	case <-g.process.Done():
		return false
	default:
		return true
	}
}

// Usage returns what the running process has used so far.
func (g *Gateway) Usage() (labnet.Usage, error) { return g.process.Usage() }

// Tail returns at most the last n lines that the daemon printed, oldest first.
func (g *Gateway) Tail(n int) []string { return g.output.last(n) }

// ErrKilled says that the daemon outlived its grace period.
var ErrKilled = errors.New("gateway did not stop in time and was killed")

// Stop sends SIGTERM, waits at most grace for the end, and returns the exit
// code. A daemon that does not stop is killed. Stopping one that has ended
// returns its exit code.
func (g *Gateway) Stop(grace time.Duration) (code int, err error) {
	err = g.process.Stop(grace)
	exit, failed := errors.AsType[*exec.ExitError](err)
	if !failed {
		return 0, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return -1, ErrKilled
	}
	return exit.ExitCode(), nil
}

// environment returns base without the settings of some other gateway, and
// with those of o.
func environment(base []string, o Options, control string) []string {
	var env []string
	for _, entry := range base {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "FIREZONE_") && name != "RUST_LOG" && name != "HEALTH_CHECK_ADDR" {
			env = append(env, entry)
		}
	}
	level, health := o.LogLevel, o.HealthAddr
	if level == "" {
		level = "info"
	}
	if health == "" {
		health = "127.0.0.1:8080"
	}
	env = append(env,
		"FIREZONE_TOKEN="+o.Token, "FIREZONE_API_URL="+o.Portal, "FIREZONE_ID="+o.ID, "FIREZONE_NAME="+o.Name,
		"FIREZONE_CONTROL_SOCKET="+control, "FIREZONE_LOG_FORMAT=human", "RUST_LOG="+level, "HEALTH_CHECK_ADDR="+health)
	if o.Masquerade {
		env = append(env, "FIREZONE_MASQUERADE=true")
	}
	if o.TUNDriver != "" {
		env = append(env, "FIREZONE_TUN_DRIVER="+o.TUNDriver)
	}
	return append(env, o.Env...)
}
