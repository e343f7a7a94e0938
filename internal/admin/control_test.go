package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"firezone-gateway/internal/hammer"
)

// patience bounds the wait for something that has to happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketPath returns a path that is short enough wherever the tests run.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "gateway.sock")
}

// serve serves until the end of the test.
func serve(t *testing.T, path string, reset func(context.Context) error) *ControlServer {
	t.Helper()
	s, err := ServeControl(path, Operations{Reset: reset})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func succeed(context.Context) error { return nil }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// dialing returns a client that is not ours.
func dialing(path string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
	}}
}

func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("did not happen: %s", what)
		panic("unreachable")
	}
}

func TestReset(t *testing.T) {
	path := socketPath(t)
	var calls atomic.Int64
	fails := errors.New("out of keys")
	serve(t, path, func(context.Context) error {
		if calls.Add(1) == 2 {
			return fails
		}
		return nil
	})
	control := Control{Path: path}
	if err := control.Reset(within(t)); err != nil {
		t.Errorf("Reset = %v", err)
	}
	if err := control.Reset(within(t)); err == nil || err.Error() != fails.Error() {
		t.Errorf("Reset = %v, want %v", err, fails)
	}
	if err := control.Reset(within(t)); err != nil {
		t.Errorf("Reset after one that failed = %v", err)
	}
	if n := calls.Load(); n != 3 {
		t.Errorf("%d resets, want 3", n)
	}
}

// TestAnswers is about callers that are not our client.
func TestAnswers(t *testing.T) {
	path := socketPath(t)
	var calls atomic.Int64
	serve(t, path, func(context.Context) error { calls.Add(1); return nil })
	client := dialing(path)
	for _, tc := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"no body", "POST", "/reset", "", 200},
		{"an empty object", "POST", "/reset", " {}\n", 200},
		{"an unknown setting", "POST", "/reset", `{"key":"x"}`, 400},
		{"two objects", "POST", "/reset", `{}{}`, 400},
		{"half an object", "POST", "/reset", `{`, 400},
		{"no JSON", "POST", "/reset", `now`, 400},
		{"a large body", "POST", "/reset", strings.Repeat(" ", maxBody+1), 413},
		{"another method", "GET", "/reset", "", 405},
		{"another request", "POST", "/restart", "", 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := calls.Load()
			r, err := http.NewRequestWithContext(t.Context(), tc.method, "http://x"+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tc.want {
				t.Errorf("status %d %s, want %d", resp.StatusCode, text, tc.want)
			}
			var want int64
			switch tc.want {
			case 200:
				want = 1
				if string(text) != "{}\n" {
					t.Errorf("body %q", text)
				}
			case 400, 413:
				var why failure
				if err := json.Unmarshal(text, &why); err != nil || why.Error == "" {
					t.Errorf("body %q does not say why", text)
				}
			}
			if n := calls.Load() - before; n != want {
				t.Errorf("%d resets, want %d", n, want)
			}
		})
	}
}

func TestAClientThatGoesAwayCancels(t *testing.T) {
	path := socketPath(t)
	entered, cancelled := make(chan struct{}), make(chan struct{})
	serve(t, path, func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		close(cancelled)
		return ctx.Err()
	})
	ctx, goAway := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- Control{Path: path}.Reset(ctx) }()
	receive(t, entered, "the request arrives")
	goAway()
	receive(t, cancelled, "the request is cancelled")
	if err := receive(t, result, "the client returns"); !errors.Is(err, context.Canceled) {
		t.Errorf("Reset = %v, want %v", err, context.Canceled)
	}
}

// TestACallMayTakeLongerThanReading guards against a trap: a read deadline left
// in place ends the context of the request.
func TestACallMayTakeLongerThanReading(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, path, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(readLimit + readLimit/4):
			return nil
		}
	})
	client := dialing(path)
	var all sync.WaitGroup
	for _, body := range []string{"", "{}"} {
		all.Go(func() {
			resp, err := client.Post("http://x/reset", "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("with the body %q: %s", body, resp.Status)
			}
		})
	}
	all.Wait()
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	path := socketPath(t)
	entered := make(chan struct{})
	s, err := ServeControl(path, Operations{Reset: func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- Control{Path: path}.Reset(within(t)) }()
	receive(t, entered, "the request arrives")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := receive(t, result, "the client returns"); err == nil || err.Error() != errEnding.Error() {
		t.Errorf("Reset = %v, want %v", err, errEnding)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file: %v", err)
	}
}

func TestCloseDoesNotWaitForOneThatHangs(t *testing.T) {
	path := socketPath(t)
	entered, release, left := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s, err := ServeControl(path, Operations{Reset: func(context.Context) error {
		defer close(left)
		close(entered)
		<-release
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- Control{Path: path}.Reset(within(t)) }()
	receive(t, entered, "the request arrives")
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if err := receive(t, closed, "the server closes"); err != nil {
		t.Error(err)
	}
	if err := receive(t, result, "the client returns"); err == nil {
		t.Error("the client was told that it happened")
	}
	close(release)
	receive(t, left, "the operation ends")
}

func TestRequestsBeyondTheLimitAreRefused(t *testing.T) {
	path := socketPath(t)
	entered, release := make(chan struct{}), make(chan struct{})
	serve(t, path, func(ctx context.Context) error {
		entered <- struct{}{}
		<-release
		return nil
	})
	results := make(chan error, maxResets)
	for range maxResets {
		go func() { results <- Control{Path: path}.Reset(within(t)) }()
		receive(t, entered, "the request arrives")
	}
	if err := (Control{Path: path}).Reset(within(t)); err == nil || err.Error() != errBusy.Error() {
		t.Errorf("Reset = %v, want %v", err, errBusy)
	}
	close(release)
	for range maxResets {
		if err := receive(t, results, "a client returns"); err != nil {
			t.Errorf("Reset = %v", err)
		}
	}
	go func() { <-entered }()
	if err := (Control{Path: path}).Reset(within(t)); err != nil {
		t.Errorf("Reset when the others are done = %v", err)
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	path := socketPath(t)
	serve(t, path, succeed)
	var open []net.Conn
	for range maxConns {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	surplus, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer surplus.Close()
	surplus.SetReadDeadline(time.Now().Add(readLimit / 2))
	if _, err := surplus.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection too many reads %v, want %v", err, io.EOF)
	}
	open[0].Close()
	deadline := time.Now().Add(patience)
	for {
		if err = (Control{Path: path}).Reset(within(t)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Reset when there is room = %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestASilentConnectionIsClosed(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, path, succeed)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /reset HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("half a request: %v", err)
	}
}

func FuzzReset(f *testing.F) { fuzzReset(f) }

func TestHammerReset(t *testing.T) { hammer.Test(t, "FuzzReset", fuzzReset) }

func fuzzReset(f hammer.F) {
	for _, seed := range []string{"", "{}", "null", "{}x", "\v", `{"a":1}`, "[", strings.Repeat("[", maxBody), strings.Repeat(" ", maxBody+1)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		calls := 0
		o := Operations{Reset: func(context.Context) error { calls++; return nil }}
		w := &recorder{httptest.NewRecorder()}
		o.reset(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/reset", bytes.NewReader(body)))
		var object struct{}
		empty := len(bytes.Trim(body, " \t\r\n")) == 0 // JSON's white space, and no other
		accepted := len(body) <= maxBody && (empty || json.Unmarshal(body, &object) == nil && !bytes.Contains(body, []byte(":")))
		if accepted != (calls == 1) || accepted != (w.Code == http.StatusOK) {
			t.Errorf("%q: %d resets, status %d", body, calls, w.Code)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q: answer %q", body, w.Body)
		}
	})
}

// recorder is one that can be given a deadline.
type recorder struct{ *httptest.ResponseRecorder }

func (*recorder) SetReadDeadline(time.Time) error { return nil }
