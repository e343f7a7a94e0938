package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func TestHelpTeaches(t *testing.T) {
	t.Parallel()
	r := launch{args: []string{"--help"}}.start(t, namespace(t))
	r.exits(t, exitOK)
	help := strings.Join(strings.Fields(r.stdout.String()), " ")
	for _, name := range variables() {
		if name != "FIREZONE_REPORTED_VERSION" && !strings.Contains(help, name) {
			t.Errorf("help does not mention %s", name)
		}
	}
	fields := reflect.TypeFor[flags]()
	for i := range fields.NumField() {
		tag := fields.Field(i).Tag
		_, hidden := tag.Lookup("hidden")
		if name := tag.Get("name"); name != "" && !hidden && !strings.Contains(help, "--"+name) {
			t.Errorf("help does not mention --%s", name)
		}
	}
	for _, want := range []string{
		"Exit codes:", "0 ended by SIGINT or SIGTERM", "1 cannot work: no token", "2 wrong usage", "CAP_NET_ADMIN", "/dev/net/tun",
		"LoadCredential=FIREZONE_TOKEN:", "52625", "/healthz", "/readyz", "RUST_LOG", "firezone-gateway reset", "SIGHUP", `"wss://api.firezone.dev"`,
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
	if r.stderr.String() != "" {
		t.Errorf("stderr: %s", r.stderr)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	r := launch{args: []string{"--version"}, env: variablesOf{"FIREZONE_NO_INC_BUF": "broken"}}.start(t, namespace(t))
	r.exits(t, exitOK)
	form := regexp.MustCompile(`^firezone-gateway ` + regexp.QuoteMeta(version) + ` \(go1\.\S+, reports 1\.5\.3\)\n$`)
	if !form.MatchString(r.stdout.String()) || r.stderr.String() != "" {
		t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
	}
}

// TestRefusals is about everything found out before the host is touched. A
// reader of stderr learns it whatever the log is like, a reader of JSON too.
func TestRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "blank"), " \n")
	put(t, filepath.Join(dir, "binary"), "\x00\x01")
	for _, tc := range []struct {
		name string
		env  variablesOf
		args []string
		code int
		want []string
	}{
		{"no token", variablesOf{"FIREZONE_TOKEN": ""}, nil, 1, []string{"no token", "FIREZONE_TOKEN", "systemd credential"}},
		{"a token file that does not exist", variablesOf{"FIREZONE_TOKEN": "/nonexistent"}, nil, 1, []string{"names no file", "may read it"}},
		{"a blank token file", variablesOf{"FIREZONE_TOKEN": filepath.Join(dir, "blank")}, nil, 1, []string{"is empty"}},
		{"a token file of something else", variablesOf{"FIREZONE_TOKEN": filepath.Join(dir, "binary")}, nil, 1, []string{"token is empty or not printable"}},
		{"a bad URL", variablesOf{"FIREZONE_API_URL": "ftp://x"}, nil, 2, []string{"--api-url", "wss://api.firezone.dev", "--help"}},
		{"a port that does not exist", nil, []string{"--api-url", "wss://h:99999"}, 2, []string{"--api-url", "between 1 and 65535", "--help"}},
		{"port zero", variablesOf{"FIREZONE_API_URL": "wss://h:0"}, nil, 2, []string{"--api-url", "between 1 and 65535", "--help"}},
		{"a bad flag", nil, []string{"--bogus"}, 2, []string{"unknown flag --bogus", "--help"}},
		{"a token too many", nil, []string{"x", testToken}, 2, []string{"more than one argument", "--help"}},
		{"a bad log directive", variablesOf{"RUST_LOG": "portal=loud"}, nil, 2, []string{"--log-level", "portal=loud", "--help"}},
		{"a bad collector", variablesOf{"OTLP_GRPC_ENDPOINT": "ftp://x"}, nil, 2, []string{"wrong usage", "telemetry endpoint"}},
		{"a collector of another protocol", variablesOf{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, nil, 2, []string{"wrong usage", "OTEL_EXPORTER_OTLP_PROTOCOL"}},
	} {
		for _, format := range []string{"human", "json"} {
			t.Run(tc.name+" with "+format+" logs", func(t *testing.T) {
				t.Parallel()
				env := variablesOf{"FIREZONE_LOG_FORMAT": format, "RUST_LOG": "info"}
				for k, v := range tc.env {
					env[k] = v
				}
				r := launch{env: env, args: tc.args}.start(t, namespace(t))
				r.exits(t, tc.code)
				checkRefusal(t, r, format, tc.code, tc.want...)
			})
		}
	}
}

// checkRefusal checks what a process that did not start has printed.
func checkRefusal(t *testing.T, r *running, format string, code int, want ...string) {
	t.Helper()
	text := r.stderr.String()
	if !strings.HasPrefix(text, "firezone-gateway: ") || strings.Count(text, "\n") > 2 {
		t.Errorf("stderr %q is not one message", text)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("stderr %q does not say %q", text, w)
		}
	}
	if format != "json" || strings.Contains(text, "--help") {
		return // nothing is logged before the command line is understood
	}
	records := checkJSON(t, r.stdout.String())
	last := records[len(records)-1]
	if last["message"] != "cannot start" || last["level"] != "ERROR" || last["exit_code"] != float64(code) {
		t.Errorf("last record %v", last)
	}
	if reason, _ := last["error"].(string); !strings.Contains(text, reason) {
		t.Errorf("the log says %q and stderr %q", reason, text)
	}
}

// checkJSON parses a log line by line and returns at least one record.
func checkJSON(t *testing.T, text string) []map[string]any {
	t.Helper()
	var records []map[string]any
	for line := range strings.Lines(text) {
		record := map[string]any{}
		if err := json.Unmarshal([]byte(line), &record); err != nil || !strings.HasSuffix(line, "}\n") {
			t.Fatalf("line %q: %v", line, err)
		}
		for _, key := range []string{"timestamp", "level", "target", "message"} {
			if value, _ := record[key].(string); value == "" {
				t.Errorf("line %q has no %s", line, key)
			}
		}
		records = append(records, record)
	}
	if len(records) == 0 {
		t.Fatal("nothing was logged")
	}
	return records
}

func TestRefusesToRunWithoutNetAdmin(t *testing.T) {
	t.Parallel()
	t.Run("as root", func(t *testing.T) {
		t.Parallel()
		refusesWithoutNetAdmin(t, launch{launcher: "without NET_ADMIN"})
	})
	t.Run("as nobody", func(t *testing.T) {
		t.Parallel()
		nobody := launch{attr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}}
		r, err := nobody.try(t, namespace(t))
		if err != nil {
			impossible(t, fmt.Errorf("no other user than root, as in a user namespace: %w", err))
		}
		<-r.Done()
		refusesWithoutNetAdmin(t, nobody)
	})
}

func refusesWithoutNetAdmin(t *testing.T, l launch) {
	t.Helper()
	r := l.start(t, namespace(t))
	r.exits(t, exitFailure)
	checkRefusal(t, r, "human", exitFailure, "CAP_NET_ADMIN is missing", "AmbientCapabilities=CAP_NET_ADMIN", "--cap-add NET_ADMIN")

	// Unchecked, the kernel refuses the device.
	l.args = []string{"--no-check"}
	r = l.start(t, namespace(t))
	r.exits(t, exitFailure)
	checkRefusal(t, r, "human", exitFailure, "not permitted to use the TUN driver", "CAP_NET_ADMIN is needed")
}

func TestRefusesToRunWithoutTheTUNDriver(t *testing.T) {
	t.Parallel()
	requireTUN(t)
	r := launch{launcher: "without TUN"}.start(t, namespace(t))
	r.exits(t, exitFailure)
	checkRefusal(t, r, "human", exitFailure, "TUN driver is not available", "modprobe tun", "--device /dev/net/tun")
}
