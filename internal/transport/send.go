package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"unsafe"

	"firezone-gateway/internal/drop"

	"golang.org/x/sys/unix"
)

const (
	// maxBatch is how many datagrams one system call sends.
	maxBatch = 128
	// maxSegments is what every kernel with UDP_SEGMENT accepts; since 6.9 it
	// would be 128 (include/linux/udp.h).
	maxSegments = 64
	// bufferRetries bounds the attempts after ENOBUFS, which polling cannot wait
	// for: the socket is writable all the time.
	bufferRetries = 3
)

// maxCoalesced is how many bytes of payload the datagrams of one message have
// at most: 65535 less the UDP header and, for IPv4, the IP header.
var maxCoalesced = [families]int{IPv4: 65535 - 28, IPv6: 65535 - 8}

// ErrTooLong is returned for a datagram above MaxDatagram.
var ErrTooLong = errors.New("datagram too long")

// SendTo sends b, which is copied, on p: from the local address of a direct
// path, or within ChannelData. It never waits: an error says that b was not sent,
// unix.EAGAIN that the socket's buffer is full. Drops are counted.
func (s *Sockets) SendTo(b []byte, p *Path) error {
	t := s.pool.Get().(*transmission)
	defer s.pool.Put(t)
	n := 0
	if p.relay != nil {
		n = channelHeader
	}
	if len(b) > MaxDatagram-n {
		s.drops.Add(drop.DatagramOversize, 1)
		return ErrTooLong
	}
	if p.relay != nil {
		putChannelHeader(t.scratch[:], p.channel, len(b))
	}
	n += copy(t.scratch[n:], b)
	return s.sendOne(t, p.family, &p.to, p.info[:p.infoLen], n)
}

// SendToServer sends b, which is copied, to a TURN server from a source address
// that the kernel chooses. It never waits; errors are those of SendTo.
func (s *Sockets) SendToServer(b []byte, server netip.AddrPort) error {
	if len(b) > MaxDatagram {
		s.drops.Add(drop.DatagramOversize, 1)
		return ErrTooLong
	}
	t := s.pool.Get().(*transmission)
	defer s.pool.Put(t)
	t.to.set(server)
	return s.sendOne(t, FamilyOf(server.Addr()), &t.to, nil, copy(t.scratch[:], b))
}

// sendOne sends the first n bytes of the scratch buffer of t.
func (s *Sockets) sendOne(t *transmission, f Family, to *sockaddr, info []byte, n int) error {
	sock := s.sockets[f]
	if sock == nil {
		s.drops.Add(drop.SendFailed, 1)
		return fmt.Errorf("send on %v: %w", f, unix.EAFNOSUPPORT)
	}
	t.add(to, info, t.scratch[:n])
	defer t.reset()
	if err := sock.raw.Control(t.attempt(sock)); err != nil {
		s.drops.Add(drop.SendFailed, 1)
		return net.ErrClosed
	}
	if t.errno != 0 {
		s.drops.Add(drop.SendFailed, 1)
		return fmt.Errorf("send on %v: %w", f, t.errno)
	}
	sock.sent(t.msgs[:1], 1)
	return nil
}

// sendBatch sends bufs[i][offset:] on p in order. For a relayed path the four
// bytes before offset are overwritten. What is not sent is counted; an error means
// that nothing can be sent. A path whose source address is gone stays without
// effect: the peer must not hear from another one (T-06), least of all take it for
// an answer to its checks.
func (s *Sockets) sendBatch(p *Path, bufs [][]byte, offset int) error {
	sock := s.sockets[p.family]
	if sock == nil {
		s.drops.Add(drop.SendFailed, uint64(len(bufs)))
		return nil
	}
	at := offset
	if p.relay != nil {
		if offset < channelHeader {
			return fmt.Errorf("headroom of %d bytes for ChannelData: %w", offset, unix.EINVAL)
		}
		offset -= channelHeader
		for _, b := range bufs {
			putChannelHeader(b[offset:], p.channel, len(b)-offset-channelHeader)
		}
	}
	t := s.pool.Get().(*transmission)
	defer s.pool.Put(t)
	coalesce := sock.gso.Load()
	for len(bufs) > 0 {
		oversize, end := t.fill(p, bufs, offset, at, coalesce)
		s.drops.Add(drop.DatagramOversize, uint64(oversize))
		done, failed, err := sock.flush(t)
		t.reset()
		s.drops.Add(drop.SendFailed, uint64(failed))
		if err != nil {
			s.drops.Add(drop.SendFailed, uint64(len(bufs)-end))
			return err
		}
		if done == retrySingly {
			coalesce = false
			end = t.resume
		}
		bufs = bufs[end:]
	}
	return nil
}

// outcome says how far a flush came.
type outcome uint8

const (
	flushed     outcome = iota // every message was sent or dropped
	retrySingly                // from transmission.resume on, without coalescing
)

// flush sends the messages of t, waiting for room in the socket's buffer, and
// returns the number of datagrams that were dropped.
func (s *socket) flush(t *transmission) (o outcome, failed int, err error) {
	try, wait := t.attempt(s), t.wait
	retries := 0
	for t.next < t.count {
		err := s.raw.Control(try)
		if err == nil && t.errno == unix.EAGAIN {
			err = s.raw.Write(wait)
		}
		if err != nil {
			return flushed, failed + t.rest(), net.ErrClosed
		}
		segments := int(t.segments[t.next])
		switch errno := t.errno; {
		case errno == 0:
			datagrams := 0
			for i := t.next; i < t.next+t.sent; i++ {
				datagrams += int(t.segments[i])
			}
			s.sent(t.msgs[t.next:t.next+t.sent], datagrams)
			t.next += t.sent
			retries = 0
		case segments > 1 && offloadRefused(errno):
			// EIO is the device's or the route's lack of checksums and will stay. The
			// others are about this size on this route: singly they may be fragmented.
			if errno == unix.EIO && s.gso.CompareAndSwap(true, false) {
				s.log.Warn("UDP segmentation offload is refused, sending without", "family", s.family)
			}
			t.resume = int(t.start[t.next])
			return retrySingly, failed, nil
		case errno == unix.ENOBUFS && retries < bufferRetries:
			retries++
			runtime.Gosched()
		case errno == unix.EMSGSIZE, errno == unix.ENOBUFS:
			failed += segments
			t.next++
			retries = 0
		default:
			// Refused by route, address or firewall: so would be the rest.
			failed += t.rest()
			t.next = t.count
		}
	}
	return flushed, failed, nil
}

func offloadRefused(errno unix.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE
}

func (s *socket) sent(msgs []mmsghdr, datagrams int) {
	var bytes uint64
	for i := range msgs {
		bytes += uint64(msgs[i].n)
	}
	s.datagramsOut.Add(uint64(datagrams))
	s.bytesOut.Add(bytes)
	s.batchesOut.Add(1)
}

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// transmission is the reusable memory of one call to sendmmsg. It must not be
// copied: the kernel's structures point into it.
type transmission struct {
	msgs     [maxBatch]mmsghdr
	iovs     [maxBatch]unix.Iovec
	controls [maxBatch][controlSpace]byte // of messages that need more than the path's
	segments [maxBatch]uint8              // datagrams in each message
	start    [maxBatch]uint8              // index of the first buffer of each message
	count    int                          // messages
	used     int                          // iovecs

	next   int // first message that is not sent
	resume int // first buffer that is not sent, after retrySingly
	sent   int // result of the last attempt
	errno  unix.Errno

	to      sockaddr
	scratch [MaxDatagram]byte

	sock *socket
	try  func(fd uintptr)      // one attempt; made once so that no call allocates
	wait func(fd uintptr) bool // the same for the poller
}

func newTransmission() *transmission {
	t := new(transmission)
	t.try = func(fd uintptr) { t.sent, t.errno = t.sock.sendmm(int(fd), t.msgs[t.next:t.count]) }
	t.wait = func(fd uintptr) bool {
		t.try(fd)
		return t.errno != unix.EAGAIN
	}
	return t
}

// attempt returns t.try, bound to s.
func (t *transmission) attempt(s *socket) func(fd uintptr) {
	t.sock, t.next, t.errno = s, 0, 0
	return t.try
}

// fill describes bufs[i][offset:], whose WireGuard messages begin at bufs[i][at],
// as messages on p, equal lengths with equal ECN fields put together when coalesce
// is set; a shorter one ends its message. It takes at most maxBatch buffers and
// returns how many it took and how many of them were too long.
func (t *transmission) fill(p *Path, bufs [][]byte, offset, at int, coalesce bool) (oversize, end int) {
	limit := maxCoalesced[p.family]
	size, total, open := 0, 0, false // of the message that may still grow
	var ecn byte
	for i, b := range bufs[:min(len(bufs), maxBatch)] {
		field := ecnOf(b, at)
		b = b[offset:]
		end = i + 1
		if len(b) > MaxDatagram {
			oversize++
			continue
		}
		if open && field == ecn && len(b) <= size && total+len(b) <= limit && t.segments[t.count-1] < maxSegments {
			t.extend(b)
			total += len(b)
			open = len(b) == size
			continue
		}
		t.seal(p, size, ecn)
		t.start[t.count] = uint8(i)
		t.add(&p.to, p.info[:p.infoLen], b)
		size, total, open, ecn = len(b), len(b), coalesce && len(b) > 0, field
	}
	t.seal(p, size, ecn)
	return oversize, end
}

// add begins a message with one datagram.
func (t *transmission) add(to *sockaddr, info, b []byte) {
	m := &t.msgs[t.count].hdr
	m.Name, m.Namelen = &to.raw[0], to.n
	m.Control = unsafe.SliceData(info)
	m.SetControllen(len(info))
	m.Iov = &t.iovs[t.used]
	t.segments[t.count] = 0
	t.count++
	t.extend(b)
}

// extend puts one more datagram into the last message.
func (t *transmission) extend(b []byte) {
	iov := &t.iovs[t.used]
	iov.Base = unsafe.SliceData(b)
	iov.SetLen(len(b))
	t.used++
	t.segments[t.count-1]++
	t.msgs[t.count-1].hdr.SetIovlen(int(t.segments[t.count-1]))
}

// seal ends the last message: one with several datagrams needs their size, and
// their ECN field may have to be set.
func (t *transmission) seal(p *Path, size int, ecn byte) {
	if t.count == 0 || t.segments[t.count-1] < 2 && ecn == 0 {
		return
	}
	control := &t.controls[t.count-1]
	n := copy(control[:], p.info[:p.infoLen])
	if t.segments[t.count-1] > 1 {
		n += putSegmentSize(control[n:], size)
	}
	if ecn != 0 {
		n += putECN(control[n:], p.family, ecn)
	}
	m := &t.msgs[t.count-1].hdr
	m.Control = &control[0]
	m.SetControllen(n)
}

// rest returns the number of datagrams that are not sent.
func (t *transmission) rest() (datagrams int) {
	for _, n := range t.segments[t.next:t.count] {
		datagrams += int(n)
	}
	return datagrams
}

// reset forgets the messages and lets go of the buffers.
func (t *transmission) reset() {
	clear(t.iovs[:t.used])
	t.count, t.used = 0, 0
}

func putChannelHeader(b []byte, channel uint16, n int) {
	binary.BigEndian.PutUint16(b, channel)
	binary.BigEndian.PutUint16(b[2:], uint16(n))
}

func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
