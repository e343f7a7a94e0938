package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// manager stands for systemd: it listens on a NOTIFY_SOCKET.
type manager struct {
	path string

	mu   sync.Mutex
	told []string // guarded by mu
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify-") // t.TempDir would be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path: filepath.Join(dir, "notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.told = append(m.told, string(buf[:n]))
			m.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
		os.RemoveAll(dir)
	})
	return m
}

// heard returns what was told so far, but for what repeats.
func (m *manager) heard() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.told), func(s string) bool {
		return s == "WATCHDOG=1" || strings.HasPrefix(s, "EXTEND_TIMEOUT_USEC=")
	})
}

func (m *manager) times(what string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.told {
		if strings.HasPrefix(s, what) {
			n++
		}
	}
	return n
}

func TestTheServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	m := newManager(t)
	r := s.startJoined(t, launch{env: variablesOf{"NOTIFY_SOCKET": m.path, "WATCHDOG_USEC": "100000"}})
	r.await(t, "what is missing, and that it takes time", func() bool {
		return slices.Contains(m.heard(), "STATUS=Waiting for relay") && m.times("EXTEND_TIMEOUT_USEC=30000000") > 0
	})
	if m.times("READY=1") != 0 {
		t.Error("ready without a relay")
	}
	s.addRelay(t)
	r.await(t, "readiness and then the number of clients", func() bool {
		heard := m.heard()
		i := slices.Index(heard, "READY=1")
		return i >= 0 && slices.Contains(heard[i:], "STATUS=Ready, clients: 0")
	})
	beats := m.times("WATCHDOG=1")
	r.await(t, "signs of life", func() bool { return m.times("WATCHDOG=1") > beats+2 })

	before := monotonic()
	if err := r.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the end of the reset", func() bool { return m.times("READY=1") == 2 })
	heard := m.heard()
	i := slices.IndexFunc(heard, func(s string) bool { return strings.HasPrefix(s, "RELOADING=1\nMONOTONIC_USEC=") })
	if i < 0 || !slices.Contains(heard[i:], "READY=1") {
		t.Fatalf("heard %q", heard)
	}
	since, err := strconv.ParseInt(heard[i][len("RELOADING=1\nMONOTONIC_USEC="):], 10, 64)
	if at := time.Duration(since) * time.Microsecond; err != nil || at < before-time.Millisecond || at > monotonic() {
		t.Errorf("the reset began at %v, %v", at, err)
	}

	r.terminates(t, syscall.SIGTERM)
	heard = m.heard()
	i = slices.Index(heard, "STOPPING=1")
	if i < 0 || slices.Contains(heard[i:], "READY=1") || m.times("STOPPING=1") != 1 {
		t.Errorf("heard %q", heard)
	}
	if r.stdout.has("service manager") {
		t.Error("the log complains about the service manager")
	}
}

func TestTheServiceManagerHearsOfAnEndThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	m := newManager(t)
	r := launch{env: variablesOf{"NOTIFY_SOCKET": m.path, "FIREZONE_TOKEN": "another"}}.start(t, s.Namespace)
	r.exits(t, exitFailure)
	if heard := m.heard(); slices.Contains(heard, "READY=1") || !slices.Contains(heard, "STOPPING=1") {
		t.Errorf("heard %q", heard)
	}
}

func TestAServiceManagerThatIsGoneDoesNoHarm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.startJoined(t, launch{env: variablesOf{"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "rubbish"}})
	r.await(t, "a complaint", func() bool { return r.stdout.has("the service manager does not hear") })
	if !r.stdout.has("going on without watchdog") {
		t.Error("nothing is said about the watchdog")
	}
	r.terminates(t, syscall.SIGTERM)
}

// A gateway whose actors do not answer lets the watchdog run out.
func TestTheWatchdogHearsNothingOfAStuckGateway(t *testing.T) {
	listener := newManager(t)
	t.Setenv("NOTIFY_SOCKET", listener.path)
	var stuck atomic.Bool
	var log bytes.Buffer
	m := &serviceManager{
		log: slog.New(slog.NewTextHandler(&log, nil)), missing: func() []string { return nil }, clients: func() int { return 3 },
		alive: func(ctx context.Context) error {
			if !stuck.Load() {
				return nil
			}
			<-ctx.Done()
			return errors.New("gateway does not handle messages")
		},
		watchdog: 20 * time.Millisecond,
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.run(ctx, nil) }()
	beats := func(more int) {
		t.Helper()
		from := listener.times("WATCHDOG=1")
		for deadline := time.Now().Add(patience); listener.times("WATCHDOG=1") < from+more; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no sign of life")
			}
		}
	}
	beats(3)
	stuck.Store(true)
	time.Sleep(2 * m.watchdog) // one may be under way
	from := listener.times("WATCHDOG=1")
	time.Sleep(10 * m.watchdog)
	if n := listener.times("WATCHDOG=1"); n != from {
		t.Errorf("%d signs of life of a gateway that is stuck", n-from)
	}
	stuck.Store(false)
	beats(3)
	cancel()
	<-done
	if !slices.Contains(listener.heard(), "STATUS=Ready, clients: 3") || !strings.Contains(log.String(), "not alive") {
		t.Errorf("heard %q, log %s", listener.heard(), &log)
	}
}

func TestAResetBeforeReadinessIsNobodysBusiness(t *testing.T) {
	listener := newManager(t)
	t.Setenv("NOTIFY_SOCKET", listener.path)
	m := &serviceManager{log: slog.New(slog.DiscardHandler)}
	failed := errors.New("no")
	reset := m.reloading(func(context.Context, string) error { return failed })
	if err := reset(t.Context(), "SIGHUP"); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	if heard := listener.heard(); len(heard) != 0 {
		t.Errorf("heard %q", heard)
	}
	m.ready.Store(true)
	if err := reset(t.Context(), "SIGHUP"); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	for deadline := time.Now().Add(patience); listener.times("READY=1") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a reset that failed never ends")
		}
	}
}

// The end is told when it begins, and the watchdog goes on until it is over.
func TestTheEndIsToldWhenItBegins(t *testing.T) {
	listener := newManager(t)
	t.Setenv("NOTIFY_SOCKET", listener.path)
	var missing atomic.Pointer[[]string]
	missing.Store(&[]string{"portal"})
	m := &serviceManager{
		log: slog.New(slog.DiscardHandler), missing: func() []string { return *missing.Load() }, clients: func() int { return 0 },
		alive: func(context.Context) error { return nil }, watchdog: 20 * time.Millisecond,
	}
	ctx, cancel := context.WithCancel(t.Context())
	leaving, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); m.run(ctx, leaving) }()
	close(leaving)
	until := func(what string, n int) {
		t.Helper()
		for deadline := time.Now().Add(patience); listener.times(what) < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not told %d times", what, n)
			}
		}
	}
	until("STOPPING=1", 1)
	missing.Store(&[]string{})
	until("WATCHDOG=1", listener.times("WATCHDOG=1")+int(2*lookInterval/(m.watchdog/2)))
	cancel()
	<-done
	if listener.times("READY=1") != 0 || listener.times("STOPPING=1") != 1 {
		t.Errorf("heard %q", listener.heard())
	}
}
