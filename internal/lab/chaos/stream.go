package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"firezone-gateway/internal/lab/resource"
)

const (
	// streamRate is the pace of each transfer in bytes per second, and streamPiece
	// how much of it moves at a time. A transfer as fast as it can would fill the
	// queues that datagrams wait in, and lose some without any fault.
	streamRate  = 1 << 20
	streamPiece = 16 << 10
	// streamBuffer keeps the kernel from hiding a stall: it holds an eighth of a
	// second.
	streamBuffer = streamRate / 8
)

// Stream is what came of a download or an upload.
type Stream struct {
	Bytes  int64   `json:"bytes"`
	Whole  bool    `json:"whole"`  // every byte arrived
	Intact bool    `json:"intact"` // the checksums of both ends are equal
	Stall  float64 `json:"longest_stall_ms"`
	Error  string  `json:"error,omitempty"`
	reset  bool
}

type mover func(ctx context.Context, n resource.Network, server netip.AddrPort, size int64, seed uint64) (resource.Transfer, error)

// transfer moves as much as fits into the time, over one connection, and a little
// longer where it has stalled.
func transfer(ctx context.Context, n resource.Network, move mover, during time.Duration, seed uint64) Stream {
	size := int64(during.Seconds() * streamRate)
	ctx, cancel := context.WithTimeout(ctx, during+streamGrace)
	defer cancel()
	paced := &pacedNetwork{Network: n, size: size}
	t, err := move(ctx, paced, netip.AddrPortFrom(filesAt, resource.DefaultPorts.HTTP), size, seed)
	s := Stream{Bytes: t.Bytes, Whole: t.Bytes == size, Intact: t.Intact(), Stall: ms(time.Duration(paced.stall.Load()))}
	if err != nil {
		s.Error, s.reset = err.Error(), wasReset(err)
	}
	return s
}

// streamGrace is how much longer than planned a transfer may take.
const streamGrace = 30 * time.Second

// wasReset reports whether a connection ended by the other side's reset.
func wasReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}

func closed(err error) bool { return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) }

// pacedNetwork gives out connections that move at the stream's pace, and notes
// for how long the other side kept them waiting.
type pacedNetwork struct {
	resource.Network
	size  int64        // of the transfer; what comes after it is bookkeeping
	stall atomic.Int64 // the longest, in nanoseconds
}

// DialContext implements resource.Network.
func (p *pacedNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := p.Network.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(streamBuffer)
		_ = tcp.SetWriteBuffer(streamBuffer)
	}
	return &pacedConn{Conn: conn, network: p}, nil
}

// pacedConn moves at most streamPiece at a time, each at its due time. After a
// stall it catches up.
type pacedConn struct {
	net.Conn
	network *pacedNetwork

	read, write schedule
}

type schedule struct {
	mu    sync.Mutex
	begin time.Time // of the first piece
	moved int64
}

func (c *pacedConn) Read(b []byte) (int, error) { return c.move(&c.read, c.Conn.Read, b) }

func (c *pacedConn) Write(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := c.move(&c.write, c.Conn.Write, b[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (c *pacedConn) move(s *schedule, do func([]byte) (int, error), b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.begin.IsZero()
	if first {
		s.begin = time.Now()
	}
	if wait := time.Duration(s.moved)*time.Second/streamRate - time.Since(s.begin); wait > 0 {
		time.Sleep(wait)
	}
	began := time.Now()
	n, err := do(b[:min(len(b), streamPiece)])
	s.moved += int64(n)
	// The first one waits for the request.
	if !first && n > 0 && s.moved <= c.network.size {
		c.network.stalled(time.Since(began))
	}
	return n, err
}

func (p *pacedNetwork) stalled(d time.Duration) {
	for {
		longest := p.stall.Load()
		if int64(d) <= longest || p.stall.CompareAndSwap(longest, int64(d)) {
			return
		}
	}
}
