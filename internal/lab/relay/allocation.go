package relay

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// allocation is one allocation, and to pion its relayed socket: pion reads it in
// a goroutine of its own and closes it when the allocation ends.
//
// That goroutine moves what peers send on channels to the client, inside
// ReadFrom. pion gets to see only what a lenient relay sends as Data indications.
type allocation struct {
	net.PacketConn
	front    *front
	client   netip.AddrPort
	username string
	families families
	ended    chan struct{}
	once     sync.Once

	in       *receiver
	out      *transmitter
	toClient *sockaddr
	latest   *channel // that a peer has used

	mu       sync.Mutex
	byNumber map[uint16]*channel         // guarded by mu
	byPeer   map[netip.AddrPort]*channel // guarded by mu
}

// channel is a channel number that stands for a peer (RFC 8656 §12).
type channel struct {
	number  uint16
	peer    netip.AddrPort
	to      *sockaddr
	expires atomic.Int64 // nanoseconds since 1970
}

const (
	minChannel = 0x4000
	// maxChannel is the last one of RFC 8656 §12; before, it was 0x7FFF.
	maxChannel = 0x4FFF
	// channelLifetime is how long data passes after a ChannelBind, and
	// channelMemory how much longer pion keeps number and peer for each other
	// (transport §4.4).
	channelLifetime = 10 * time.Minute
	channelMemory   = 5 * time.Minute
)

func newAllocation(f *front, conn net.PacketConn) (*allocation, error) {
	in, err := newReceiver(conn)
	if err != nil {
		return nil, err
	}
	a := &allocation{
		PacketConn: conn,
		front:      f,
		client:     addrPortOf(f.request.client),
		username:   f.request.username,
		families:   f.request.families,
		ended:      make(chan struct{}),
		in:         in,
		byNumber:   make(map[uint16]*channel),
		byPeer:     make(map[netip.AddrPort]*channel),
	}
	a.toClient = newSockaddr(a.client, f.six)
	stats := &f.server.stats
	a.out = newTransmitter(stats.fromPeers.add, stats.rejected.add)
	return a, nil
}

// ReadFrom moves data from peers to the client until there is a datagram that
// pion shall judge.
func (a *allocation) ReadFrom(p []byte) (int, net.Addr, error) {
	s := a.front.server
	for {
		now, silent := s.options.Now().UnixNano(), s.silent.Load()
		for {
			b, peer, ok := a.in.take()
			if !ok {
				break
			}
			if silent {
				s.stats.silenced.Add(1)
				continue
			}
			c := a.latest
			if c == nil || c.peer != peer || !c.valid(now) {
				c = a.channelTo(peer, now)
			}
			if c != nil {
				a.latest = c
				a.out.add(a.front.raw, a.toClient, c.number, b)
				continue
			}
			if s.options.Lenient {
				s.stats.fromPeers.add(1, len(b))
				a.out.flush()
				return copy(p, b), net.UDPAddrFromAddrPort(peer), nil
			}
			s.stats.unbound.Add(1)
		}
		a.out.flush()
		if err := a.in.receive(); err != nil {
			return 0, nil, err
		}
	}
}

// WriteTo sends the data of a Send indication.
func (a *allocation) WriteTo(p []byte, to net.Addr) (int, error) {
	n, err := a.PacketConn.WriteTo(p, to)
	if err != nil {
		a.front.server.stats.rejected.add(1)
		return n, err
	}
	a.front.server.stats.toPeers.add(1, n)
	return n, nil
}

// Close ends the allocation's socket; further calls do nothing. It reports no
// error, because pion would leave other allocations open on one.
func (a *allocation) Close() error {
	a.once.Do(func() {
		a.PacketConn.Close()
		a.front.forget(a)
		a.front.server.stats.open.Add(-1)
		close(a.ended)
		a.front.server.relayed.Done()
	})
	return nil
}

// evict ends the allocation and waits until pion has forgotten it. pion's own
// goroutine does that when it cannot read any more.
func (a *allocation) evict() {
	a.front.forget(a)
	a.PacketConn.Close()
	<-a.ended
}

// over reports whether the allocation has ended.
func (a *allocation) over() bool {
	select {
	case <-a.ended:
		return true
	default:
		return false
	}
}

// bind binds or refreshes a channel at the time now, as pion has just done.
func (a *allocation) bind(number uint16, peer netip.AddrPort, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.byNumber[number]
	if c == nil || c.peer != peer {
		if c != nil {
			delete(a.byPeer, c.peer)
		}
		if c := a.byPeer[peer]; c != nil {
			delete(a.byNumber, c.number)
		}
		c = &channel{number: number, peer: peer, to: newSockaddr(peer, a.families != onlyIPv4)}
		a.byNumber[number], a.byPeer[peer] = c, c
	}
	c.expires.Store(now.Add(channelLifetime).UnixNano())
}

// channel returns the channel with a number, nil if it is not bound at the time
// now.
func (a *allocation) channel(number uint16, now int64) *channel {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.byNumber[number]; c != nil && c.valid(now) {
		return c
	}
	return nil
}

// channelTo returns the channel to a peer, nil if there is none at the time now.
func (a *allocation) channelTo(peer netip.AddrPort, now int64) *channel {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.byPeer[peer]; c != nil && c.valid(now) {
		return c
	}
	return nil
}

func (c *channel) valid(now int64) bool { return now < c.expires.Load() }
