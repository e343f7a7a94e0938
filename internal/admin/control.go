package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// Bounds of the control channel. Only the gateway's own user and root get this
// far, so they guard against mistakes, not attacks.
const (
	maxConns    = 16
	maxResets   = 4 // at a time
	maxLooks    = 4 // of each kind at a time
	maxFaults   = 4 // at a time
	maxBody     = 4 << 10
	readLimit   = 5 * time.Second // for the header, and again for the body
	resetLimit  = 30 * time.Second
	lookLimit   = 5 * time.Second
	answerLimit = 5 * time.Second
)

var (
	errEnding  = errors.New("the gateway is ending")
	errTooLong = fmt.Errorf("not done within %v, it may still happen", resetLimit)
	errBusy    = errors.New("too many requests of this kind at a time")
	errLate    = fmt.Errorf("not found out within %v", lookLimit)
)

// Operations are what a gateway does at the word of its operator. They are
// called concurrently, with a context that ends when the one who asked goes away
// or the server closes. Of those that are nil the server knows nothing.
type Operations struct {
	// Reset gives the gateway a new key pair and returns when that is in use.
	Reset func(ctx context.Context) error
	// Status describes the gateway.
	Status func(ctx context.Context) (Status, error)
	// Explain answers a valid question. That the packet would not pass is no error.
	Explain func(ctx context.Context, q Question) (Explanation, error)
	// Inject has something go wrong, and returns the actors that it happens to. It
	// fails on patterns that make no sense.
	Inject func(f Fault) ([]string, error)
}

// ControlServer takes orders over HTTP on a Unix socket.
type ControlServer struct {
	http   *http.Server
	socket *socket
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// ServeControl listens on the Unix socket path, see CheckControlPath, which only
// this user and root can use, and answers POST /reset by ops.Reset: with 200 and
// {} when it was done, else with another status and {"error":"…"}. GET /status
// is answered with a Status, and GET /explain?client=…&to=… with an Explanation;
// the client and the destination are written as in Question and
// ParseDestination. POST /fault with {"actor":"gateway/peers/*","fault":"delay",
// "for":"1s","messages":3} is answered with {"actors":[…]}, or without ops.Inject
// with 404 and the flag that is missing.
//
// A missing directory is made. A socket that a dead process left behind is
// replaced; one on which a process answers is left to it and the error is
// ErrTaken.
func ServeControl(path string, ops Operations) (*ControlServer, error) {
	l, err := listenSocket(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := ops.mux()
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &ControlServer{
		http: &http.Server{
			Handler:     mux,
			BaseContext: func(net.Listener) context.Context { return ctx },
			ConnState:   closeAbove(maxConns),
			// Not ReadTimeout: it ends the context of a request that takes longer.
			ReadHeaderTimeout: readLimit,
			WriteTimeout:      readLimit + resetLimit + answerLimit,
			MaxHeaderBytes:    16 << 10,
		},
		socket: l, cancel: cancel, done: make(chan struct{}),
	}
	s.http.SetKeepAlivesEnabled(false)
	go func() {
		defer close(s.done)
		// As for the health endpoint, no reason to stop forwarding packets.
		_ = s.http.Serve(l)
	}()
	return s, nil
}

// Close removes the socket's file, unless it is another's by then, cancels the
// requests in progress and waits a second at most for their answers.
func (s *ControlServer) Close() error {
	err := s.socket.remove()
	s.cancel(errEnding)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	ended := s.http.Shutdown(ctx)
	if errors.Is(ended, context.DeadlineExceeded) {
		ended = s.http.Close()
	}
	<-s.done
	return errors.Join(err, ended)
}

// failure is the body of every answer but 200.
type failure struct {
	Error string `json:"error"`
}

func (o Operations) mux() *http.ServeMux {
	mux := http.NewServeMux()
	if o.Reset != nil {
		mux.HandleFunc("POST /reset", limited(maxResets, o.reset))
	}
	if o.Status != nil {
		mux.HandleFunc("GET /status", limited(maxLooks, o.status))
	}
	if o.Explain != nil {
		mux.HandleFunc("GET /explain", limited(maxLooks, o.explain))
	}
	if o.Inject != nil {
		mux.HandleFunc("POST /fault", limited(maxFaults, o.fault))
	} else {
		mux.HandleFunc("POST /fault", noFaults)
	}
	return mux
}

func (o Operations) reset(w http.ResponseWriter, r *http.Request) {
	var request struct{}
	if !read(w, r, &request) {
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), resetLimit, errTooLong)
	defer cancel()
	conclude(ctx, w, struct{}{}, o.Reset(ctx))
}

func (o Operations) status(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), lookLimit, errLate)
	defer cancel()
	s, err := o.Status(ctx)
	conclude(ctx, w, s, err)
}

func (o Operations) explain(w http.ResponseWriter, r *http.Request) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	q, err := parseQuestion(values)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), lookLimit, errLate)
	defer cancel()
	e, err := o.Explain(ctx, q)
	conclude(ctx, w, e, err)
}

// conclude answers with what an operation yielded.
func conclude(ctx context.Context, w http.ResponseWriter, body any, err error) {
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, http.StatusOK, body)
}

// limited lets n requests through at a time and refuses the others.
func limited(n int, next http.HandlerFunc) http.HandlerFunc {
	slots := make(chan struct{}, n)
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			next(w, r)
		default:
			refuse(w, http.StatusTooManyRequests, errBusy)
		}
	}
}

// closeAbove returns a hook that closes new connections while there are n.
func closeAbove(n int64) func(net.Conn, http.ConnState) {
	var open atomic.Int64
	return func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > n {
				conn.Close()
			}
		case http.StateClosed:
			open.Add(-1)
		}
	}
}

// read is readBody, and answers if that fails.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	err := readBody(w, r, v)
	if err == nil {
		return true
	}
	status := http.StatusBadRequest
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		status = http.StatusRequestEntityTooLarge
	}
	refuse(w, status, err)
	return false
}

// readBody decodes a body of one JSON object without unknown fields into v. No
// body leaves v as it is.
func readBody(w http.ResponseWriter, r *http.Request, v any) error {
	deadline := http.NewResponseController(w)
	if err := deadline.SetReadDeadline(time.Now().Add(readLimit)); err != nil {
		return err
	}
	// The server watches for the client's going away once the body is read to its
	// end.
	if err := decodeBody(http.MaxBytesReader(w, r.Body, maxBody), v); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return deadline.SetReadDeadline(time.Time{})
}

// decodeBody reads r to its end.
func decodeBody(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == nil {
			err = errors.New("more than one value")
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func refuse(w http.ResponseWriter, status int, err error) { answer(w, status, failure{err.Error()}) }

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that went away needs no answer
}
