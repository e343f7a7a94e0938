package admin

import (
	"encoding/json"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestHealth(t *testing.T) {
	defer goleak.VerifyNone(t)
	var missing atomic.Pointer[[]string]
	missing.Store(&[]string{"portal"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s, err := Serve(addr, func() []string { return *missing.Load() })
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, map[string]any) {
		t.Helper()
		resp, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body map[string]any
		if resp.ContentLength != 0 {
			if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
				t.Fatal(err)
			}
		}
		return resp.StatusCode, body
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz = %d while something is missing, want 200", code)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || body["ready"] != false {
		t.Errorf("/readyz = %d %v, want 503 not ready", code, body)
	}
	missing.Store(&[]string{})
	if code, body := get("/readyz"); code != http.StatusOK || body["ready"] != true {
		t.Errorf("/readyz = %d %v, want 200 ready", code, body)
	}
	if _, err := Serve(addr, nil); err == nil {
		t.Error("a taken address was accepted")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
