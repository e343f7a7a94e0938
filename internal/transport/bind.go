package transport

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"firezone-gateway/internal/drop"

	"github.com/tailscale/wireguard-go/conn"
	"golang.org/x/sys/unix"
)

var _ conn.Bind = (*Bind)(nil)

// Sinks take what arrives and is not for the engine. The methods are called
// from the receiving goroutines, one per family, and must not block; b is valid
// during the call only.
type Sinks interface {
	// STUN takes a STUN message that came on p from a peer, or from a relay that
	// relayed it.
	STUN(b []byte, p *Path)
	// Relay takes a STUN message from a server of r, which reached our address
	// local.
	Relay(r *Relay, b []byte, local netip.Addr)
}

// Bind lends Sockets to the engine. Its Open and Close, which the engine calls
// on events of the TUN device, do not touch the sockets, they only let the
// receive functions run or end. Sockets can be replaced at any time.
type Bind struct {
	sinks     Sinks
	receivers [families]*receiver

	mu   sync.Mutex // serialises changes of gate
	gate atomic.Pointer[gate]
}

// gate is what senders and receivers go by. It is replaced as a whole.
type gate struct {
	open       bool
	generation uint64 // counts the calls of Open
	sockets    *Sockets
	changed    chan struct{} // closed when this gate has been replaced
}

// NewBind returns a closed Bind on s, whose ownership stays with the caller.
func NewBind(s *Sockets, sinks Sinks) *Bind {
	b := &Bind{sinks: sinks}
	for f := range Family(families) {
		b.receivers[f] = newReceiver(b, f)
	}
	s.pause()
	b.gate.Store(&gate{sockets: s, changed: make(chan struct{})})
	return b
}

// Sockets returns the Sockets in use.
func (b *Bind) Sockets() *Sockets { return b.gate.Load().sockets }

// Swap replaces the Sockets and returns the old ones, which the caller closes.
// Receive functions continue on the new ones; what the old ones had not delivered
// is lost, as on any rebind. Relays have to be added to the new ones.
func (b *Bind) Swap(s *Sockets) (old *Sockets) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := *b.gate.Load()
	if g.sockets == s {
		return s
	}
	old, g.sockets = g.sockets, s
	b.replace(g)
	old.pause()
	return old
}

// Open lets the receive functions run and returns one per family, also for a
// missing one, which may come with other Sockets. The port is not changed by the
// argument; the result is that of the IPv4 socket, or of the IPv6 socket if there
// is no other.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := *b.gate.Load()
	if g.open {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	g.open = true
	g.generation++
	b.replace(g)
	port := g.sockets.LocalPort(IPv4)
	if port == 0 {
		port = g.sockets.LocalPort(IPv6)
	}
	receiveIPv4 := func(slab []byte, packets []conn.ReceivedPacket) (int, error) {
		return b.receivers[IPv4].receive(g.generation, slab, packets)
	}
	receiveIPv6 := func(slab []byte, packets []conn.ReceivedPacket) (int, error) {
		return b.receivers[IPv6].receive(g.generation, slab, packets)
	}
	return []conn.ReceiveFunc{receiveIPv4, receiveIPv6}, port, nil
}

// Close makes the receive functions return net.ErrClosed. The sockets stay
// open. It may be called twice.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := *b.gate.Load()
	if g.open {
		g.open = false
		b.replace(g)
		g.sockets.pause()
	}
	return nil
}

// SetMark sets the mark of the sockets in use.
func (b *Bind) SetMark(mark uint32) error {
	for f, sock := range b.Sockets().sockets {
		if sock == nil {
			continue
		}
		var err error
		if cerr := sock.raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		}); cerr != nil {
			return cerr
		}
		if err != nil {
			return fmt.Errorf("%v socket: %w: %w", Family(f), errMark, err)
		}
	}
	return nil
}

// Send sends bufs[i][offset:] to ep, an *Endpoint or an endpoint that came with a
// packet, in order. A relayed path needs 4 bytes of headroom before offset and
// overwrites them. With ECNAhead bytes or more of it, the datagram of a packet gets
// the ECN field found there. What cannot be sent is counted as a drop; errors are
// net.ErrClosed and misuse.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint, offset int) error {
	g := b.gate.Load()
	if !g.open {
		return net.ErrClosed
	}
	if len(bufs) == 0 {
		return nil
	}
	var p *Path
	switch e := ep.(type) {
	case *Endpoint:
		var first byte
		if len(bufs[0]) > offset {
			first = bufs[0][offset]
		}
		p = e.route(first)
	case *Path:
		p = e
	case *congestedPath:
		p = e.Path
	default:
		return conn.ErrWrongEndpointType
	}
	if p == nil {
		g.sockets.drops.Add(drop.NoPath, uint64(len(bufs)))
		return nil
	}
	return g.sockets.sendBatch(p, bufs, offset)
}

// ParseEndpoint returns the direct path to the address and port in s, from a
// source that the kernel chooses.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	remote, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return b.Sockets().Path(netip.Addr{}, remote), nil
}

// BatchSize returns the number of packets that Send takes and receive functions
// give at most.
func (b *Bind) BatchSize() int { return conn.IdealBatchSize }

// replace publishes g. The caller holds mu.
func (b *Bind) replace(g gate) {
	old := b.gate.Load()
	if g.open {
		g.sockets.resume()
	}
	g.changed = make(chan struct{})
	b.gate.Store(&g)
	close(old.changed)
}
