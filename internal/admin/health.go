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

// Bounds of the health endpoint, which anybody may reach.
const (
	maxProbes  = 64 // connections at a time
	aliveLimit = 3 * time.Second
)

// Health is what a health endpoint tells.
type Health struct {
	// Alive returns an error when the gateway does nothing any more, at the latest
	// when ctx ends.
	Alive func(ctx context.Context) error
	// Missing names what keeps the gateway from serving clients.
	Missing func() []string
	// Metrics answers scrapes; nil if there are none here.
	Metrics http.Handler
}

// help says what each of the things that may be missing is, and what to look at.
var help = map[string]string{
	"portal": "the channel to the portal is not joined; the log names the cause after \"no portal\"",
	"tun":    "the TUN device is not there or has no addresses yet; they come from the portal",
	"relay":  "no relay has an allocation, and none has shown an address at which clients could reach this host; let UDP out to port 3478 and back",
}

// Server answers health checks over HTTP (dataplane §8.4), and scrapes.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Serve listens on addr and answers, to GET and HEAD,
//
//	/healthz  200 and {"alive":true}, or 503 and {"alive":false,"error":"…"}
//	          when h.Alive fails or takes longer than 3 s
//	/readyz   200 and {"ready":true,"missing":[]} when h.Missing names nothing, else
//	          503 and {"ready":false,"missing":["relay"],"help":{"relay":"…"}}
//	/metrics  what h.Metrics answers, 404 without
//
// The functions of h are called per request and may be called concurrently.
func Serve(addr string, h Health) (*Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /readyz", h.readyz)
	if h.Metrics != nil {
		mux.Handle("GET /metrics", h.Metrics)
	}
	s, err := listen(addr, mux)
	if err != nil {
		return nil, fmt.Errorf("health endpoint: %w", err)
	}
	return s, nil
}

// ServeMetrics listens on addr and answers GET /metrics by metrics.
func ServeMetrics(addr string, metrics http.Handler) (*Server, error) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	s, err := listen(addr, mux)
	if err != nil {
		return nil, fmt.Errorf("metrics endpoint: %w", err)
	}
	return s, nil
}

func listen(addr string, mux *http.ServeMux) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &Server{
		http: &http.Server{
			Handler: mux, ConnState: closeAbove(maxProbes),
			ReadTimeout: 5 * time.Second, WriteTimeout: aliveLimit + 5*time.Second, IdleTimeout: time.Minute,
			MaxHeaderBytes: 16 << 10,
		},
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

func (h Health) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), aliveLimit)
	defer cancel()
	var body struct {
		Alive bool   `json:"alive"`
		Error string `json:"error,omitempty"`
	}
	err := h.Alive(ctx)
	if body.Alive = err == nil; !body.Alive {
		body.Error = err.Error()
	}
	report(w, body.Alive, body)
}

func (h Health) readyz(w http.ResponseWriter, _ *http.Request) {
	var body struct {
		Ready   bool              `json:"ready"`
		Missing []string          `json:"missing"`
		Help    map[string]string `json:"help,omitempty"`
	}
	missing := h.Missing()
	body.Ready = len(missing) == 0
	body.Missing = append([]string{}, missing...)
	for _, m := range missing {
		if text, ok := help[m]; ok {
			if body.Help == nil {
				body.Help = map[string]string{}
			}
			body.Help[m] = text
		}
	}
	report(w, body.Ready, body)
}

func report(w http.ResponseWriter, well bool, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !well {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(body) // a client that went away needs no answer
}
