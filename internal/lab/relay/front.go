package relay

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/pion/stun/v3"
)

// front stands between a listening socket and pion's server, as its PacketConn
// and as its generator of relayed sockets. ChannelData it forwards itself.
//
// pion serves each socket by one goroutine: it reads a request, handles it and
// writes the response before it reads again. So the request at hand needs no
// lock, and whatever pion asks for in between is about that request.
type front struct {
	net.PacketConn
	server  *Server
	request request // the one at hand

	raw     syscall.RawConn
	six     bool // the socket is one of IPv6
	in      *receiver
	out     *transmitter
	latest  *allocation   // whose client has sent ChannelData
	stopped chan struct{} // closed when pion reads no more

	mu          sync.Mutex
	allocations map[netip.AddrPort]*allocation // guarded by mu; by client
}

// request is what the front must remember of a STUN request until its response.
type request struct {
	message  *stun.Message
	client   net.Addr
	username string
	// integrity signs the response; empty when the request names no user.
	integrity stun.MessageIntegrity
	families  families
}

func newFront(s *Server, conn net.PacketConn) *front {
	return &front{
		PacketConn: conn, server: s, stopped: make(chan struct{}),
		allocations: make(map[netip.AddrPort]*allocation),
	}
}

// open prepares the socket for moving data in batches.
func (f *front) open() (err error) {
	if f.raw, err = rawConn(f.PacketConn); err != nil {
		return err
	}
	f.six = !addrPortOf(f.LocalAddr()).Addr().Is4()
	f.out = newTransmitter(f.server.stats.toPeers.add, f.server.stats.rejected.add)
	f.in, err = newReceiver(f.PacketConn)
	return err
}

// ReadFrom forwards ChannelData until there is a STUN message that pion shall
// handle.
func (f *front) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		now := f.server.options.Now().UnixNano()
		for {
			b, from, ok := f.in.take()
			if !ok {
				break
			}
			f.request = request{}
			switch {
			case f.server.silent.Load():
				f.server.stats.silenced.Add(1)
			case len(b) > 0 && b[0]>>6 == 1: // ChannelData (RFC 8656 §12.4)
				f.forward(b, from, now)
			case len(b) > 0 && b[0]>>6 == 0 && len(b) <= len(p):
				client := net.UDPAddrFromAddrPort(from)
				if n := f.admit(p, copy(p, b), client); n > 0 {
					f.out.flush()
					return n, client, nil
				}
			default:
				f.server.stats.malformed.Add(1)
			}
		}
		f.out.flush()
		if err := f.in.receive(); err != nil {
			close(f.stopped)
			return 0, nil, err
		}
	}
}

// forward sends the payload of ChannelData to the channel's peer.
func (f *front) forward(b []byte, from netip.AddrPort, now int64) {
	number, payload, ok := payloadOf(b, f.server.options.Lenient)
	if !ok {
		f.server.stats.misframed.Add(1)
		return
	}
	a := f.latest
	if a == nil || a.client != from || a.over() {
		a = f.allocationOf(from)
	}
	if a == nil {
		f.server.stats.unbound.Add(1)
		return
	}
	f.latest = a
	c := a.channel(number, now)
	if c == nil {
		f.server.stats.unbound.Add(1)
		return
	}
	f.out.add(a.in.raw, c.to, 0, payload)
}

// WriteTo sends what pion has to say, with the responses amended.
func (f *front) WriteTo(p []byte, to net.Addr) (int, error) {
	if !isResponse(p) || f.request.message == nil {
		return f.PacketConn.WriteTo(p, to)
	}
	amended, err := f.amend(p)
	if err != nil {
		return 0, err
	}
	if _, err := f.PacketConn.WriteTo(amended, to); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Validate satisfies turn.RelayAddressGenerator.
func (f *front) Validate() error { return nil }

// AllocatePacketConn opens the relayed socket for the request at hand. The
// network that pion names is always "udp4" and says nothing.
func (f *front) AllocatePacketConn(string, int) (net.PacketConn, net.Addr, error) {
	s := f.server
	if !s.options.Lenient {
		s.evict(f.request.username)
	}
	conn, address, err := s.listenRelayed(f.request.families)
	if err != nil {
		return nil, nil, err
	}
	a, err := newAllocation(f, conn)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	s.stats.open.Add(1)
	s.stats.allocated.Add(1)
	s.relayed.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allocations[a.client] = a
	return a, net.UDPAddrFromAddrPort(address), nil
}

// AllocateConn refuses: relays do not allocate TCP.
func (f *front) AllocateConn(string, int) (net.Conn, net.Addr, error) {
	return nil, nil, errors.ErrUnsupported
}

// allocationOf returns the allocation of a client, nil if it has none.
func (f *front) allocationOf(client netip.AddrPort) *allocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.allocations[client]
}

func (f *front) forget(a *allocation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.allocations[a.client] == a {
		delete(f.allocations, a.client)
	}
}

// allocationOfUser returns the allocation of a user, nil without.
func (f *front) allocationOfUser(username string) *allocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.allocations {
		if a.username == username {
			return a
		}
	}
	return nil
}
