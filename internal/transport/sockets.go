package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"firezone-gateway/internal/drop"

	"golang.org/x/sys/unix"
)

// PreferredPort is the port that Firezone gateways listen on (T-01).
const PreferredPort = 52625

// RoutingMark is the socket mark that keeps the gateway's own datagrams out of
// the tunnel's routing tables (T-05).
const RoutingMark = 0xfd002021

// Config says how Sockets are opened. The zero value takes an ephemeral port,
// sets no mark, leaves the buffers alone and uses the offloads that the kernel
// has.
type Config struct {
	Port       uint16         // preferred port; if it is taken, a family uses an ephemeral one
	Mark       uint32         // SO_MARK, 0 for none
	SendBuffer int            // wanted SO_SNDBUF in bytes; never lowers what is there
	RecvBuffer int            // wanted SO_RCVBUF in bytes; never lowers what is there
	DisableGSO bool           // send every datagram by itself
	DisableGRO bool           // receive every datagram by itself
	Logger     *slog.Logger   // slog.Default() if nil
	Drops      *drop.Counters // own ones if nil
	Peers      *Peers         // who may own paths; must be the same after a rebind; own ones if nil
}

// Sockets are the UDP sockets of the gateway: one per family, bound to the
// unspecified address. One of the two may be missing (T-02). All methods may be
// called concurrently.
type Sockets struct {
	sockets [families]*socket
	peers   *Peers
	drops   *drop.Counters
	log     *slog.Logger
	pool    sync.Pool // of *transmission

	mu     sync.Mutex // serialises changes of relays
	relays atomic.Pointer[[]*Relay]
}

// Open binds both sockets. It fails when neither family can be bound, and when
// the mark cannot be set: unmarked datagrams would be routed into the tunnel.
func Open(cfg Config) (*Sockets, error) {
	return open(cfg, environment{kernel: kernelRelease(), listen: listen})
}

// Close closes the sockets. Blocked calls return; a Bind waits for other
// Sockets. It may be called twice.
func (s *Sockets) Close() error {
	var errs []error
	for _, sock := range s.sockets {
		if sock == nil {
			continue
		}
		if err := sock.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// LocalPort returns the port of the socket of family f, 0 if it is missing.
func (s *Sockets) LocalPort(f Family) uint16 {
	if sock := s.sockets[f]; sock != nil {
		return sock.port
	}
	return 0
}

// HasV4 reports whether the IPv4 socket exists.
func (s *Sockets) HasV4() bool { return s.sockets[IPv4] != nil }

// HasV6 reports whether the IPv6 socket exists.
func (s *Sockets) HasV6() bool { return s.sockets[IPv6] != nil }

// Peers returns the registry that the owners of paths are looked up in.
func (s *Sockets) Peers() *Peers { return s.peers }

// Path returns the direct path from local, an address of this host, to remote.
// An invalid local leaves the choice to the kernel.
func (s *Sockets) Path(local netip.Addr, remote netip.AddrPort) *Path {
	return newDirectPath(s.peers, netip.AddrPortFrom(local, s.LocalPort(FamilyOf(remote.Addr()))), remote)
}

// FamilyStats counts what one socket did. Datagrams in the sense of the wire:
// segments are counted one by one, bytes are UDP payload.
type FamilyStats struct {
	Port         uint16
	DatagramsIn  uint64
	BytesIn      uint64
	BatchesIn    uint64 // system calls that received something
	DatagramsOut uint64
	BytesOut     uint64
	BatchesOut   uint64 // system calls that sent something
	GSO          bool   // segmentation offload is in use for sending
	GRO          bool   // coalesced datagrams are accepted
}

// Stats returns the counters by family; those of a missing family are zero.
func (s *Sockets) Stats() [2]FamilyStats {
	var stats [families]FamilyStats
	for f, sock := range s.sockets {
		if sock != nil {
			stats[f] = sock.stats()
		}
	}
	return stats
}

// environment is what Open finds on the machine.
type environment struct {
	kernel string
	listen func(Family, uint16, func(fd int) error) (*net.UDPConn, error)
}

func open(cfg Config, env environment) (*Sockets, error) {
	s := &Sockets{peers: cfg.Peers, drops: cfg.Drops, log: cfg.Logger}
	if s.peers == nil {
		s.peers = new(Peers)
	}
	if s.drops == nil {
		s.drops = new(drop.Counters)
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.relays.Store(new([]*Relay))
	if !cfg.DisableGSO && gsoMangled(env.kernel) {
		s.log.Warn("UDP segmentation offload is off, this kernel corrupts it", "kernel", env.kernel)
		cfg.DisableGSO = true
	}
	var errs []error
	for f := range Family(families) {
		sock, err := openSocket(f, cfg, env, s.log)
		if errors.Is(err, errMark) {
			s.Close()
			return nil, err
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.sockets[f] = sock
	}
	if len(errs) == families {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs {
		s.log.Warn("running without one address family", "error", err)
	}
	s.pool.New = func() any { return newTransmission() }
	return s, nil
}

// pause makes receivers return and keeps new ones from blocking, until resume.
func (s *Sockets) pause() { s.setReadDeadline(time.Unix(1, 0)) }

func (s *Sockets) resume() { s.setReadDeadline(time.Time{}) }

func (s *Sockets) setReadDeadline(t time.Time) {
	for _, sock := range s.sockets {
		if sock != nil {
			_ = sock.conn.SetReadDeadline(t) // fails on a closed socket only, which does not block
		}
	}
}

// socket is one UDP socket.
type socket struct {
	family Family
	port   uint16
	gro    bool
	conn   *net.UDPConn
	raw    syscall.RawConn
	gso    atomic.Bool
	log    *slog.Logger
	sendmm func(fd int, msgs []mmsghdr) (int, unix.Errno)

	datagramsIn, bytesIn, batchesIn    atomic.Uint64
	datagramsOut, bytesOut, batchesOut atomic.Uint64
}

func openSocket(f Family, cfg Config, env environment, log *slog.Logger) (*socket, error) {
	s := &socket{family: f, log: log, sendmm: sendmmsg}
	set := func(fd int) error {
		offloads, err := configure(fd, f, cfg, log)
		s.gro = offloads.gro
		s.gso.Store(offloads.gso)
		return err
	}
	c, err := env.listen(f, cfg.Port, set)
	if err != nil && cfg.Port != 0 && !errors.Is(err, errMark) {
		log.Info("preferred port is not available, taking an ephemeral one", "family", f, "port", cfg.Port, "error", err)
		c, err = env.listen(f, 0, set)
	}
	if err != nil {
		return nil, fmt.Errorf("bind %v socket: %w", f, err)
	}
	if s.raw, err = c.SyscallConn(); err != nil {
		c.Close()
		return nil, fmt.Errorf("%v socket: %w", f, err)
	}
	s.conn, s.port = c, c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	return s, nil
}

func (s *socket) stats() FamilyStats {
	return FamilyStats{
		Port:         s.port,
		DatagramsIn:  s.datagramsIn.Load(),
		BytesIn:      s.bytesIn.Load(),
		BatchesIn:    s.batchesIn.Load(),
		DatagramsOut: s.datagramsOut.Load(),
		BytesOut:     s.bytesOut.Load(),
		BatchesOut:   s.batchesOut.Load(),
		GSO:          s.gso.Load(),
		GRO:          s.gro,
	}
}

func listen(f Family, port uint16, set func(fd int) error) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = set(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	network, host := "udp4", "0.0.0.0"
	if f == IPv6 {
		network, host = "udp6", "::"
	}
	c, err := lc.ListenPacket(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
