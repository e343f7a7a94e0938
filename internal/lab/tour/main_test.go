package tour

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"firezone-gateway/internal/lab/labtest"
	labnet "firezone-gateway/internal/lab/net"
)

// childVariable makes the test binary play a daemon that does nothing.
const childVariable = "LAB_TOUR_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		idle()
		return
	}
	waitTogether()
	var args []string
	if raceDetector {
		args = append(args, "-race")
	}
	labtest.Main(m, args...)
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

func idle() {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	fmt.Println("idle")
	<-terminated
}

// scaled returns the options of the demonstration, smaller where the machine
// is slow or the time short.
func scaled() Options {
	o := Full(labtest.Daemon())
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
	labtest.NeedNamespaces(t)
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
