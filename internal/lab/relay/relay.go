// Package relay is a TURN relay for the lab: the server of pion/turn with the
// credentials and, as far as a client can tell, the answers of the Firezone
// relay (transport §4.4).
//
// The server stands behind a front, which sees each datagram first and each
// answer last. It makes up for what pion/turn/v2 does differently: requests
// with credentials but without NONCE are answered 401 (pion: 400), so are wrong
// credentials; a nonce is good for one client socket and 10,000 requests (pion:
// for everybody and an hour); errors are signed with the client's password;
// requests without an allocation are answered 437 (pion: not at all); address
// families are obeyed (pion: always IPv4); malformed attributes are dropped
// (pion: panic).
//
// A relay is as strict as the real one unless Options.Lenient asks otherwise:
// data goes through channels only, indications are dropped and permissions mean
// nothing; ChannelData with padding is dropped; an allocation ends when its user
// makes another one.
//
// Data of channels does not pass through pion. Each socket receives in batches,
// with datagrams of one sender put together by the kernel, and what goes to one
// receiver is sent by one system call, so that measurements through the relay
// measure something else. SetFaults, ExpireNonces, Suspend and Resume make a
// relay fail on purpose.
package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/pion/turn/v2"
	"golang.org/x/sys/unix"
)

// Port is the port that relays listen on.
const Port = 3478

// Options configure a Server.
type Options struct {
	// Secret is the stamp secret that the portal derives passwords from.
	Secret string
	// IPv4 and IPv6 are the relay's public addresses; one may be missing.
	IPv4, IPv6 netip.Addr
	// Port to listen on; 0 lets the kernel choose one for each family.
	Port uint16
	// ListenPacket opens the relay's sockets, of networks "udp4", "udp6" and
	// "udp"; for a relay with both families it must permit [::].
	ListenPacket func(network, address string) (net.PacketConn, error)
	// Now is the clock that usernames and channels expire by; nil means
	// time.Now.
	Now func() time.Time
	// Lenient makes the relay one of RFC 8656, with permissions, Send and Data
	// indications, padding, and any number of allocations for each user.
	Lenient bool
	// Log receives what the TURN server says, at debug level; nil means
	// nothing.
	Log *slog.Logger
}

// Server is a running relay. Its methods may be called concurrently.
type Server struct {
	options Options
	stats   counters
	nonces  nonces
	faults  faults
	silent  atomic.Bool    // of faults, where each datagram looks at it
	relayed sync.WaitGroup // one for each open relayed socket
	addrs   []netip.AddrPort

	mu     sync.Mutex // guards what follows, and Options.Secret while not running
	turn   *turn.Server
	fronts []*front
	closed bool
}

// ErrClosed is returned for what only an open relay can do.
var ErrClosed = errors.New("relay is closed")

// Start opens the relay's sockets and serves.
func Start(o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{options: o}
	for _, address := range []netip.Addr{o.IPv4, o.IPv6} {
		if address.IsValid() {
			s.addrs = append(s.addrs, netip.AddrPortFrom(address, o.Port))
		}
	}
	if len(s.addrs) == 0 {
		return nil, errors.New("relay: no address")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.serve(); err != nil {
		return nil, err
	}
	return s, nil
}

// Suspend ends the relay as the end of its process does: all it knows is lost,
// its clients hear nothing, and what they send is refused by the host.
// Suspending again does nothing.
func (s *Server) Suspend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turn == nil {
		return nil
	}
	err := s.turn.Close()
	for _, f := range s.fronts {
		<-f.stopped
	}
	s.relayed.Wait()
	s.turn, s.fronts = nil, nil
	return err
}

// Resume starts a suspended relay again on the addresses it had. With a secret
// that is not empty it is another relay, as one that was started anew is: it has
// another ID and knows no earlier credentials. Counters and faults stay.
func (s *Server) Resume(secret string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.turn != nil:
		return errors.New("relay is not suspended")
	}
	if secret != "" {
		s.options.Secret = secret
	}
	return s.serve()
}

// Close ends all allocations and waits until their sockets are closed. It may be
// called more than once.
func (s *Server) Close() error {
	err := s.Suspend()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return err
}

// ID returns the relay's id.
func (s *Server) ID() uuid.UUID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ID(s.options.Secret)
}

// Addrs returns the addresses that the relay listens on, one for each family.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// serve opens the sockets at s.addrs and starts pion's server on them.
func (s *Server) serve() (err error) {
	config := turn.ServerConfig{
		Realm:         Realm,
		AuthHandler:   s.key,
		LoggerFactory: loggers{s.options.Log},
		// The limit of pion's relayed sockets as well.
		InboundMTU: 1600,
	}
	if !s.options.Lenient {
		config.ChannelBindTimeout = channelLifetime + channelMemory
	}
	s.nonces.expire()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("relay: %w", err), closeAll(config.PacketConnConfigs))
			s.fronts = nil
		}
	}()
	for i, address := range s.addrs {
		network := "udp6"
		if address.Addr().Is4() {
			network = "udp4"
		}
		conn, err := s.options.ListenPacket(network, address.String())
		if err != nil {
			return err
		}
		enlarge(conn)
		f := newFront(s, conn)
		config.PacketConnConfigs = append(config.PacketConnConfigs, turn.PacketConnConfig{PacketConn: f, RelayAddressGenerator: f})
		if err := f.open(); err != nil {
			return err
		}
		s.fronts = append(s.fronts, f)
		if address.Port() == 0 { // never again, so that Addrs needs no lock
			s.addrs[i] = addrPortOf(conn.LocalAddr())
		}
	}
	s.turn, err = turn.NewServer(config)
	return err
}

// evict ends the allocations of a user, of which there can be one.
func (s *Server) evict(username string) {
	for _, f := range s.fronts {
		if a := f.allocationOfUser(username); a != nil {
			a.evict()
		}
	}
}

// key answers pion's question for the long-term key of a user.
func (s *Server) key(username, _ string, _ net.Addr) ([]byte, bool) {
	password, expires, err := passwordOf(s.options.Secret, username)
	if err != nil || !expires.After(s.options.Now()) {
		return nil, false
	}
	return turn.GenerateAuthKey(username, Realm, password), true
}

const (
	firstRelayedPort = 49152
	relayedPorts     = 65536 - firstRelayedPort
	// portAttempts bounds the search for a free port. With half of them taken
	// it fails once in 10^9.
	portAttempts = 30
)

var errNoPort = errors.New("no free port for an allocation")

// listenRelayed opens the socket of an allocation for the wanted families on a
// random port. For both families it is one socket, so both share the port.
func (s *Server) listenRelayed(want families) (net.PacketConn, netip.AddrPort, error) {
	network, bind, address := "udp4", s.options.IPv4, s.options.IPv4
	switch want {
	case onlyIPv6:
		network, bind, address = "udp6", s.options.IPv6, s.options.IPv6
	case bothFamilies:
		network, bind = "udp", netip.IPv6Unspecified()
	}
	for range portAttempts {
		port := uint16(firstRelayedPort + rand.IntN(relayedPorts))
		conn, err := s.options.ListenPacket(network, netip.AddrPortFrom(bind, port).String())
		if err == nil {
			enlarge(conn)
			return conn, netip.AddrPortFrom(address, port), nil
		}
	}
	return nil, netip.AddrPort{}, errNoPort
}

// enlarge asks for socket buffers that outlast a busy machine's pauses; without
// the privilege to exceed them, the kernel grants what its limits allow.
func enlarge(conn net.PacketConn) {
	const size = 4 << 20
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return
	}
	_ = udp.SetReadBuffer(size)
	_ = udp.SetWriteBuffer(size)
	raw, err := udp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size)
	})
}

func closeAll(configs []turn.PacketConnConfig) error {
	var errs []error
	for _, config := range configs {
		errs = append(errs, config.PacketConn.Close())
	}
	return errors.Join(errs...)
}

// addrPortOf returns the address of a UDP socket or peer, the zero value for
// any other.
func addrPortOf(a net.Addr) netip.AddrPort {
	udp, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	address := udp.AddrPort()
	return netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
}
