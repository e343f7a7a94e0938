package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"firezone-gateway/internal/drop"
)

// Errors of Listen that an owner may want to tell apart.
var (
	ErrNoAddress = errors.New("address is not there")   // yet: the TUN device may get it
	ErrPortTaken = errors.New("port is taken")          // by another program, or the server before
	ErrNoFamily  = errors.New("no such address family") // a host without IPv6

	errNoClients = errors.New("no filter for clients")
	errWildcard  = errors.New("not the address of one interface")
	errOversize  = errors.New("message is too long")
)

// Network is a transport protocol.
type Network string

// Networks.
const (
	UDP Network = "udp"
	TCP Network = "tcp"
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	Network   Network
	Addr      netip.AddrPort // a tunnel address of the gateway, policy.DNSPort
	Forwarder *Forwarder
	// Clients says whether a source may ask. It is called for each datagram and
	// connection and must not block.
	Clients func(netip.Addr) bool

	idle time.Duration // IdleTimeout if zero
}

// Server answers DNS queries on one address over one transport, by forwarding
// them. Datagrams and connections that are not from clients go unanswered, so
// that nobody can have answers sent to a third party.
type Server struct {
	cfg    ServerConfig
	udp    *net.UDPConn     // for UDP
	tcp    *net.TCPListener // for TCP
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // one for each query (UDP) or connection (TCP)
	done   chan struct{}  // closed when Serve has returned

	mu      sync.Mutex
	serving bool
	closed  bool
	conns   map[*net.TCPConn]netip.Addr
}

// Listen binds the socket of a server. It tries once; the error wraps
// ErrNoAddress, ErrPortTaken or ErrNoFamily if that is the reason. Queries are
// taken when Serve runs.
func Listen(cfg ServerConfig) (*Server, error) {
	if cfg.Clients == nil {
		return nil, errNoClients
	}
	if !cfg.Addr.IsValid() || cfg.Addr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("%v: %w", cfg.Addr, errWildcard)
	}
	if cfg.idle == 0 {
		cfg.idle = IdleTimeout
	}
	s := &Server{cfg: cfg, done: make(chan struct{}), conns: make(map[*net.TCPConn]netip.Addr)}
	var err error
	switch cfg.Network {
	case UDP:
		s.udp, err = net.ListenUDP(family("udp", cfg.Addr), net.UDPAddrFromAddrPort(cfg.Addr))
	case TCP:
		s.tcp, err = net.ListenTCP(family("tcp", cfg.Addr), net.TCPAddrFromAddrPort(cfg.Addr))
	default:
		err = net.UnknownNetworkError(cfg.Network)
	}
	if err != nil {
		return nil, bindError(err)
	}
	if s.udp != nil {
		_ = s.udp.SetReadBuffer(receiveBuffer) // with less, bursts lose queries, which clients repeat
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Addr returns the address that is bound.
func (s *Server) Addr() netip.AddrPort {
	if s.udp != nil {
		return s.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	return s.tcp.Addr().(*net.TCPAddr).AddrPort()
}

// Serve answers queries until Close, and then returns nil, or until the socket
// fails. It returns when everything that it started has ended. It may be called
// once.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.closed || s.serving {
		s.mu.Unlock()
		return nil
	}
	s.serving = true
	s.mu.Unlock()
	defer close(s.done)

	var err error
	if s.udp != nil {
		err = s.serveUDP()
	} else {
		err = s.serveTCP()
	}
	s.shut()
	s.work.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("DNS server %s %v: %w", s.cfg.Network, s.cfg.Addr, err)
}

// Close ends the server and waits for Serve, if that was called. Queries under
// way stay without answer, connections are cut. It may be called at any time
// and more than once.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	serving := s.serving
	s.mu.Unlock()
	s.shut()
	if serving {
		<-s.done
	}
}

// shut closes the sockets and cancels the queries.
func (s *Server) shut() {
	s.cancel()
	if s.udp != nil {
		s.udp.Close()
		return
	}
	s.tcp.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true // a connection that was accepted in the meantime is refused
	for conn := range s.conns {
		conn.Close()
	}
}

// fromClient reports whether addr may ask.
func (s *Server) fromClient(addr netip.Addr) bool {
	if s.cfg.Clients(addr.Unmap().WithZone("")) {
		return true
	}
	s.cfg.Forwarder.count(&s.cfg.Forwarder.counts.foreign, drop.DNSForeign)
	return false
}

func family(network string, addr netip.AddrPort) string {
	if addr.Addr().Is4() {
		return network + "4"
	}
	return network + "6"
}

func bindError(err error) error {
	for _, known := range [...]struct {
		errno syscall.Errno
		kind  error
	}{
		{syscall.EADDRNOTAVAIL, ErrNoAddress},
		{syscall.EADDRINUSE, ErrPortTaken},
		{syscall.EAFNOSUPPORT, ErrNoFamily},
	} {
		if errors.Is(err, known.errno) {
			return fmt.Errorf("%w: %w", known.kind, err)
		}
	}
	return err
}
