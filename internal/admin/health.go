// Package admin is how operators and supervisors look into a running gateway and
// steer it.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Server answers health checks over HTTP (dataplane §8.4).
type Server struct {
	http *http.Server
	done chan struct{}
}

// Serve listens on addr and answers GET /healthz with 200 while the process
// lives, and GET /readyz with 200 when missing returns nothing, else with 503;
// its body is {"ready":bool,"missing":[…]}. missing is called per request and
// may be called concurrently.
func Serve(addr string, missing func() []string) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("health endpoint: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, missing()) })
	s := &Server{
		http: &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		// Serve only returns when Close was called or the listener is broken;
		// neither is a reason to stop forwarding packets.
		_ = s.http.Serve(l)
	}()
	return s, nil
}

// Close stops answering and waits for requests in progress, a second at most.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	<-s.done
	return err
}

func ready(w http.ResponseWriter, missing []string) {
	w.Header().Set("Content-Type", "application/json")
	if len(missing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		missing = []string{}
	}
	body := struct {
		Ready   bool     `json:"ready"`
		Missing []string `json:"missing"`
	}{len(missing) == 0, missing}
	_ = json.NewEncoder(w).Encode(body) // a client that went away needs no answer
}
