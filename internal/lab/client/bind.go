package client

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// sharedBind lets WireGuard and ICE use one socket per family: the engine's
// standard binds, opened in the client's namespace, with STUN taken out of what
// they receive.
//
// There is one bind per family, because the engine's reuses addresses of both in
// one pool and then sends to a mixture: it copies an IPv6 address into the four
// bytes that an IPv4 address left (golang.zx2c4.com/wireguard at 2026-05-22).
type sharedBind struct {
	ns     Namespace
	v4, v6 conn.Bind

	mu           sync.Mutex
	port4, port6 uint16
	legs         []*stunConn
	via          map[netip.AddrPort]*allocation // the way to the gateway's addresses, if not direct
}

var _ conn.Bind = (*sharedBind)(nil)

func newSharedBind(ns Namespace) *sharedBind {
	return &sharedBind{ns: ns, v4: conn.NewStdNetBind(), v6: conn.NewStdNetBind()}
}

// Open implements conn.Bind. The sockets belong to the namespace; they keep
// their ports when the engine opens them again.
func (b *sharedBind) Open(uint16) (fns []conn.ReceiveFunc, port uint16, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var fns4, fns6 []conn.ReceiveFunc
	err = b.ns.Do(func() error {
		if fns4, b.port4, err = b.v4.Open(b.port4); err != nil {
			return err
		}
		fns6, b.port6, err = b.v6.Open(b.port6)
		return err
	})
	if err != nil {
		return nil, 0, errors.Join(err, b.Close())
	}
	// Each lists its function for IPv4 first.
	fns = append(fns, b.divert(fns4[0]))
	if len(fns6) > 1 {
		fns = append(fns, b.divert(fns6[1]))
	}
	return fns, b.port4, nil
}

// Close implements conn.Bind.
func (b *sharedBind) Close() error { return errors.Join(b.v4.Close(), b.v6.Close()) }

// SetMark implements conn.Bind.
func (b *sharedBind) SetMark(mark uint32) error {
	return errors.Join(b.v4.SetMark(mark), b.v6.SetMark(mark))
}

// Send implements conn.Bind.
func (b *sharedBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if to, ok := ep.(*conn.StdNetEndpoint); ok {
		if a := b.wayTo(to.AddrPort); a != nil {
			return a.send(bufs, to.AddrPort)
		}
	}
	return b.sendDirectly(bufs, ep)
}

func (b *sharedBind) sendDirectly(bufs [][]byte, ep conn.Endpoint) error {
	if ep.DstIP().Is4() {
		return b.v4.Send(bufs, ep)
	}
	return b.v6.Send(bufs, ep)
}

// ParseEndpoint implements conn.Bind.
func (b *sharedBind) ParseEndpoint(s string) (conn.Endpoint, error) { return b.v4.ParseEndpoint(s) }

// BatchSize implements conn.Bind.
func (b *sharedBind) BatchSize() int { return b.v4.BatchSize() }

// leg returns the part of the sockets that ICE sees at one local address.
func (b *sharedBind) leg(local netip.Addr) *stunConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	port := b.port4
	if local.Is6() {
		port = b.port6
	}
	c := &stunConn{bind: b, local: netip.AddrPortFrom(local, port), in: make(chan stunDatagram, 256), closed: make(chan struct{})}
	b.legs = append(b.legs, c)
	return c
}

// forgetPorts lets the kernel choose ports when the engine opens the sockets the
// next time.
func (b *sharedBind) forgetPorts() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.port4, b.port6 = 0, 0
}

func (b *sharedBind) divert(receive conn.ReceiveFunc) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := receive(bufs, sizes, eps)
		for i := range n {
			b.unwrap(&bufs[i], &sizes[i], &eps[i])
			if pkt := bufs[i][:sizes[i]]; isSTUN(pkt) {
				b.deliver(pkt, eps[i])
				sizes[i] = 0
			}
		}
		return n, err
	}
}

func (b *sharedBind) deliver(pkt []byte, ep conn.Endpoint) {
	from, ok := source(ep)
	if !ok {
		return
	}
	b.mu.Lock()
	legs := b.legs
	b.mu.Unlock()
	for _, leg := range legs {
		if leg.via != nil || leg.local.Addr().Is4() != from.Addr().Is4() {
			continue
		}
		select {
		case leg.in <- stunDatagram{data: append([]byte(nil), pkt...), from: from}:
		default: // full: STUN is repeated by its sender
		}
	}
}

// unwrap takes what came through an allocation out of its ChannelData. STUN goes
// to the allocation's leg, and leaves a size of 0; the rest is then from its peer.
func (b *sharedBind) unwrap(buf *[]byte, size *int, ep *conn.Endpoint) {
	pkt := (*buf)[:*size]
	if len(pkt) < channelHeader || pkt[0]>>4 != firstChannel>>12 {
		return
	}
	from, ok := source(*ep)
	if !ok {
		return
	}
	b.mu.Lock()
	legs := b.legs
	b.mu.Unlock()
	for _, leg := range legs {
		if leg.via == nil || leg.via.server != from {
			continue
		}
		payload, peer, ok := leg.via.unwrap(pkt)
		if !ok {
			break
		}
		if isSTUN(payload) {
			select {
			case leg.in <- stunDatagram{data: append([]byte(nil), payload...), from: peer}:
			default: // full: STUN is repeated by its sender
			}
			break
		}
		*size, *ep = copy(*buf, payload), &conn.StdNetEndpoint{AddrPort: peer}
		return
	}
	*size = 0
}

func source(ep conn.Endpoint) (netip.AddrPort, bool) {
	std, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(std.Addr().Unmap(), std.Port()), true
}

// lead makes what is sent to an address go through an allocation, or directly
// without one.
func (b *sharedBind) lead(to netip.AddrPort, via *allocation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if via == nil {
		delete(b.via, to)
		return
	}
	if b.via == nil {
		b.via = make(map[netip.AddrPort]*allocation)
	}
	b.via[to] = via
}

func (b *sharedBind) wayTo(to netip.AddrPort) *allocation {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.via[to]
}

// isSTUN tells STUN from WireGuard, whose messages begin with a type and three
// zero bytes.
func isSTUN(b []byte) bool {
	return len(b) >= 20 && b[0] < 4 && !(b[0] >= 1 && b[1] == 0 && b[2] == 0 && b[3] == 0) &&
		b[4] == 0x21 && b[5] == 0x12 && b[6] == 0xa4 && b[7] == 0x42
}

type stunDatagram struct {
	data []byte
	from netip.AddrPort
}

// stunConn is a net.PacketConn for ICE on the shared sockets.
type stunConn struct {
	bind   *sharedBind
	via    *allocation // nil for the sockets themselves
	local  netip.AddrPort
	in     chan stunDatagram
	once   sync.Once
	closed chan struct{}
}

var _ net.PacketConn = (*stunConn)(nil)

func (c *stunConn) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(p, d.data), net.UDPAddrFromAddrPort(d.from), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *stunConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, os.ErrInvalid
	}
	to := udp.AddrPort()
	peer := netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	send := func() error { return c.bind.sendDirectly([][]byte{p}, &conn.StdNetEndpoint{AddrPort: peer}) }
	if c.via != nil {
		send = func() error { return c.via.send([][]byte{p}, peer) }
	}
	if err := send(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// priority is that of the candidate (transport §2.4).
func (c *stunConn) priority() uint32 {
	if c.via == nil {
		return hostPriority(c.local.Addr())
	}
	priority := uint32(2)<<24 | 16382<<8 | 255
	if c.local.Addr().Is6() {
		priority += 1 << 8
	}
	return priority
}

func (c *stunConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *stunConn) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(c.local) }
func (c *stunConn) SetDeadline(time.Time) error      { return nil }
func (c *stunConn) SetReadDeadline(time.Time) error  { return nil }
func (c *stunConn) SetWriteDeadline(time.Time) error { return nil }
