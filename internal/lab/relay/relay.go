// Package relay is a TURN relay for the lab: the server of pion/turn with the
// credentials and, as far as a client can tell, the answers of the Firezone
// relay (transport §4.4).
//
// The server stands behind a front, which sees each datagram first and each
// answer last. It makes up for what pion/turn/v2 does differently: requests
// with credentials but without NONCE are answered 401 (pion: 400), so are wrong
// credentials; errors are signed with the client's password; requests without
// an allocation are answered 437 (pion: not at all); address families are
// obeyed (pion: always IPv4); ChannelData is not padded (pion: to four bytes);
// malformed attributes are dropped (pion: panic).
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
	// Now is the clock that usernames expire by; nil means time.Now.
	Now func() time.Time
	// Log receives what the TURN server says, at debug level; nil means
	// nothing.
	Log *slog.Logger
}

// Server is a running relay.
type Server struct {
	options Options
	turn    *turn.Server
	addrs   []netip.AddrPort
	relayed sync.WaitGroup // one for each open relayed socket
	stats   counters
}

// Stats counts what a relay has done. Bytes are payload.
type Stats struct {
	Allocations   int64  // open
	Allocated     uint64 // ever
	Unauthorized  uint64 // requests with NONCE whose credentials were refused
	Malformed     uint64 // datagrams that were neither ChannelData nor sound STUN
	ToPeers       Traffic
	FromPeers     Traffic
	SendsRejected uint64 // datagrams towards peers that the kernel refused
}

// Traffic is an amount of datagrams.
type Traffic struct {
	Packets, Bytes uint64
}

type counters struct {
	open                                           atomic.Int64
	allocated, unauthorized, malformed, rejected   atomic.Uint64
	toPackets, toBytes, fromPackets, fromByteCount atomic.Uint64
}

// Start opens the relay's sockets and serves.
func Start(o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if !o.IPv4.IsValid() && !o.IPv6.IsValid() {
		return nil, errors.New("relay: no address")
	}
	s := &Server{options: o}
	config := turn.ServerConfig{
		Realm:         Realm,
		AuthHandler:   s.key,
		LoggerFactory: loggers{o.Log},
		// The limit of pion's relayed sockets as well.
		InboundMTU: 1600,
	}
	for _, address := range []netip.Addr{o.IPv4, o.IPv6} {
		if !address.IsValid() {
			continue
		}
		network := "udp6"
		if address.Is4() {
			network = "udp4"
		}
		conn, err := o.ListenPacket(network, netip.AddrPortFrom(address, o.Port).String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("relay: %w", err), closeAll(config.PacketConnConfigs))
		}
		enlarge(conn)
		front := newFront(s, conn)
		config.PacketConnConfigs = append(config.PacketConnConfigs, turn.PacketConnConfig{
			PacketConn: front, RelayAddressGenerator: front,
		})
		s.addrs = append(s.addrs, addrPortOf(conn.LocalAddr()))
	}
	server, err := turn.NewServer(config)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("relay: %w", err), closeAll(config.PacketConnConfigs))
	}
	s.turn = server
	return s, nil
}

// ID returns the relay's id.
func (s *Server) ID() uuid.UUID { return ID(s.options.Secret) }

// Addrs returns the addresses that the relay listens on, one for each family.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	c := &s.stats
	return Stats{
		Allocations:   c.open.Load(),
		Allocated:     c.allocated.Load(),
		Unauthorized:  c.unauthorized.Load(),
		Malformed:     c.malformed.Load(),
		ToPeers:       Traffic{c.toPackets.Load(), c.toBytes.Load()},
		FromPeers:     Traffic{c.fromPackets.Load(), c.fromByteCount.Load()},
		SendsRejected: c.rejected.Load(),
	}
}

// Close ends all allocations and waits until their sockets are closed.
func (s *Server) Close() error {
	err := s.turn.Close()
	s.relayed.Wait()
	return err
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

// enlarge asks for socket buffers that outlast a busy machine's pauses; the
// kernel grants what its limits allow.
func enlarge(conn net.PacketConn) {
	const size = 4 << 20
	if udp, ok := conn.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(size)
		_ = udp.SetWriteBuffer(size)
	}
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
