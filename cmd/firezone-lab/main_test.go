package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"go.uber.org/goleak"

	"firezone-gateway/internal/lab/bench"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/tour"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		out  string // in either stream
	}{
		{"help teaches", []string{"--help"}, exitOK, "Try these:"},
		{"help of a command teaches", []string{"portal", "--help"}, exitOK, "/lab/grants"},
		{"help of the default command", []string{"tour", "--help"}, exitOK, "--keep"},
		{"help of bench tells of the relay", []string{"bench", "--help"}, exitOK, "firezone-lab bench --relayed"},
		{"help of bench tells of DNS resources", []string{"bench", "--help"}, exitOK, "firezone-lab bench --dns"},
		{"a run of two comparisons is a usage error", []string{"bench", "--relayed", "--dns"}, exitUsage, "--relayed and --dns"},
		{"an absent gateway of a DNS run is a failure", []string{"bench", "--dns", "--gateway-bin=/nonexistent"}, exitFailed, "--gateway-bin"},
		{"an absent gateway of a relayed run is a failure", []string{"bench", "--relayed", "--gateway-bin=/nonexistent"}, exitFailed, "--gateway-bin"},
		{"an unknown flag is a usage error", []string{"--foo"}, exitUsage, "unknown flag --foo"},
		{"an unknown command is a usage error", []string{"foo"}, exitUsage, "foo"},
		{"a wrong driver is a usage error", []string{"--tun-driver=x"}, exitUsage, "--tun-driver"},
		{"an absent gateway is a failure", []string{"--gateway-bin=/nonexistent"}, exitFailed, "--gateway-bin"},
		{"the plain process needs a name", []string{"plain-wireguard"}, exitUsage, "--name"},
		{"a portal on port 80 is a failure", []string{"portal", "--listen=127.0.0.1:80"}, exitFailed, "80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, err bytes.Buffer
			if code := run(c.args, strings.NewReader(""), &out, &err); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(out.String()+err.String(), c.out) {
				t.Errorf("%q is missing in\n%s%s", c.out, out.String(), err.String())
			}
			if strings.Contains(out.String(), "plain-wireguard") {
				t.Error("help shows what is hidden")
			}
		})
	}
}

func TestBenchIsShapedByItsFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want bench.Options
	}{
		{"against plain WireGuard", nil, bench.Options{Rounds: 5, Seconds: 4}},
		{"through a relay", []string{"--relayed"}, bench.Options{Rounds: 5, Seconds: 4, Relayed: true}},
		{"by a DNS resource", []string{"--dns"}, bench.Options{Rounds: 5, Seconds: 4, DNS: true}},
		{
			"everything", []string{"--relayed", "--rounds=2", "--seconds=0.5", "--tun-driver=auto", "--log-dir=logs"},
			bench.Options{Rounds: 2, Seconds: 0.5, Relayed: true, TUNDriver: "auto", LogDir: "logs"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var command cli
			parser, err := kong.New(&command)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(append([]string{"bench"}, c.args...)); err != nil {
				t.Fatal(err)
			}
			if got := command.Bench.options(); !reflect.DeepEqual(got, c.want) {
				t.Errorf("options are %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestBuildNeedsTheSourceTree(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv(theGateway.variable, "")
	var out, err bytes.Buffer
	if code := run(nil, strings.NewReader(""), &out, &err); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(err.String(), "--gateway-bin") {
		t.Errorf("no advice in %q", err.String())
	}
}

func TestPortalServesUntilInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, writer := io.Pipe()
	s := &session{ctx: ctx, stdout: writer, stderr: io.Discard, json: true}
	command := portalCommand{
		Listen: "127.0.0.1:0", Control: "127.0.0.1:0", ClientToken: "mine",
		Resource: []string{"10.0.0.0/8", "*.example.test"}, For: time.Hour,
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Run(s) }()

	var about standing
	if err := json.NewDecoder(reader).Decode(&about); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	defer writer.Close()
	if about.ClientToken != "mine" || about.GatewayToken == "" || about.GatewayToken == about.RelayToken || !strings.HasPrefix(about.URL, "ws://127.0.0.1:") {
		t.Errorf("portal is %+v", about)
	}
	response, err := http.Get(about.ControlURL + "/lab/state")
	if err != nil {
		t.Fatal(err)
	}
	var state portal.State
	err = json.NewDecoder(response.Body).Decode(&state)
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil || len(state.Resources) != 2 || len(state.Grants) != 2 {
		t.Errorf("state is %+v, %v", state, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStandingIsReadable(t *testing.T) {
	var out bytes.Buffer
	about := standing{URL: "ws://x", ControlURL: "http://y", GatewayToken: "g", ClientToken: "c", RelayToken: "r",
		Resources: []portal.Resource{{ID: "1", Address: "10.0.0.0/8", Type: portal.CIDR}}}
	if err := about.write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FIREZONE_API_URL=ws://x FIREZONE_TOKEN=g", "http://y/lab/state", "10.0.0.0/8 (cidr)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

func TestTypeOf(t *testing.T) {
	for address, want := range map[string]portal.ResourceType{
		"10.0.0.1": portal.CIDR, "10.0.0.0/8": portal.CIDR, "fd00::/64": portal.CIDR, "fd00::1": portal.CIDR,
		"example.test": portal.DNS, "*.example.test": portal.DNS,
	} {
		if got := typeOf(address); got != want {
			t.Errorf("typeOf(%q) = %q, want %q", address, got, want)
		}
	}
}

func TestSummaryCountsPromises(t *testing.T) {
	var out bytes.Buffer
	s := summary{Seconds: 12, Steps: []tour.Result{{Promise: "A", OK: true}, {Promise: "B", Error: "no"}}}
	if err := s.write(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "1 of 2 promises held, 12.0 s") {
		t.Errorf("summary is\n%s", out.String())
	}
}

func TestPrepareTakesWhatWasBuilt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "built")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(theGateway.variable, dir)
	t.Setenv("FIREZONE_LAB_ISOLATED", "1") // this test binary must not be run again
	binary, cleanup, err := daemonFlags{}.prepare(&session{})
	if want := filepath.Join(dir, "firezone-gateway"); err == nil && binary != want {
		t.Errorf("binary is %s, want %s", binary, want)
	}
	cleanup()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("what was built is left: %v", err)
	}
}
