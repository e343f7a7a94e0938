package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"firezone-gateway/internal/admin"
)

// command runs a command in this process.
func command(args ...string) (code int, stdout, stderr string) {
	var out, err output
	code = run(args, &out, &err)
	return code, out.String(), err.String()
}

func serveControl(t *testing.T, reset func(context.Context) error) (path string) {
	t.Helper()
	path = socketPath(t)
	s, err := admin.ServeControl(path, admin.Operations{Reset: reset})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestResetCommand(t *testing.T) {
	t.Setenv("FIREZONE_CONTROL_SOCKET", "")
	var calls atomic.Int64
	working := serveControl(t, func(context.Context) error { calls.Add(1); return nil })
	broken := serveControl(t, func(context.Context) error { return errors.New("out of keys") })
	hanging := serveControl(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	nobody := socketPath(t)
	for _, tc := range []struct {
		name string
		env  string
		args []string
		code int
		want []string // in the message
	}{
		{"the gateway does it", "", []string{"--control-socket", working}, 0, []string{"uses a new key"}},
		{"the socket is in the environment", working, nil, 0, []string{"uses a new key"}},
		{"the flag wins over the environment", nobody, []string{"--control-socket=" + working}, 0, []string{"uses a new key"}},
		{"the gateway cannot", "", []string{"--control-socket", broken}, 1, []string{"out of keys"}},
		{"the gateway does not answer", "", []string{"--control-socket", hanging, "--timeout=20ms"}, 1, []string{"no answer within 20ms", "may still happen", "--timeout"}},
		{"no gateway", "", []string{"--control-socket", nobody}, 1, []string{nobody, "is the gateway running?", "--control-socket", "FIREZONE_CONTROL_SOCKET"}},
		{"no socket wanted", "none", nil, 2, []string{"--control-socket", "SIGHUP", "reset --help"}},
		{"a relative socket", "", []string{"--control-socket", "x"}, 2, []string{"--control-socket", "/run/firezone/gateway.sock", "reset --help"}},
		{"a timeout without unit", "", []string{"--timeout", "5"}, 2, []string{"--timeout", "unit", "reset --help"}},
		{"an unknown flag", "", []string{"--force"}, 2, []string{"unknown flag --force", "reset --help"}},
		{"an argument too many", "", []string{"now"}, 2, []string{"takes no argument", "reset --help"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("FIREZONE_CONTROL_SOCKET", tc.env)
			args := append([]string{"reset"}, tc.args...)
			code, stdout, stderr := command(args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			said, silent := stdout, stderr
			if tc.code != 0 {
				said, silent = stderr, stdout
			}
			for _, want := range tc.want {
				if !strings.Contains(said, want) {
					t.Errorf("%q does not say %q", said, want)
				}
			}
			if silent != "" {
				t.Errorf("the other stream says %q", silent)
			}

			code, stdout, stderr = command(append(args, "--json")...)
			if code != tc.code {
				t.Errorf("with --json exit code %d, want %d", code, tc.code)
			}
			if tc.code == exitUsage {
				if stdout != "" || !strings.Contains(stderr, tc.want[0]) {
					t.Errorf("stdout %q, stderr %q", stdout, stderr)
				}
				return
			}
			result := resetResult(t, stdout)
			if result.Reset != (code == 0) || (result.Error == "") != (code == 0) || result.Seconds < 0 || stderr != "" {
				t.Errorf("%+v, stderr %q", result, stderr)
			}
			if code != 0 && !strings.Contains(result.Error, tc.want[0]) {
				t.Errorf("error %q does not say %q", result.Error, tc.want[0])
			}
		})
	}
	if n := calls.Load(); n != 6 {
		t.Errorf("%d resets, want 6", n)
	}
}

type result struct {
	Reset   bool    `json:"reset"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error"`
}

// resetResult parses the one line of the command's output.
func resetResult(t *testing.T, text string) (r result) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &r); err != nil || strings.Count(text, "\n") != 1 {
		t.Fatalf("%q is not one line of JSON: %v", text, err)
	}
	return r
}

func TestResetHelpTeaches(t *testing.T) {
	t.Parallel()
	r := launch{args: []string{"reset", "--help"}}.start(t, namespace(t))
	r.exits(t, exitOK)
	help := strings.Join(strings.Fields(r.stdout.String()), " ")
	for _, want := range []string{
		"Usage: firezone-gateway reset", "--control-socket", "$FIREZONE_CONTROL_SOCKET", "--json", "--timeout", "/run/firezone/gateway.sock",
		"SIGHUP", "as root", "Exit codes:", "0 the new key", "1 it is not", "2 wrong usage", `{"reset":true`,
	} {
		if !strings.Contains(help, want) {
			t.Errorf("help does not say %q", want)
		}
	}
	for line := range strings.Lines(r.stdout.String()) {
		if n := len(strings.TrimRight(line, "\n")); n > 100 {
			t.Errorf("line of %d columns in a terminal of 100: %s", n, line)
		}
	}
	if strings.Contains(help, "FIREZONE_TOKEN") {
		t.Error("this is the help of the daemon")
	}
}

func TestResetWithoutGateway(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	r := launch{args: []string{"reset"}}.start(t, ns)
	r.exits(t, exitFailure)
	checkRefusal(t, r, "human", exitFailure, r.control, "is the gateway running?", "--control-socket")
	if _, err := os.Stat(r.control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the command made a socket: %v", err)
	}
}
