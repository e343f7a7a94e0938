package host

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWatchReportsEachResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startWatch(t, setOf(wired4))
		h.expect(time.Hour)
		for range 2 {
			h.change(func() { h.slept += 6 * time.Second })
			h.expect(3*time.Second, CauseResumed)
		}
		h.change(func() { h.slept += 4 * time.Second })
		h.expect(time.Hour)
		h.expectWarnings()
	})
}

func TestWatchReportsDefaultRoutesWhenTheyHaveSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startWatch(t, setOf(wired4))
		h.expect(time.Minute)

		h.setRoutes()
		h.sendMessage()
		h.expect(900 * time.Millisecond)
		h.setRoutes(wireless4)
		h.sendMessage()
		h.expect(900 * time.Millisecond)
		h.expect(100*time.Millisecond, CauseDefaultRoute)

		h.setRoutes()
		h.sendMessage()
		h.expect(time.Minute)
		h.setRoutes(wireless4)
		h.sendMessage()
		h.expect(time.Minute)
		h.expectWarnings()
	})
}

func TestWatchReportsInTheMidstOfChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startWatch(t, setOf(wired4))
		h.change(func() { h.routes = setOf(wireless4) })
		for range 19 {
			h.sendMessage()
			h.expect(500 * time.Millisecond)
		}
		h.sendMessage()
		h.expect(500*time.Millisecond, CauseDefaultRoute)
	})
}

func TestWatchDoesNotLookAtRoutesForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startWatch(t, setOf(wired4))
		h.expect(time.Minute)
		before := h.looks
		h.subscription.messages <- message(unix.RTM_NEWROUTE, []byte{unix.AF_INET, 24, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 1, 0, 0, 0, 0})
		h.expect(time.Hour)
		if h.looks != before {
			t.Errorf("%d looks at the routes without need", h.looks-before)
		}
	})
}

func TestWatchMissesNoChangeAroundASubscription(t *testing.T) {
	for _, tc := range []struct {
		name     string
		opening  func(h *fakeHost, n int) error // before the n-th subscription
		breaks   bool                           // the first subscription
		within   time.Duration
		warnings []string
	}{
		{
			name:    "before the first one",
			opening: func(h *fakeHost, _ int) error { h.setRoutes(wireless4); return nil },
			within:  time.Second,
		},
		{
			name: "after messages were lost",
			opening: func(h *fakeHost, n int) error {
				if n > 1 {
					h.setRoutes(wireless4)
				}
				return nil
			},
			breaks:   true,
			within:   6 * time.Second,
			warnings: []string{"subscription to changes of routes broke"},
		},
		{
			name: "while the kernel refuses it for a minute",
			opening: func(h *fakeHost, n int) error {
				h.setRoutes(wireless4)
				if n <= 12 {
					return unix.EPERM
				}
				return nil
			},
			within:   61 * time.Second,
			warnings: []string{"cannot subscribe to changes of routes"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, setOf(wired4))
				h.opening = func(n int) error {
					<-h.looked
					return tc.opening(h, n)
				}
				h.start()
				if tc.breaks {
					h.breakSubscription(unix.ENOBUFS)
				}
				h.expect(tc.within - time.Millisecond)
				h.expect(time.Millisecond, CauseDefaultRoute)
				h.expect(time.Hour)
				h.expectWarnings(tc.warnings...)
			})
		})
	}
}

func TestWatchTriesAgainWhereALookFails(t *testing.T) {
	for _, tc := range []struct {
		name     string
		err      error
		warnings []string
	}{
		{"because of an error", unix.ENOMEM, []string{"default routes cannot be listed"}},
		{"because routes changed meanwhile", netlink.ErrDumpInterrupted, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := startWatch(t, setOf(wired4))
				for _, hop := range []nextHop{wireless4, wired4} {
					h.expect(time.Minute)
					h.change(func() { h.routes, h.listErr = setOf(hop), tc.err })
					h.sendMessage()
					h.expect(time.Minute)
					h.change(func() { h.listErr = nil })
					h.expect(5*time.Second, CauseDefaultRoute)
					h.expectWarnings(tc.warnings...)
				}
			})
		})
	}
}

func TestWatchMeasuresAgainstTheFirstLookThatWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, setOf(wired4))
		h.listErr = unix.ENOMEM
		h.start()
		h.expect(time.Minute)
		h.change(func() { h.routes, h.listErr = setOf(wireless4), nil })
		h.expect(time.Minute)
		h.setRoutes(wired4)
		h.sendMessage()
		h.expect(time.Second, CauseDefaultRoute)
	})
}

func TestWatchGoesOnWhenTheClocksCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startWatch(t, setOf(wired4))
		h.change(func() { h.clockErr = unix.EPERM })
		h.expect(time.Minute)
		h.change(func() { h.clockErr, h.slept = nil, time.Hour })
		h.expect(3*time.Second, CauseResumed)
		h.expectWarnings("clocks cannot be read")
	})
}

func TestWatchCallsOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, setOf(wired4))
		h.busy = time.Minute
		h.start()
		h.expect(time.Second)
		h.change(func() { h.slept = time.Hour })
		h.expect(4*time.Second, CauseResumed)
		for _, routes := range []routeSet{setOf(), setOf(wireless4), setOf(modem4)} {
			h.change(func() { h.routes = routes })
			h.sendMessage()
			h.expect(5 * time.Second)
		}
		h.expect(time.Minute, CauseDefaultRoute)
		h.expect(time.Hour)
	})
}

func TestWatchEndsWithItsContext(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*fakeHost)
	}{
		{"while it waits", func(*fakeHost) {}},
		{"while it waits to subscribe again", func(h *fakeHost) { h.breakSubscription(unix.ENOBUFS) }},
		{"while a change settles", func(h *fakeHost) { h.setRoutes(wireless4); h.sendMessage() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := startWatch(t, setOf(wired4))
				h.expect(10 * time.Second)
				tc.prepare(h)
				synctest.Wait()
				h.stop()
				synctest.Wait()
				h.expectEnded()
				h.expect(time.Hour)
			})
		})
	}
}

func TestWatchReportsNothingAfterItsContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startWatch(t, setOf(wired4))
		h.expect(time.Second)
		// The context ends in the course of the look.
		h.change(func() { h.slept, h.reading = time.Hour, h.stop })
		h.expect(time.Hour)
		h.expectEnded()
	})
}

func TestWatchLeavesNothingBehindWhenACallPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, setOf(wired4))
		panicked := make(chan any)
		go func() {
			defer func() { panicked <- recover() }()
			Watch(t.Context(), Config{OnChange: func(c Cause) { panic(c) }, system: h.system()})
		}()
		h.expect(time.Second)
		h.change(func() { h.slept = time.Hour })
		if got := <-panicked; got != CauseResumed {
			t.Errorf("panic %v", got)
		}
		if h.open != 0 {
			t.Errorf("%d subscriptions are open", h.open)
		}
	})
}

// fakeHost is a host whose suspensions and routes a test decides.
type fakeHost struct {
	t       *testing.T
	booted  time.Time
	stop    context.CancelFunc
	ended   chan struct{}     // closed when Watch has returned
	busy    time.Duration     // that OnChange takes
	looked  chan struct{}     // closed by the first look at the routes
	opening func(n int) error // runs before the n-th subscription

	mu           sync.Mutex
	slept        time.Duration // guarded by mu, as is the rest
	clockErr     error
	reading      func()
	routes       routeSet
	listErr      error
	looks        int
	subscription *fakeSubscription
	opened       int
	open         int
	causes       []Cause
	log          bytes.Buffer
}

func newHost(t *testing.T, routes routeSet) *fakeHost {
	return &fakeHost{
		t: t, routes: routes, booted: time.Now().Add(-time.Hour), ended: make(chan struct{}),
		looked: make(chan struct{}), opening: func(int) error { return nil }, reading: func() {},
	}
}

func startWatch(t *testing.T, routes routeSet) *fakeHost {
	h := newHost(t, routes)
	h.start()
	return h
}

func (h *fakeHost) start() {
	var ctx context.Context
	ctx, h.stop = context.WithCancel(h.t.Context())
	var calls sync.Mutex
	cfg := Config{
		OnChange: func(c Cause) {
			if !calls.TryLock() {
				h.t.Error("two calls at a time")
				return
			}
			defer calls.Unlock()
			h.change(func() { h.causes = append(h.causes, c) })
			time.Sleep(h.busy)
		},
		Logger: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.log.Write(p)
		}), nil)),
		system: h.system(),
	}
	go func() {
		defer close(h.ended)
		Watch(ctx, cfg)
	}()
	synctest.Wait()
}

func (h *fakeHost) system() *system {
	return &system{
		readClocks: func() (clocks, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.reading()
			awake := time.Since(h.booted)
			return clocks{awake, awake + h.slept, awake}, h.clockErr
		},
		subscribe: func() (subscription, error) {
			h.opened++ // by one goroutine only
			if err := h.opening(h.opened); err != nil {
				return nil, err
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.open++
			h.subscription = &fakeSubscription{
				host: h, messages: make(chan syscall.NetlinkMessage, 1), broken: make(chan error, 1), closed: make(chan struct{}),
			}
			return h.subscription, nil
		},
		listDefaults: func() (routeSet, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.looks++; h.looks == 1 {
				close(h.looked)
			}
			return h.routes, h.listErr
		},
	}
}

func (h *fakeHost) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *fakeHost) setRoutes(hops ...nextHop) { h.change(func() { h.routes = setOf(hops...) }) }

// breakSubscription makes the open subscription fail.
func (h *fakeHost) breakSubscription(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subscription.broken <- err
}

// sendMessage tells the watch that something about links or routes changed.
func (h *fakeHost) sendMessage() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subscription.messages <- message(unix.RTM_NEWLINK, nil)
}

// expect lets time pass and checks what was reported meanwhile.
func (h *fakeHost) expect(d time.Duration, want ...Cause) {
	h.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.causes, want) {
		h.t.Fatalf("reported %q within %v, want %q", h.causes, d, want)
	}
	h.causes = nil
}

// expectWarnings checks that exactly these were logged since the last call, each
// once, by their beginnings.
func (h *fakeHost) expectWarnings(want ...string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	text := h.log.String()
	h.log.Reset()
	if n := strings.Count(text, "\n"); n != len(want) {
		h.t.Errorf("%d lines logged, want %d:\n%s", n, len(want), text)
	}
	for _, w := range want {
		if strings.Count(text, `level=WARN msg="`+w) != 1 {
			h.t.Errorf("%q is not a warning in\n%s", w, text)
		}
	}
}

// expectEnded checks that Watch has returned and closed what it opened.
func (h *fakeHost) expectEnded() {
	h.t.Helper()
	select {
	case <-h.ended:
	default:
		h.t.Error("Watch has not returned")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open != 0 {
		h.t.Errorf("%d subscriptions are open", h.open)
	}
}

type fakeSubscription struct {
	host     *fakeHost
	messages chan syscall.NetlinkMessage
	broken   chan error
	closed   chan struct{}
	isClosed bool // guarded by host.mu
}

func (s *fakeSubscription) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	select {
	case m := <-s.messages:
		return []syscall.NetlinkMessage{m}, nil, nil
	case err := <-s.broken:
		return nil, nil, err
	case <-s.closed:
		return nil, nil, errors.New("closed")
	}
}

func (s *fakeSubscription) Close() {
	s.host.mu.Lock()
	defer s.host.mu.Unlock()
	if !s.isClosed {
		s.isClosed = true
		s.host.open--
		close(s.closed)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
