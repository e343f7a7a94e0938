package dns

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"firezone-gateway/internal/drop"
)

// acceptPause is how long to wait when the process has no file descriptors
// left.
const acceptPause = 50 * time.Millisecond

func (s *Server) serveTCP() error {
	for {
		conn, err := s.tcp.AcceptTCP()
		switch {
		case err == nil:
			s.take(conn)
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
				return net.ErrClosed
			}
		default:
			return err
		}
	}
}

// take starts a connection, or closes it if it is not from a client or one too
// many.
func (s *Server) take(conn *net.TCPConn) {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
	if !s.fromClient(from) {
		conn.Close()
		return
	}
	if !s.register(conn, from) {
		s.cfg.Forwarder.count(&s.cfg.Forwarder.counts.connections, drop.DNSConnections)
		conn.Close()
		return
	}
	s.work.Go(func() {
		c := connection{s: s, conn: conn, free: make(chan struct{}, MaxPipelined)}
		c.serve()
		s.forget(conn)
	})
}

func (s *Server) register(conn *net.TCPConn, from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for _, other := range s.conns {
		if other == from {
			same++
		}
	}
	if s.closed || len(s.conns) >= MaxConns || same >= MaxConnsPerClient {
		return false
	}
	s.conns[conn] = from
	return true
}

func (s *Server) forget(conn *net.TCPConn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// connection is one client's connection. Queries are answered as soon as their
// answers are there, in any order (RFC 7766 §6.2.1.1).
type connection struct {
	s       *Server
	conn    *net.TCPConn
	free    chan struct{} // holds one element for each query without written answer
	pending sync.WaitGroup

	writing sync.Mutex // held for a write to conn
}

// serve returns when the client has closed or half-closed the connection, was
// silent for too long, or sent nonsense, and all its queries are answered.
func (c *connection) serve() {
	defer c.pending.Wait()
	reader := bufio.NewReader(c.conn)
	for {
		select {
		case c.free <- struct{}{}:
		case <-c.s.ctx.Done():
			return
		}
		if !c.next(reader) {
			return
		}
	}
}

// next reads one query and starts its answer.
func (c *connection) next(reader io.Reader) bool {
	f := c.s.cfg.Forwarder
	_ = c.conn.SetReadDeadline(time.Now().Add(c.s.cfg.idle)) // for the whole message, so that nobody trickles
	wire, err := readFramed(reader, maxQuery)
	if err != nil {
		if errors.Is(err, errOversize) {
			f.count(&f.counts.malformed, drop.DNSMalformed)
		}
		return false
	}
	query, answer := f.admit(wire)
	if query == nil && answer == nil {
		return false
	}
	c.pending.Go(func() {
		if query != nil {
			answer = f.forward(c.s.ctx, query, wire, true)
		}
		c.write(answer)
		<-c.free
	})
	return true
}

// write sends an answer. A client that does not take it in time loses the
// connection.
func (c *connection) write(answer []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if answer == nil || writeFramed(c.conn, answer) != nil {
		c.conn.Close()
	}
}
