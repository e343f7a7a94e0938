// Package resource holds what lies behind a gateway in the lab, and the client
// side of it: servers whose answers prove that every byte arrived, and probes
// that measure. Both open their sockets through a Network, so that they run in
// whatever namespace it stands for.
package resource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
)

// Network opens sockets. Addresses are literals, networks are those of package
// net, with raw IP among them for Ping only.
type Network interface {
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Ports are the ports of a Server. Zero lets the kernel choose.
type Ports struct {
	HTTP    uint16 // GET /file, GET /file/sha256, PUT or POST /upload
	TCPEcho uint16
	UDPEcho uint16
	Sink    uint16 // TCP: swallows a stream, answers with its length
	Source  uint16 // TCP: sends zeroes until the connection is closed
}

// DefaultPorts are the well-known ports of the services, where they have one.
var DefaultPorts = Ports{HTTP: 80, TCPEcho: 7, UDPEcho: 7, Sink: 5001, Source: 5002}

// Server is a resource host: all its services on one address.
type Server struct {
	address netip.Addr
	ports   Ports
	stop    context.CancelFunc
	closers []func() error
	running sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // guarded by mu
	closed bool                  // guarded by mu

	connections atomic.Uint64
	requests    atomic.Uint64
	echoed      atomic.Uint64
}

// Stats counts what reached a Server.
type Stats struct {
	Connections uint64 // TCP, without HTTP
	Requests    uint64 // HTTP
	Echoed      uint64 // UDP datagrams answered
}

// Serve starts the services on one address of the network. The server's own
// mishaps go to log.
func Serve(n Network, address netip.Addr, ports Ports, log *slog.Logger) (*Server, error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{address: address, stop: stop, conns: make(map[net.Conn]struct{})}
	err := errors.Join(
		s.serveHTTP(ctx, n, ports.HTTP, log),
		s.serveTCP(n, ports.TCPEcho, &s.ports.TCPEcho, echo),
		s.serveTCP(n, ports.Sink, &s.ports.Sink, sink),
		s.serveTCP(n, ports.Source, &s.ports.Source, source),
		s.serveUDP(n, ports.UDPEcho),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("resource %v: %w", address, err), s.Close())
	}
	return s, nil
}

// Address returns the address the server was given.
func (s *Server) Address() netip.Addr { return s.address }

// Ports returns the ports that the services listen on.
func (s *Server) Ports() Ports { return s.ports }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Connections: s.connections.Load(),
		Requests:    s.requests.Load(),
		Echoed:      s.echoed.Load(),
	}
}

// Close ends all services and connections and waits for them. It may be called
// more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()

	s.stop()
	var errs []error
	for _, closeService := range s.closers {
		errs = append(errs, closeService())
	}
	s.running.Wait()
	return errors.Join(errs...)
}

func (s *Server) serveHTTP(ctx context.Context, n Network, port uint16, log *slog.Logger) error {
	listener, err := n.Listen("tcp", s.at(port))
	if err != nil {
		return err
	}
	s.ports.HTTP = portOf(listener.Addr())
	handler := newHandler()
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.requests.Add(1)
			handler.ServeHTTP(w, r)
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.closers = append(s.closers, server.Close)
	s.running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("resource HTTP server ended", "error", err)
		}
	})
	return nil
}

// serveTCP hands each connection to handle, whose end closes it, and stores
// the port it listens on.
func (s *Server) serveTCP(n Network, port uint16, listening *uint16, handle func(*net.TCPConn)) error {
	listener, err := n.Listen("tcp", s.at(port))
	if err != nil {
		return err
	}
	*listening = portOf(listener.Addr())
	s.closers = append(s.closers, listener.Close)
	s.running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if !s.track(conn) {
				conn.Close()
				return
			}
			s.running.Go(func() {
				defer s.untrack(conn)
				handle(conn.(*net.TCPConn))
			})
		}
	})
	return nil
}

func (s *Server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.connections.Add(1)
	s.conns[conn] = struct{}{}
	return true
}

func (s *Server) untrack(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *Server) at(port uint16) string {
	return netip.AddrPortFrom(s.address, port).String()
}

func portOf(address net.Addr) uint16 {
	_, port, err := net.SplitHostPort(address.String())
	if err != nil {
		return 0
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(number)
}
