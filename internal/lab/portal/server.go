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
	main    net.Listener
	control net.Listener
	servers []*http.Server
	events  eventLog
	refs    *refSigner

	wg sync.WaitGroup // accept loops, handlers and the goroutines of sockets

	mu sync.Mutex // guards everything below; nothing blocks while holding it
	state
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
		cfg:     cfg,
		log:     cfg.Logger,
		main:    main,
		control: control,
		refs:    newRefSigner(),
		state:   newState(cfg),
	}
	s.serve(main, s.Handler())
	if control != nil {
		s.serve(control, s.ControlHandler())
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

// Addr returns the address on which websockets are served.
func (s *Server) Addr() net.Addr { return s.main.Addr() }

// URL returns the base URL to configure in gateways, clients and relays.
func (s *Server) URL() string {
	scheme := "ws"
	if s.cfg.TLS != nil {
		scheme = "wss"
	}
	return scheme + "://" + s.main.Addr().String()
}

// ControlURL returns the base URL of the HTTP control interface, or "" when
// there is none.
func (s *Server) ControlURL() string {
	if s.control == nil {
		return ""
	}
	return "http://" + s.control.Addr().String()
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
	s.mu.Unlock()

	var errs []error
	for _, srv := range s.servers {
		errs = append(errs, srv.Close())
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) serve(ln net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.servers = append(s.servers, srv)
	s.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("listener ended", "addr", ln.Addr(), "err", err)
		}
	})
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
