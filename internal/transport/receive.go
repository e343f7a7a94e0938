package transport

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"firezone-gateway/internal/drop"

	"github.com/tailscale/wireguard-go/conn"
	"golang.org/x/sys/unix"
)

const (
	// maxMessages is how many messages one system call receives while they are
	// not coalesced: as many slots as the engine's slab of 131070 bytes has.
	maxMessages = 63
	slotSize    = 2048
	// maxMessage is the longest message, coalesced or not.
	maxMessage = 65535
	// minCoalesced is the average number of datagrams in a message from which on
	// reading in place is worth that two messages fill the slab. Below it copying
	// costs about the same per datagram and gives the engine larger batches.
	minCoalesced = 6
	// maxPaths bounds the interned paths of one family, some 2 MB.
	maxPaths = 8192
	// faultPause is how long a receiver waits after an error of the socket that
	// follows upon another, and is neither its end nor a change of the gate.
	faultPause = 50 * time.Millisecond
)

// receiver receives for one family. Two modes alternate. While messages arrive
// well coalesced, each has half of the slab and its segments are described in place.
// Otherwise each has a slot of the slab, enough for any datagram that is accepted,
// and the rest of a coalesced one, which comes as a surprise then, goes to a spill
// buffer. What does not fit is kept for the next call, so nothing is lost and the
// order stays.
type receiver struct {
	bind   *Bind
	family Family

	mu          sync.Mutex // held by the one call of receive
	aggregating bool
	sockets     *Sockets // that paths and last belong to
	paths       map[origin]*Path
	last        source
	spill       []byte // maxMessages buffers of maxMessage
	inbox       [maxMessages]message
	kept, keptN int // messages inbox[kept:keptN] are not fully handed out

	datagrams, bytes int // in the last fetch

	msgs     [maxMessages]mmsghdr
	iovs     [maxMessages][2]unix.Iovec
	names    [maxMessages][sockaddrSpace]byte
	controls [maxMessages][controlSpace]byte
	want     int // messages to receive
	got      int
	errno    unix.Errno
	recvmm   func(fd int, msgs []mmsghdr) (int, unix.Errno)
	faults   int                   // errors of the socket in a row
	read     func(fd uintptr) bool // made once so that no call allocates
}

// source is who sent a message.
type source struct {
	origin origin
	relays *[]*Relay // the snapshot in which relay was looked up
	relay  *Relay
	path   *Path // nil until needed
}

// message is a received message of which some segments are left.
type message struct {
	source    source
	size      int  // bytes in all
	segment   int  // bytes in each datagram but the last
	done      int  // bytes handed out
	congested bool // marked with Congestion Experienced
}

func newReceiver(b *Bind, f Family) *receiver {
	r := &receiver{bind: b, family: f, paths: make(map[origin]*Path), recvmm: recvmmsg}
	r.spill = newSpill(r)
	r.read = func(fd uintptr) bool {
		r.got, r.errno = r.recvmm(int(fd), r.msgs[:r.want])
		return r.errno != unix.EAGAIN
	}
	return r
}

// receive is the body of the conn.ReceiveFunc of one generation.
func (r *receiver) receive(generation uint64, slab []byte, packets []conn.ReceivedPacket) (int, error) {
	if len(slab) < slotSize || len(packets) == 0 {
		return 0, io.ErrShortBuffer
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := output{slab: slab, packets: packets}
	for {
		g := r.bind.gate.Load()
		if !g.open || g.generation != generation {
			return 0, net.ErrClosed
		}
		r.adopt(g.sockets)
		if r.kept < r.keptN {
			r.handOut(&out, 0)
		} else if sock := g.sockets.sockets[r.family]; sock == nil {
			<-g.changed
		} else if err := r.fetch(sock, slab); err != nil {
			r.pauseAfter(err, g)
		} else {
			r.faults = 0
			r.distribute(sock, &out)
		}
		if out.n > 0 {
			return out.n, nil
		}
	}
}

// output is what one call of receive gives to the engine: packets of datagrams
// that were all marked with Congestion Experienced, or of which none was.
type output struct {
	slab      []byte
	packets   []conn.ReceivedPacket
	n         int
	congested bool
}

func (o *output) full() bool { return o.n == len(o.packets) }

// admits reports whether packets of m may join those that are there.
func (o *output) admits(m *message) bool {
	return o.n == 0 || o.congested == m.congested || m.size == 0
}

func (o *output) add(offset, size int, m *message, p *Path) {
	var ep conn.Endpoint = p
	if m.congested && o.slab[offset] == messageTransport {
		ep = &p.congested
	}
	o.packets[o.n] = conn.ReceivedPacket{Offset: offset, Size: size, Endpoint: ep}
	o.congested = m.congested
	o.n++
}

// adopt forgets what belongs to other sockets: paths know their local port.
func (r *receiver) adopt(s *Sockets) {
	if r.sockets != s {
		r.sockets = s
		clear(r.paths)
		r.last = source{}
	}
}

// pauseAfter waits until a receive that ended with err is worth another try. No
// error but the end of the socket ends receiving, and a single one, such as the
// kernel reports once about a datagram that was sent, does not delay it.
func (r *receiver) pauseAfter(err error, g *gate) {
	if errors.Is(err, net.ErrClosed) {
		<-g.changed
		return
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if r.bind.gate.Load() != g {
			return
		}
	} else if r.faults++; r.faults == 1 {
		g.sockets.log.Warn("receiving", "family", r.family, "error", err)
		return
	}
	select {
	case <-g.changed:
	case <-time.After(faultPause):
	}
}

// fetch receives messages into slab and spill, waiting for at least one.
func (r *receiver) fetch(sock *socket, slab []byte) error {
	if len(slab) < maxMessage {
		r.aggregating = false
	}
	size := slotSize
	if r.aggregating {
		size = maxMessage
	}
	r.want = min(len(slab)/size, maxMessages)
	for i := range r.want {
		iov := &r.iovs[i]
		iov[0].Base = &slab[i*size]
		iov[0].SetLen(size)
		m := &r.msgs[i].hdr
		m.Iov = &iov[0]
		m.SetIovlen(1)
		if !r.aggregating && sock.gro {
			rest := r.spilled(i)[size:]
			iov[1].Base = &rest[0]
			iov[1].SetLen(len(rest))
			m.SetIovlen(2)
		}
		m.Name, m.Namelen = &r.names[i][0], sockaddrSpace
		m.Control = &r.controls[i][0]
		m.SetControllen(controlSpace)
		m.Flags = 0
	}
	err := sock.raw.Read(r.read)
	clear(r.iovs[:r.want]) // they would hold slabs that the engine's pool has replaced
	if err != nil {
		return err
	}
	if r.errno != 0 {
		return r.errno
	}
	return nil
}

// distribute gives the messages of the last fetch to their takers.
func (r *receiver) distribute(sock *socket, out *output) {
	stride := slotSize
	if r.aggregating {
		stride = maxMessage
	}
	r.aggregating = false
	r.datagrams, r.bytes = 0, 0
	for i := range r.got {
		m := &r.inbox[i]
		r.open(i, m)
		base := i * stride
		if !out.admits(m) {
			r.keep(i, stride, out.slab)
			break
		}
		if m.coalesced() && m.size > stride {
			r.keep(i, stride, out.slab)
			r.handOut(out, base)
			break
		}
		for m.done < m.size && !out.full() {
			b := m.next(out.slab[base:])
			if start, p := r.demux(&m.source, b); p != nil {
				out.add(base+m.done+start, len(b)-start, m, p)
			}
			m.done += len(b)
		}
		if m.done < m.size {
			r.keep(i, stride, out.slab)
			break
		}
	}
	r.aggregating = r.aggregating && r.datagrams >= minCoalesced*r.got
	sock.received(r.datagrams, r.bytes)
}

// open reads what the kernel said about message i into m. A message that is
// dropped as a whole is left empty.
func (r *receiver) open(i int, m *message) {
	h := &r.msgs[i]
	size := int(h.n)
	m.size, m.done = 0, 0
	var o origin
	segment, ecn, ok := parseControl(r.controls[i][:h.hdr.Controllen], &o.local)
	if segment == 0 || segment > size {
		segment = size
	}
	datagrams := 1
	if size > 0 {
		datagrams = (size + segment - 1) / segment
	}
	r.datagrams += datagrams
	r.bytes += size
	switch {
	case !ok:
		r.drop(drop.DatagramNoInfo, datagrams)
		return
	case h.hdr.Flags&unix.MSG_TRUNC != 0 || datagrams == 1 && size > MaxDatagram:
		r.drop(drop.DatagramOversize, datagrams)
		return
	case size == 0:
		r.drop(drop.DatagramUnknown, 1)
		return
	}
	m.size, m.segment, m.congested = size, segment, ecn == ecnCE
	r.aggregating = r.aggregating || datagrams > 1
	o.setRemote(&r.names[i], r.family)
	if relays := r.sockets.relays.Load(); r.last.origin != o || r.last.relays != relays {
		r.last = source{origin: o, relays: relays, relay: findRelay(*relays, o.remoteAddrPort(r.family))}
	}
	m.source = r.last
}

// keep moves what is left of messages i and later to their spill buffers.
func (r *receiver) keep(i, stride int, slab []byte) {
	r.kept, r.keptN = i, r.got
	for j := i; j < r.got; j++ {
		m := &r.inbox[j]
		if j > i {
			r.open(j, m)
		}
		copy(r.spilled(j), slab[j*stride:][:min(m.size, stride)])
	}
}

// handOut copies kept datagrams for the engine to the slab from offset from on,
// until either has no room.
func (r *receiver) handOut(out *output, from int) {
	for ; r.kept < r.keptN; r.kept++ {
		m := &r.inbox[r.kept]
		if !out.admits(m) {
			return
		}
		for m.done < m.size {
			b := m.next(r.spilled(r.kept))
			if out.full() || len(b) <= MaxDatagram && len(b) > len(out.slab)-from {
				return
			}
			m.done += len(b)
			if start, p := r.demux(&m.source, b); p != nil {
				n := copy(out.slab[from:], b[start:])
				out.add(from, n, m, p)
				from += n
			}
		}
	}
}

// demux hands b to its taker. For a datagram of the engine it returns where the
// message starts in b and the path; otherwise the path is nil.
func (r *receiver) demux(src *source, b []byte) (start int, p *Path) {
	if len(b) > MaxDatagram {
		r.drop(drop.DatagramOversize, 1)
		return 0, nil
	}
	// Most of what comes from a relay is this; it need not be classified twice.
	if src.relay != nil && isChannelData(b) {
		return r.unwrap(src, b)
	}
	switch Classify(b) {
	case KindWireGuard:
		return 0, r.path(src)
	case KindSTUN:
		if src.relay != nil {
			r.bind.sinks.Relay(src.relay, b, src.origin.localAddr(r.family))
		} else {
			r.bind.sinks.STUN(b, r.path(src))
		}
	case KindChannelData:
		r.drop(drop.ChannelUnknown, 1)
	default:
		r.drop(drop.DatagramUnknown, 1)
	}
	return 0, nil
}

// unwrap is demux for ChannelData from a relay.
func (r *receiver) unwrap(src *source, b []byte) (start int, p *Path) {
	p = src.relay.Path(binary.BigEndian.Uint16(b))
	if p == nil {
		r.drop(drop.ChannelUnknown, 1)
		return 0, nil
	}
	// Loading first keeps the cache line shared while it is set.
	if !p.received.Load() {
		p.received.Store(true)
	}
	switch payload := b[channelHeader:]; Classify(payload) {
	case KindWireGuard:
		return channelHeader, p
	case KindSTUN:
		r.bind.sinks.STUN(payload, p)
	default:
		r.drop(drop.DatagramUnknown, 1)
	}
	return 0, nil
}

// path returns the interned direct path back to src.
func (r *receiver) path(src *source) *Path {
	if src.path != nil {
		return src.path
	}
	p := r.paths[src.origin]
	if p == nil {
		if len(r.paths) >= maxPaths {
			for o := range r.paths {
				delete(r.paths, o)
				break
			}
		}
		p = r.sockets.Path(src.origin.localAddr(r.family), src.origin.remoteAddrPort(r.family))
		r.paths[src.origin] = p
	}
	src.path = p
	if r.last.origin == src.origin {
		r.last.path = p
	}
	return p
}

func (r *receiver) spilled(i int) []byte { return r.spill[i*maxMessage : (i+1)*maxMessage] }

func (r *receiver) drop(reason drop.Reason, n int) { r.sockets.drops.Add(reason, uint64(n)) }

func (m *message) coalesced() bool { return m.segment < m.size }

// next returns the next datagram of m, whose bytes are in b.
func (m *message) next(b []byte) []byte { return b[m.done:min(m.done+m.segment, m.size)] }

func (s *socket) received(datagrams, bytes int) {
	s.datagramsIn.Add(uint64(datagrams))
	s.bytesIn.Add(uint64(bytes))
	s.batchesIn.Add(1)
}

// newSpill returns memory outside the heap of Go, so that pages which no
// coalesced message ever reached cost nothing.
func newSpill(r *receiver) []byte {
	const size = maxMessages * maxMessage
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return make([]byte, size)
	}
	runtime.AddCleanup(r, func(b []byte) { _ = unix.Munmap(b) }, b)
	return b
}

func recvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
