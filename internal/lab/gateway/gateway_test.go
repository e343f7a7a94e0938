package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	labnet "firezone-gateway/internal/lab/net"
)

// childVariable makes the test binary play the daemon: it prints its settings
// and ends on SIGTERM with the code in the variable.
const childVariable = "LAB_GATEWAY_TEST_CHILD"

var errIsolation error

func TestMain(m *testing.M) {
	if behaviour := os.Getenv(childVariable); behaviour != "" {
		os.Exit(child(behaviour))
	}
	errIsolation = labnet.EnsureIsolated()
	goleak.VerifyTestMain(m)
}

func child(behaviour string) int {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	if behaviour == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	fmt.Println("portal", os.Getenv("FIREZONE_API_URL"))
	socket := os.Getenv("FIREZONE_CONTROL_SOCKET")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		fmt.Println(err)
	}
	fmt.Println("control", socket)
	if hosts, err := os.ReadFile("/etc/hosts"); err == nil {
		fmt.Printf("hosts %q\n", hosts)
	}
	fmt.Fprintln(os.Stderr, "ready")
	<-terminated
	var code int
	_, _ = fmt.Sscan(behaviour, &code)
	return code
}

func namespace(t *testing.T) *labnet.Namespace {
	t.Helper()
	if errIsolation != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(errIsolation)
		}
		t.Skip(errIsolation)
	}
	lab := labnet.New()
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	ns, err := lab.AddNamespace("gateway")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func start(t *testing.T, behaviour string, files ...labnet.File) *Gateway {
	t.Helper()
	ns := namespace(t)
	t.Setenv(childVariable, behaviour)
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	g, err := Start(ns, Options{Binary: executable, Portal: "ws://192.0.2.1:8081", Log: &log, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for !slices.Contains(g.Tail(10), "ready") {
		if time.Now().After(deadline) || !g.Running() {
			t.Fatalf("child is not ready: %q", g.Tail(10))
		}
		time.Sleep(time.Millisecond)
	}
	return g
}

func TestStopReturnsTheExitCode(t *testing.T) {
	for _, want := range []int{0, 7} {
		g := start(t, fmt.Sprint(want)+" ")
		if _, err := g.Usage(); err != nil {
			t.Errorf("usage: %v", err)
		}
		code, err := g.Stop(10 * time.Second)
		if code != want || err != nil {
			t.Errorf("Stop = %d, %v; want %d", code, err, want)
		}
		if g.Running() {
			t.Error("still running after Stop")
		}
		if tail := g.Tail(10); !slices.Contains(tail, "portal ws://192.0.2.1:8081") {
			t.Errorf("settings did not reach the process: %q", tail)
		}
	}
}

func TestEveryDaemonHasAControlSocketOfItsOwn(t *testing.T) {
	a, b := start(t, "0 "), start(t, "0 ")
	if a.ControlSocket() == b.ControlSocket() {
		t.Errorf("both have %s", a.ControlSocket())
	}
	if want := "control " + a.ControlSocket(); !slices.Contains(a.Tail(10), want) {
		t.Errorf("%q is missing in %q", want, a.Tail(10))
	}
	if err := a.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-a.Done()
	deadline := time.Now().Add(10 * time.Second)
	for ; ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Dir(a.ControlSocket())); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the directory of the socket outlives the daemon")
		}
	}
	if err := a.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to an ended daemon: %v", err)
	}
}

func TestDaemonSeesTheFilesItIsGiven(t *testing.T) {
	source := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(source, []byte("192.0.2.1 portal"), 0o644); err != nil {
		t.Fatal(err)
	}
	g := start(t, "0 ", labnet.File{Source: source, Target: "/etc/hosts"})
	if want := `hosts "192.0.2.1 portal"`; !slices.Contains(g.Tail(10), want) {
		t.Errorf("%s is missing in %q", want, g.Tail(10))
	}
}

func TestStopKillsAProcessThatIgnoresTheSignal(t *testing.T) {
	if _, err := start(t, "stubborn").Stop(50 * time.Millisecond); err != ErrKilled {
		t.Errorf("Stop = %v, want %v", err, ErrKilled)
	}
}

func TestStartFailsWithoutABinary(t *testing.T) {
	if _, err := Start(namespace(t), Options{Binary: "/nonexistent"}); err == nil {
		t.Error("no error")
	}
}

func TestEnvironmentReplacesForeignSettings(t *testing.T) {
	base := []string{"HOME=/root", "FIREZONE_TOKEN=other", "FIREZONE_FLOW_LOGS=true", "RUST_LOG=trace"}
	env := environment(base, Options{Token: "mine", Masquerade: true, TUNDriver: "water", Env: []string{"SSL_CERT_FILE=/ca.pem"}}, "/run/x.sock")
	for _, want := range []string{"SSL_CERT_FILE=/ca.pem", "FIREZONE_CONTROL_SOCKET=/run/x.sock", "HOME=/root", "FIREZONE_TOKEN=mine", "RUST_LOG=info", "FIREZONE_MASQUERADE=true", "FIREZONE_TUN_DRIVER=water", "HEALTH_CHECK_ADDR=127.0.0.1:8080"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %q", want, env)
		}
	}
	if joined := strings.Join(env, " "); strings.Contains(joined, "other") || strings.Contains(joined, "FLOW_LOGS") {
		t.Errorf("settings of another gateway are left in %q", env)
	}
}

func TestTailKeepsTheLastLines(t *testing.T) {
	var all bytes.Buffer
	tail := &tail{next: &all}
	for i := range 2 * linesKept {
		fmt.Fprintf(tail, "line %d\nhalf of ", i)
	}
	if got, want := tail.last(2), []string{fmt.Sprintf("half of line %d", 2*linesKept-1), "half of "}; !slices.Equal(got, want) {
		t.Errorf("last(2) = %q, want %q", got, want)
	}
	if n := len(tail.last(1 << 20)); n != linesKept+1 {
		t.Errorf("keeps %d lines", n)
	}
	if n := strings.Count(all.String(), "\n"); n != 2*linesKept {
		t.Errorf("passed on %d lines", n)
	}
}

func TestTailBoundsALineWithoutEnd(t *testing.T) {
	tail := &tail{}
	fmt.Fprint(tail, strings.Repeat("x", 3*maxLine+1))
	if got := tail.last(10); len(got) != 4 || len(got[0]) != maxLine || got[3] != "x" {
		t.Errorf("%d lines", len(got))
	}
}

func TestBuildNeedsTheSourceTree(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := Build(t.Context(), t.TempDir()); err != ErrNoSource {
		t.Errorf("Build = %v, want %v", err, ErrNoSource)
	}
}

func TestSourceTreeIsFoundFromBelow(t *testing.T) {
	root, err := sourceTree()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/cmd/" + command); err != nil {
		t.Error(err)
	}
}

func TestIsModule(t *testing.T) {
	for content, want := range map[string]bool{
		"module firezone-gateway\n\ngo 1.26\n":    true,
		"// c\nmodule   firezone-gateway // x\n":  true,
		"module firezone-gateway/tools\n":         false,
		"module example.com/firezone-gateway\n":   false,
		"require firezone-gateway v1.0.0 // no\n": false,
	} {
		if got := isModule(content); got != want {
			t.Errorf("isModule(%q) = %v", content, got)
		}
	}
}
