package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// freeAddr returns an address of loopback on which nothing listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// well is the health of a gateway that lacks nothing.
func well() Health {
	return Health{Alive: func(context.Context) error { return nil }, Missing: func() []string { return nil }}
}

// serveHealth returns what asks the endpoint, which is closed with the test.
func serveHealth(t *testing.T, h Health) (ask func(method, path string) (*http.Response, string)) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	addr := freeAddr(t)
	s, err := Serve(addr, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, before)
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	return func(method, path string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
}

func TestHealth(t *testing.T) {
	var missing atomic.Pointer[[]string]
	h := well()
	h.Missing = func() []string { return *missing.Load() }
	ask := serveHealth(t, h)
	for _, tc := range []struct {
		name    string
		missing []string
		status  int
	}{
		{"nothing is missing", nil, 200},
		{"one thing is", []string{"relay"}, 503},
		{"all is", []string{"portal", "tun", "relay"}, 503},
		{"something that has no explanation", []string{"luck"}, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			missing.Store(&tc.missing)
			for _, method := range []string{"GET", "HEAD"} {
				resp, body := ask(method, "/readyz")
				if resp.StatusCode != tc.status || resp.Header.Get("Content-Type") != "application/json" {
					t.Errorf("%s: %d, %v", method, resp.StatusCode, resp.Header)
				}
				if method == "HEAD" {
					if body != "" {
						t.Errorf("HEAD has the body %q", body)
					}
					continue
				}
				var got struct {
					Ready   *bool
					Missing []string
					Help    map[string]string
				}
				if err := json.Unmarshal([]byte(body), &got); err != nil {
					t.Fatal(err)
				}
				if got.Ready == nil || *got.Ready != (tc.status == 200) || got.Missing == nil || fmt.Sprint(got.Missing) != fmt.Sprint(tc.missing) {
					t.Errorf("body %s", body)
				}
				for _, m := range tc.missing {
					if (len(got.Help[m]) > 20) != (m != "luck") {
						t.Errorf("the help for %s is %q", m, got.Help[m])
					}
				}
				if tc.status == 200 && body != `{"ready":true,"missing":[]}`+"\n" {
					t.Errorf("body %s", body)
				}
			}
		})
	}
}

func TestLiveness(t *testing.T) {
	var stuck atomic.Bool
	h := Health{
		Alive: func(context.Context) error {
			if stuck.Load() {
				return errors.New("gateway does not handle messages")
			}
			return nil
		},
		Missing: func() []string { return []string{"portal"} },
	}
	ask := serveHealth(t, h)
	if resp, body := ask("GET", "/healthz"); resp.StatusCode != 200 || body != `{"alive":true}`+"\n" {
		t.Errorf("alive though not ready: %d %s", resp.StatusCode, body)
	}
	if resp, _ := ask("HEAD", "/healthz"); resp.StatusCode != 200 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
	stuck.Store(true)
	if resp, body := ask("GET", "/healthz"); resp.StatusCode != 503 || body != `{"alive":false,"error":"gateway does not handle messages"}`+"\n" {
		t.Errorf("stuck: %d %s", resp.StatusCode, body)
	}
	if resp, _ := ask("HEAD", "/healthz"); resp.StatusCode != 503 {
		t.Errorf("stuck, HEAD: %d", resp.StatusCode)
	}
	if resp, _ := ask("POST", "/healthz"); resp.StatusCode != 405 {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

func TestLivenessIsDecidedInTime(t *testing.T) {
	h := well()
	h.Alive = func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	ask := serveHealth(t, h)
	began := time.Now()
	if resp, _ := ask("GET", "/healthz"); resp.StatusCode != 503 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if took := time.Since(began); took < aliveLimit || took > aliveLimit+10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestMetricsAreOnTheHealthEndpointIfTheyAreGiven(t *testing.T) {
	h := well()
	if resp, _ := serveHealth(t, h)("GET", "/metrics"); resp.StatusCode != 404 {
		t.Errorf("without metrics: %d", resp.StatusCode)
	}
	h.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") })
	ask := serveHealth(t, h)
	if resp, body := ask("GET", "/metrics"); resp.StatusCode != 200 || body != "up 1\n" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := ask("HEAD", "/metrics"); resp.StatusCode != 200 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
}

func TestMetricsOnAnEndpointOfTheirOwn(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	addr := freeAddr(t)
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") })
	s, err := ServeMetrics(addr, metrics)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]int{"/metrics": 200, "/healthz": 404} {
		resp, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	if _, err := ServeMetrics(addr, metrics); err == nil || !strings.Contains(err.Error(), "metrics endpoint") {
		t.Errorf("a taken address: %v", err)
	}
	if _, err := Serve(addr, well()); err == nil || !strings.Contains(err.Error(), "health endpoint") {
		t.Errorf("a taken address: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	addr := freeAddr(t)
	s, err := Serve(addr, well())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	closed := make(chan struct{}, 2*maxProbes)
	for range 2 * maxProbes {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		go func() {
			_, _ = c.Read(make([]byte, 1)) // ends with the connection
			closed <- struct{}{}
		}()
	}
	for range maxProbes {
		select {
		case <-closed:
		case <-time.After(4 * time.Second): // before the silent ones are timed out
			t.Fatal("more connections than wanted stay open")
		}
	}
}
