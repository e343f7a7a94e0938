package ice

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"firezone-gateway/internal/drop"
)

// connQueue is how many messages one local address of one agent may have
// waiting: a burst from every address of a client, many times over.
const connQueue = 64

// conn is the virtual socket of one agent on one local address. Deadlines do
// not exist: the library only uses them to end a read, which shut does.
type conn struct {
	view  *view
	local netip.AddrPort
	queue chan packet
	ended chan struct{}
	once  sync.Once
}

type packet struct {
	buf  *[]byte
	from netip.AddrPort
}

func newConn(v *view, local netip.AddrPort) *conn {
	return &conn{view: v, local: local, queue: make(chan packet, connQueue), ended: make(chan struct{})}
}

// ReadFrom returns the next message for the agent.
func (c *conn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.ended:
		return 0, nil, net.ErrClosed
	default:
	}
	select {
	case <-c.ended:
		return 0, nil, net.ErrClosed
	case p := <-c.queue:
		n := copy(b, *p.buf)
		buffers.Put(p.buf)
		return n, net.UDPAddrFromAddrPort(p.from), nil
	}
}

// WriteTo hands a message to the Mux. It never blocks, because it runs on the
// agent's only task loop; what cannot go out is dropped and counted.
func (c *conn) WriteTo(b []byte, to net.Addr) (int, error) {
	remote, ok := addrPort(to)
	if !ok {
		return 0, net.InvalidAddrError("not a UDP address")
	}
	select {
	case <-c.ended:
		return 0, net.ErrClosed
	default:
		c.view.write(b, c.local, remote, c)
		return len(b), nil
	}
}

// Close ends the connection; it may be called more than once.
func (c *conn) Close() error {
	c.view.mu.Lock()
	if c.view.conns[c.local] == c {
		delete(c.view.conns, c.local)
	}
	c.view.mu.Unlock()
	c.shut()
	return nil
}

func (c *conn) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(c.local) }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

func (c *conn) shut() { c.once.Do(func() { close(c.ended) }) }

// push queues a copy of b; the newest message is the one that is dropped.
func (c *conn) push(b []byte, from netip.AddrPort) drop.Reason {
	buf := copyOf(b)
	select {
	case c.queue <- packet{buf, from}:
		return drop.None
	default:
		buffers.Put(buf)
		return drop.STUNOverflow
	}
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	u, ok := a.(*net.UDPAddr)
	if !ok || u == nil {
		return netip.AddrPort{}, false
	}
	p := unmap(u.AddrPort())
	return p, p.IsValid()
}
