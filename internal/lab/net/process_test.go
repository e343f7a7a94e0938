package labnet_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

// The arguments make the test binary play a process in a namespace, and a
// program that isolates itself.
const (
	childArgument    = "labnet-test-child"
	isolatedArgument = "labnet-test-isolated"
)

// Exit codes of the program that isolates itself.
const (
	exitImpossible = 40
	exitSignalled  = 42
)

// isolate prints how to enter a namespace of its own, then the first signal.
func isolate() int {
	if err := labnet.EnsureIsolated(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitImpossible
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	lab := labnet.New()
	defer lab.Close()
	ns, err := lab.AddNamespace("alone")
	if err != nil {
		return 1
	}
	fmt.Println(ns.EnterCommand())
	fmt.Println(<-signals)
	return exitSignalled
}

// child prints the names of its network devices and waits for the end of its
// input.
func child() int {
	devices, err := net.Interfaces()
	if err != nil {
		return 1
	}
	var names []string
	for _, device := range devices {
		names = append(names, device.Name)
	}
	fmt.Println(strings.Join(names, " "))
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return 7
	}
	return 0
}

func TestProcessSeesItsNamespaceOnly(t *testing.T) {
	ns := namespace(t)
	process, devices := startChild(t, ns)
	if devices != "lo" {
		t.Errorf("child sees devices %q, want lo alone", devices)
	}
	usage, err := process.Usage()
	if err != nil || usage.PeakRSS < 1<<20 || usage.PeakRSS > 1<<30 {
		t.Errorf("usage %+v, error %v", usage, err)
	}
	if err := process.Stop(arrival); exitSignal(err) != syscall.SIGTERM {
		t.Errorf("stopped process ends with %v", err)
	}
	if err := process.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to an ended process: %v", err)
	}
}

func TestClosingTheLabKillsItsProcesses(t *testing.T) {
	requireNamespaces(t)
	lab := labnet.New()
	ns, err := lab.AddNamespace("alone")
	if err != nil {
		t.Fatal(err)
	}
	process, _ := startChild(t, ns)
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-process.Done():
	default:
		t.Fatal("process outlives the lab")
	}
	if err := process.Wait(); exitSignal(err) != syscall.SIGKILL {
		t.Errorf("process ends with %v", err)
	}
	if _, err := ns.StartProcess(exec.Command(os.Args[0], childArgument)); err == nil {
		t.Error("closed namespace starts a process")
	}
}

func TestProcessOutlivesTheGoroutineThatStartedIt(t *testing.T) {
	ns := namespace(t)
	type result struct {
		process *labnet.Process
		devices string
	}
	started := make(chan result)
	go func() {
		process, devices := startChild(t, ns)
		started <- result{process, devices}
	}()
	r := <-started
	// Threads end when the functions do that were locked to them.
	for range 8 {
		if err := ns.Do(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.process.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("process is gone: %v", err)
	}
	_ = r.process.Stop(arrival)
}

func TestMissingExecutableIsAnError(t *testing.T) {
	ns := namespace(t)
	if _, err := ns.StartProcess(exec.Command("/nonexistent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestRunningAsAnOrdinaryUserMakesAUserNamespace(t *testing.T) {
	requireRoot(t)
	binary := publicCopy(t)
	cmd := exec.Command(binary, "-test.run=^(TestClientReachesTheInternetButNotThePrivateNetwork|TestProcessSeesItsNamespaceOnly|TestLoopbackIsUpOutsideTheLabToo|TestEnterCommandEntersTheNamespace|TestProcessSeesOtherFilesInThePlaceOfTheSystems)$", "-test.v")
	asNobody(cmd)
	output, err := cmd.CombinedOutput()
	if strings.Contains(string(output), "user namespaces") && os.Getenv("CI") != "true" {
		t.Skipf("the kernel refuses user namespaces: %s", output)
	}
	if err != nil || !strings.Contains(string(output), "--- PASS: TestClientReachesTheInternet") {
		t.Errorf("error %v\n%s", err, output)
	}
}

func TestIsolatedProcessPassesSignalsAndItsExitCode(t *testing.T) {
	requireRoot(t)
	cmd := exec.Command(publicCopy(t), isolatedArgument)
	asNobody(cmd)
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	if !lines.Scan() {
		err := cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitImpossible && os.Getenv("CI") != "true" {
			t.Skip("the kernel refuses user namespaces")
		}
		t.Fatalf("isolated process says nothing: %v", err)
	}
	enter := strings.Fields(lines.Text())
	if !strings.Contains(lines.Text(), "--user") {
		t.Errorf("command %q does not enter the user namespace", lines.Text())
	}
	if _, err := exec.LookPath(enter[0]); err == nil {
		shell := exec.Command(enter[0], append(enter[1:], "cat", "/proc/net/dev")...)
		asNobody(shell)
		devices, err := shell.CombinedOutput()
		if err != nil || !strings.Contains(string(devices), "lo:") || strings.Contains(string(devices), "eth") {
			t.Errorf("%s: error %v\n%s", lines.Text(), err, devices)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != syscall.SIGUSR1.String() {
		t.Errorf("isolated process got signal %q", lines.Text())
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitSignalled {
		t.Errorf("process ends with %v, want exit code %d", err, exitSignalled)
	}
}

func requireRoot(t *testing.T) {
	t.Helper()
	requireNamespaces(t)
	if os.Getuid() != 0 || os.Getenv("FIREZONE_LAB_ISOLATED") != "" {
		t.Skip("this very process is an ordinary user's already")
	}
}

func asNobody(cmd *exec.Cmd) {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// publicCopy returns a copy of the test binary that everybody may execute.
func publicCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "labnet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := dir + "/labnet.test"
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(binary, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return binary
}

func namespace(t *testing.T) *labnet.Namespace {
	t.Helper()
	requireNamespaces(t)
	lab := labnet.New()
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	ns, err := lab.AddNamespace("alone")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// startChild returns the running child and the devices it sees.
func startChild(t *testing.T, ns *labnet.Namespace, files ...labnet.File) (*labnet.Process, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], childArgument)
	input, output, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return nil, ""
	}
	t.Cleanup(func() { output.Close() })
	cmd.Stdin = input
	defer input.Close()
	stdout, stdoutWriter, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return nil, ""
	}
	defer stdout.Close()
	cmd.Stdout = stdoutWriter
	process, err := ns.StartProcess(cmd, files...)
	stdoutWriter.Close()
	if err != nil {
		t.Error(err)
		return nil, ""
	}
	_ = stdout.SetReadDeadline(time.Now().Add(arrival))
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Errorf("child says nothing: %v", err)
	}
	return process, strings.TrimSpace(line)
}

func exitSignal(err error) syscall.Signal {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.Sys().(syscall.WaitStatus).Signal()
	}
	return 0
}
