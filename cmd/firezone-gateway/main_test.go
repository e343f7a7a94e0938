package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	labgateway "firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
)

const (
	patience   = 15 * time.Second
	testToken  = "t0ken-of-the-pr0cess-tests"
	testID     = "process-test"
	healthAddr = "127.0.0.1:8080"
	portalAddr = "127.0.0.1:8081"
	portalURL  = "ws://" + portalAddr

	// These make the test binary a launcher, see become.
	launchVariable  = "TEST_LAUNCH"
	programVariable = "TEST_PROGRAM"
)

// errIsolation is why namespaces are impossible here, nil where they work.
var errIsolation error

// binary builds the daemon once.
var binary func() (string, error)

func TestMain(m *testing.M) {
	if launcher, ok := launchers[os.Getenv(launchVariable)]; ok {
		fmt.Fprintln(os.Stderr, become(os.Getenv(programVariable), launcher))
		os.Exit(100)
	}
	errIsolation = labnet.EnsureIsolated()
	dir, err := os.MkdirTemp("", "firezone-gateway-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // for the test that runs it as nobody
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = sync.OnceValues(func() (string, error) { return labgateway.Build(context.Background(), dir) })
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// launchers take something away from the calling thread.
var launchers = map[string]func() error{
	"without TUN":       hideTUN,
	"without NET_ADMIN": dropNetAdmin,
}

// become runs program in place of this process, without what the launcher
// takes away. It returns only when that fails.
func become(program string, launcher func() error) error {
	runtime.LockOSThread()
	if err := launcher(); err != nil {
		return err
	}
	return syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}

// hideTUN covers /dev/net with an empty directory that cannot be written.
func hideTUN() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	return unix.Mount("none", "/dev/net", "tmpfs", unix.MS_RDONLY, "")
}

// dropNetAdmin makes root one without the capability, as in a container.
func dropNetAdmin() error {
	return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0)
}

// impossible skips a test, except in CI, where everything has to be possible.
func impossible(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// namespace is a network of its own: the daemon must never run in that of the
// machine.
func namespace(t *testing.T) *labnet.Namespace {
	t.Helper()
	if errIsolation != nil {
		impossible(t, errIsolation)
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

func requireTUN(t *testing.T) {
	t.Helper()
	if errIsolation != nil {
		impossible(t, errIsolation)
	}
	if err := labnet.CheckTUN(); err != nil {
		impossible(t, err)
	}
}

// variablesOf is the environment of a daemon in a process test. It keeps the
// daemon from touching the machine: its identity is given, kernel limits are
// not raised, and its socket is in a directory of the test.
type variablesOf map[string]string

func (v variablesOf) merged() []string {
	all := variablesOf{
		"FIREZONE_TOKEN": testToken, "FIREZONE_ID": testID, "FIREZONE_NAME": testID, "FIREZONE_API_URL": portalURL,
		"FIREZONE_NO_INC_BUF": "true", "HEALTH_CHECK_ADDR": healthAddr, "COLUMNS": "100",
	}
	maps.Copy(all, v)
	var env []string
	for name, value := range all {
		env = append(env, name+"="+value)
	}
	return env
}

// running is a daemon's process.
type running struct {
	*labnet.Process
	stdout, stderr *output
	control        string // path of the control socket
}

// launch is how to start a daemon; only env is common.
type launch struct {
	env  variablesOf
	args []string
	attr *syscall.SysProcAttr
	// launcher is the name of one of launchers.
	launcher string
	stdout   *os.File
	// control is the control socket; "" is one of its own.
	control string
}

func (l launch) start(t *testing.T, ns *labnet.Namespace) *running {
	t.Helper()
	r, err := l.try(t, ns)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (l launch) try(t *testing.T, ns *labnet.Namespace) (*running, error) {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, l.args...)
	r := &running{stdout: &output{}, stderr: &output{}, control: l.control}
	if r.control == "" {
		r.control = socketPath(t)
	}
	cmd.Env = append(l.env.merged(), "FIREZONE_CONTROL_SOCKET="+r.control)
	if l.launcher != "" {
		if cmd.Path, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, launchVariable+"="+l.launcher, programVariable+"="+program)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = l.attr
	cmd.Stdout, cmd.Stderr = r.stdout, r.stderr
	if l.stdout != nil {
		cmd.Stdout = l.stdout
	}
	r.Process, err = ns.StartProcess(cmd)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", r.stdout, r.stderr)
		}
	})
	return r, nil
}

// socketPath returns a path that nothing is at. t.TempDir would be too long for
// a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "gateway.sock")
}

// exits waits for the end and checks the exit code, and that the token is
// nowhere in what the process printed.
func (r *running) exits(t *testing.T, want int) {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(patience):
		t.Fatal("the process does not end")
	}
	if code := exitCode(r.Wait()); code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	if all := r.stdout.String() + r.stderr.String(); strings.Contains(all, testToken) {
		t.Error("the token is in the output")
	}
}

// terminates sends a signal and checks that the process ends with code 0.
func (r *running) terminates(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := r.Signal(sig); err != nil {
		t.Fatal(err)
	}
	r.exits(t, exitOK)
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// await waits until ok or the process has ended.
func (r *running) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-r.Done():
			t.Fatalf("the process ended before: %s", what)
		case <-deadline:
			t.Fatalf("did not happen: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// output is what a process has printed so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) has(text string) bool { return strings.Contains(o.String(), text) }

// site is a namespace with a portal on its loopback interface.
type site struct {
	*labnet.Namespace
	portal *portal.Server
}

func newSite(t *testing.T) *site {
	t.Helper()
	requireTUN(t)
	s := &site{Namespace: namespace(t)}
	var err error
	s.portal, err = portal.New(portal.Config{Listener: listen(t, s.Namespace, portalAddr), GatewayToken: testToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.portal.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// startJoined starts a daemon and waits until it has joined the portal.
func (s *site) startJoined(t *testing.T, l launch) *running {
	t.Helper()
	r := l.start(t, s.Namespace)
	r.awaitEvent(t, s.portal, portal.PeerJoined)
	return r
}

func (r *running) awaitEvent(t *testing.T, p *portal.Server, kind portal.EventKind) portal.Event {
	t.Helper()
	var found portal.Event
	r.await(t, string(kind), func() bool {
		i := slices.IndexFunc(p.Events(0), func(e portal.Event) bool { return e.Kind == kind })
		if i >= 0 {
			found = p.Events(0)[i]
		}
		return i >= 0
	})
	return found
}

// addRelay starts a relay on the loopback interface and tells the portal.
func (s *site) addRelay(t *testing.T) {
	t.Helper()
	secret := relay.NewSecret()
	server, err := relay.Start(relay.Options{
		Secret: secret, IPv4: loopback, ListenPacket: s.ListenPacket,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.portal.SetRelays([]portal.Relay{{StampSecret: secret, V4: server.Addrs()[0]}}); err != nil {
		t.Fatal(err)
	}
	s.portal.PushRelaysPresence()
}

// health asks the health endpoint from inside the namespace; 0 means no answer.
func health(t *testing.T, ns *labnet.Namespace, path string) (status int, body string) {
	t.Helper()
	return ask(t, ns, healthAddr, path)
}

// ask asks an endpoint from inside the namespace; 0 means no answer.
func ask(t *testing.T, ns *labnet.Namespace, addr, path string) (status int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}, Timeout: patience}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, ""
	}
	defer answer.Body.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(answer.Body); err != nil {
		return 0, ""
	}
	return answer.StatusCode, buf.String()
}

func listen(t *testing.T, ns *labnet.Namespace, address string) net.Listener {
	t.Helper()
	l, err := ns.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// silent accepts connections and says nothing on them. The channel gets one
// value for each, as far as it has room.
func silent(t *testing.T, ns *labnet.Namespace, address string) <-chan struct{} {
	t.Helper()
	l := listen(t, ns, address)
	accepted, done := make(chan struct{}, 16), make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			select {
			case accepted <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, conn := range conns {
			conn.Close()
		}
	})
	return accepted
}
