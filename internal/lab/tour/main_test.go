package tour

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

const (
	// builtVariable hands the daemon on to the process in a user namespace.
	builtVariable = "LAB_TOUR_TEST_BUILT"
	// childVariable makes the test binary play a daemon that does nothing.
	childVariable = "LAB_TOUR_TEST_CHILD"
)

var (
	daemon       string
	errIsolation error // why a World is impossible here, nil where it is not
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		idle()
		return
	}
	dir, err := built()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	daemon = filepath.Join(dir, "firezone-gateway")
	errIsolation = labnet.EnsureIsolated()
	if errIsolation == nil {
		errIsolation = labnet.CheckTUN()
	}
	waitTogether()
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// worlds is how many tests with a deployment run at the same time, where the
// command line does not say. Those that may do so wait most of the time, for
// timers of minutes.
const worlds = 8

func waitTogether() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(worlds)); err != nil {
			panic(err) // the flag exists
		}
	}
}

// built returns the directory with the daemon, which is built once: before the
// user namespace is entered, where no modules can be fetched.
func built() (string, error) {
	if dir := os.Getenv(builtVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "tour-test-")
	if err != nil {
		return "", err
	}
	var args []string
	if raceDetector {
		args = append(args, "-race")
	}
	_, err = gateway.Build(context.Background(), dir, args...)
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, os.Setenv(builtVariable, dir)
}

func idle() {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	fmt.Println("idle")
	<-terminated
}

// needNamespaces skips a test where namespaces are impossible, except in CI,
// where that is a failure.
func needNamespaces(t *testing.T) {
	t.Helper()
	if errIsolation == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(errIsolation)
	}
	t.Skip(errIsolation)
}

// scaled returns the options of the demonstration, smaller where the machine
// is slow or the time short.
func scaled() Options {
	o := Full(daemon)
	if testing.Short() || raceDetector {
		o.Transfer, o.RelayTransfer, o.EchoTime = 10e6, 2e6, 2*time.Second
	}
	if raceDetector {
		o.EchoRate, o.FirstPacket = 5e6, 0
	}
	return o
}

// newWorld builds a World that ends with the test.
func newWorld(t *testing.T, o Options) *World {
	t.Helper()
	needNamespaces(t)
	w, err := New(o)
	if errors.Is(err, labnet.ErrMount) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, line := range w.gateway.Tail(60) {
				t.Log(line)
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// require takes steps and ends the test when one does not hold.
func require(t *testing.T, w *World, steps ...func(context.Context, *World) (Measurement, error)) {
	t.Helper()
	for _, step := range steps {
		ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
		m, err := step(ctx, w)
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", m.Text, err)
		}
		t.Log(m.Text)
	}
}

// silent is an Observer that looks away.
type silent struct{}

func (silent) Started(Step)           {}
func (silent) Ended(Result, []string) {}
