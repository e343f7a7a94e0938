package relay

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is what every kernel with UDP_SEGMENT accepts.
	maxSegments = 64
	// maxTogether is how many bytes are sent as one message: less than an IP
	// packet of either family can hold.
	maxTogether = 65000
)

// transmitter sends datagrams, those of one size to one destination together by
// UDP_SEGMENT. Payload is not copied, so it must stay until flush. One
// goroutine uses it.
type transmitter struct {
	// sent and refused are told how many datagrams and bytes of payload went
	// out, and how many datagrams the kernel did not take.
	sent    func(datagrams, payload int)
	refused func(datagrams int)

	raw   syscall.RawConn // of the run at hand
	to    *sockaddr
	write func(fd uintptr) bool // made once, so that nothing is allocated
	errno unix.Errno

	hdr     unix.Msghdr
	iovs    [2 * maxSegments]unix.Iovec
	headers [maxSegments][channelHeader]byte
	control [unix.SizeofCmsghdr + 8]byte // of one uint16, aligned

	framed  bool // a header goes before each payload
	count   int  // datagrams
	size    int  // of each but the last, with its header
	total   int
	payload int
	last    bool // the last one is shorter, so it ends the run
}

func newTransmitter(sent func(datagrams, payload int), refused func(datagrams int)) *transmitter {
	t := &transmitter{sent: sent, refused: refused}
	t.write = func(fd uintptr) bool {
		for t.errno = unix.EINTR; t.errno == unix.EINTR; {
			_, _, t.errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&t.hdr)), unix.MSG_DONTWAIT)
		}
		return t.errno != unix.EAGAIN
	}
	cmsg := (*unix.Cmsghdr)(unsafe.Pointer(&t.control[0]))
	cmsg.Level, cmsg.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	cmsg.SetLen(unix.CmsgLen(2))
	return t
}

// add puts a datagram behind those that wait. With a channel, the payload goes
// as ChannelData.
func (t *transmitter) add(raw syscall.RawConn, to *sockaddr, channel uint16, payload []byte) {
	framed := channel != 0
	size := len(payload)
	if framed {
		size += channelHeader
	}
	if t.count > 0 && (t.to != to || t.raw != raw || t.framed != framed || t.last || size > t.size || size == 0 ||
		t.count == maxSegments || t.total+size > maxTogether) {
		t.flush()
	}
	if t.count == 0 {
		t.raw, t.to, t.framed, t.size = raw, to, framed, size
	}
	i := t.count
	if framed {
		header := &t.headers[i]
		binary.BigEndian.PutUint16(header[:], channel)
		binary.BigEndian.PutUint16(header[2:], uint16(len(payload)))
		setIovec(&t.iovs[2*i], header[:])
		setIovec(&t.iovs[2*i+1], payload)
	} else {
		setIovec(&t.iovs[i], payload)
	}
	t.count++
	t.total += size
	t.payload += len(payload)
	t.last = size < t.size || size == 0
}

// flush sends what waits.
func (t *transmitter) flush() {
	if t.count == 0 {
		return
	}
	errno := t.send(0, t.count)
	switch {
	case errno == 0:
		t.sent(t.count, t.payload)
	case t.count > 1:
		// The route may not take so large a message, but the datagrams.
		for i := range t.count {
			if t.send(i, 1) != 0 {
				t.refused(1)
				continue
			}
			t.sent(1, int(t.iovs[(i+1)*t.pieces()-1].Len))
		}
	default:
		t.refused(1)
	}
	clear(t.iovs[:t.count*t.pieces()])
	t.count, t.total, t.payload, t.last = 0, 0, 0, false
}

// send sends some of the datagrams that wait.
func (t *transmitter) send(first, count int) unix.Errno {
	pieces := t.pieces()
	t.hdr = unix.Msghdr{Name: &t.to.raw[0], Namelen: t.to.n, Iov: &t.iovs[first*pieces]}
	t.hdr.SetIovlen(count * pieces)
	if count > 1 {
		binary.NativeEndian.PutUint16(t.control[unix.CmsgLen(0):], uint16(t.size))
		t.hdr.Control = &t.control[0]
		t.hdr.SetControllen(unix.CmsgSpace(2))
	}
	if t.raw.Write(t.write) != nil {
		return unix.EBADF // closed
	}
	return t.errno
}

// pieces returns the number of iovecs of each datagram.
func (t *transmitter) pieces() int {
	if t.framed {
		return 2
	}
	return 1
}

func setIovec(iov *unix.Iovec, b []byte) {
	iov.Base = unsafe.SliceData(b)
	iov.SetLen(len(b))
}

// sockaddr is an address as sockets of one family take it.
type sockaddr struct {
	raw [unix.SizeofSockaddrInet6]byte
	n   uint32
}

// newSockaddr returns a for a socket of family AF_INET6 or, without six, AF_INET.
func newSockaddr(a netip.AddrPort, six bool) *sockaddr {
	s := new(sockaddr)
	binary.BigEndian.PutUint16(s.raw[2:], a.Port())
	if !six {
		binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET)
		address := a.Addr().As4()
		copy(s.raw[4:], address[:])
		s.n = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET6)
	address := a.Addr().As16()
	copy(s.raw[8:], address[:])
	s.n = unix.SizeofSockaddrInet6
	return s
}
