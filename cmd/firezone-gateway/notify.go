package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"firezone-gateway/actors"
)

const (
	// lookInterval is how often the service manager may hear something new.
	lookInterval = 500 * time.Millisecond
	// startExtension is how much longer the service manager waits for a gateway
	// that is not ready yet, each time it hears of it (sd_notify(3)).
	startExtension = 30 * time.Second
)

// serviceManager tells systemd, or whoever reads NOTIFY_SOCKET, how the gateway is.
type serviceManager struct {
	log      *slog.Logger
	missing  func() []string
	clients  func() int
	alive    func(context.Context) error
	watchdog time.Duration // to be heard from within this time, 0 for ever

	ready      atomic.Bool // READY was told
	stopping   atomic.Bool // STOPPING was told
	complained atomic.Bool
	status     string // told last; of run
}

// tellManager tells the service manager, if there is one, how the gateway is until
// the function returned is called. When ctx ends it hears that the gateway is ending.
func (d *daemon) tellManager(ctx context.Context, tree *actors.Tree) (m *serviceManager, stop func()) {
	m = &serviceManager{log: d.log, missing: d.plane.Missing, clients: tree.Clients, alive: tree.Pulse().Alive}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return m, func() {}
	}
	m.watchdog = watchdogTime(d.log)
	running, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.run(running, ctx.Done())
	}()
	return m, func() {
		cancel()
		<-done
	}
}

// run tells the service manager about readiness and life until ctx ends. After
// leaving has ended it tells that the gateway is stopping. A gateway whose actors do
// not answer keeps still, so that the watchdog ends it.
func (m *serviceManager) run(ctx context.Context, leaving <-chan struct{}) {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	var beat <-chan time.Time
	if m.watchdog > 0 {
		ticker := time.NewTicker(m.watchdog / 2)
		defer ticker.Stop()
		beat = ticker.C
	}
	m.look()
	for {
		select {
		case <-ctx.Done():
			m.stop()
			return
		case <-leaving:
			leaving = nil
			m.stop()
		case <-look.C:
			m.look()
		case <-beat:
			m.beat(ctx)
		}
	}
}

// look tells what has changed since the last time.
func (m *serviceManager) look() {
	if m.stopping.Load() {
		return
	}
	missing := m.missing()
	if len(missing) == 0 && m.ready.CompareAndSwap(false, true) {
		m.tell(systemd.SdNotifyReady)
	}
	if !m.ready.Load() {
		m.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", startExtension.Microseconds()))
	}
	text := "Waiting for " + strings.Join(missing, ", ")
	if len(missing) == 0 {
		text = fmt.Sprintf("Ready, clients: %d", m.clients())
	}
	m.describe(text)
}

func (m *serviceManager) beat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.watchdog/4)
	defer cancel()
	if err := m.alive(ctx); err != nil {
		m.log.Error("not alive, the service manager is not told otherwise", "error", err)
		return
	}
	m.tell(systemd.SdNotifyWatchdog)
}

func (m *serviceManager) stop() {
	if m.stopping.CompareAndSwap(false, true) {
		m.tell(systemd.SdNotifyStopping)
		m.describe("Ending")
	}
}

// reloading returns reset with the service manager told of its begin and end, for
// those that it asked for by SIGHUP. Before the gateway was ready first there is
// nothing to tell.
func (m *serviceManager) reloading(reset resetFunc) resetFunc {
	return func(ctx context.Context, cause string) error {
		if !m.ready.Load() {
			return reset(ctx, cause)
		}
		m.tell(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", systemd.SdNotifyReloading, monotonic().Microseconds()))
		err := reset(ctx, cause)
		if !m.stopping.Load() {
			m.tell(systemd.SdNotifyReady)
		}
		return err
	}
}

func (m *serviceManager) describe(text string) {
	if text != m.status {
		m.status = text
		m.tell("STATUS=" + text)
	}
}

func (m *serviceManager) tell(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil && m.complained.CompareAndSwap(false, true) {
		m.log.Warn("the service manager does not hear", "error", err)
	}
}

// watchdogTime returns how often the service manager wants to hear from this
// process, 0 if it does not.
func watchdogTime(log *slog.Logger) time.Duration {
	t, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("going on without watchdog", "error", err)
		return 0
	}
	return t
}

// monotonic is the clock that the service manager compares with.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // it exists on every Linux
	}
	return time.Duration(t.Nano())
}
