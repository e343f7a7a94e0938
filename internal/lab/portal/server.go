package portal

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// ErrClosed is returned by calls on a Server after Close.
var ErrClosed = errors.New("portal is closed")

// Server is a running development portal. Its methods are safe for concurrent
// use.
type Server struct {
	cfg     Config
	log     *slog.Logger
	control *endpoint // nil: none
	events  eventLog
	refs    *refSigner

	wg sync.WaitGroup // accept loops, handlers and the goroutines of sockets

	mu     sync.Mutex // guards everything below; nothing blocks while holding it
	main   net.Addr   // where websockets are, or were last, served
	public []*endpoint
	state
}

// endpoint is a listener and what serves on it.
type endpoint struct {
	listener net.Listener
	server   *http.Server
}

// New opens the listeners of cfg and serves on them until Close.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	main, control, err := cfg.listen()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:   cfg,
		log:   cfg.Logger,
		main:  main.Addr(),
		refs:  newRefSigner(),
		state: newState(cfg),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.public = []*endpoint{s.serve(main, s.Handler())}
	if control != nil {
		s.control = s.serve(control, s.ControlHandler())
	}
	return s, nil
}

// Handler returns the handler of the websocket paths.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, role := range []Role{Gateway, Client} {
		mux.HandleFunc("GET /"+string(role)+"/websocket", s.socketHandler(role, 1))
		if !s.cfg.V1Only {
			mux.HandleFunc("GET /"+string(role)+"/v2/websocket", s.socketHandler(role, 2))
		}
	}
	mux.HandleFunc("GET /relay/websocket", s.socketHandler(RelayServer, 1))
	return mux
}

// Addr returns the address on which websockets are served: that of Config or,
// after Suspend, the one that the portal was resumed on first.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.main
}

// URL returns the base URL to configure in gateways, clients and relays.
func (s *Server) URL() string {
	scheme := "ws"
	if s.cfg.TLS != nil {
		scheme = "wss"
	}
	return scheme + "://" + s.Addr().String()
}

// ControlURL returns the base URL of the HTTP control interface, or "" when
// there is none.
func (s *Server) ControlURL() string {
	if s.control == nil {
		return ""
	}
	return "http://" + s.control.listener.Addr().String()
}

// Close sends every peer a Close frame with code 1012, as a deployment of the
// real portal does, closes the listeners and waits until nothing runs any
// more: at most 12 s, when a peer does not read. Calling it again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for sess := range s.sessions {
		s.end(sess, websocket.CloseServiceRestart)
	}
	for ref := range s.pending {
		s.forget(ref)
	}
	if s.presence != nil {
		s.presence.Stop()
	}
	endpoints := s.public
	s.public = nil
	s.mu.Unlock()

	if s.control != nil {
		endpoints = append(endpoints, s.control)
	}
	var errs []error
	for _, e := range endpoints {
		errs = append(errs, e.close())
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// serve starts to serve on ln.
func (s *Server) serve(ln net.Listener, h http.Handler) *endpoint {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("listener ended", "addr", ln.Addr(), "err", err)
		}
	})
	return &endpoint{ln, srv}
}

// close ends the listener and what is not a websocket yet. The listener has to
// be closed here as well: the server does not know it before its goroutine runs.
func (e *endpoint) close() error {
	err := e.server.Close()
	if closeErr := e.listener.Close(); !errors.Is(closeErr, net.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	return err
}

// enter registers the caller with the wait group unless the server is closed.
func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.wg.Add(1)
	return nil
}

// errNotFound is wrapped by errors about ids that nobody has.
var errNotFound = errors.New("not found")

func notFound(what, id string) error { return fmt.Errorf("%s %q: %w", what, id, errNotFound) }
