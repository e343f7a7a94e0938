package relay

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// receiveBatch is how many messages one system call receives, each of one
	// datagram or of several that the kernel has put together.
	receiveBatch = 16
	messageSpace = 1 << 16
	controlSpace = 64
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// space is what one system call receives into. A receiver holds one only while
// it has datagrams, so that idle allocations cost little.
type space [receiveBatch * messageSpace]byte

var spaces = sync.Pool{New: func() any { return new(space) }}

// receiver takes datagrams from a socket in batches. One goroutine uses it.
type receiver struct {
	raw   syscall.RawConn
	read  func(fd uintptr) bool // made once, so that nothing is allocated
	errno unix.Errno

	msgs     [receiveBatch]mmsghdr
	iovs     [receiveBatch]unix.Iovec
	names    [receiveBatch]unix.RawSockaddrInet6
	controls [receiveBatch][controlSpace]byte
	data     *space // nil while the receiver waits

	count, next int    // messages, and the first that is not begun
	rest        []byte // of the message at hand
	segment     int    // length of each of its datagrams but the last
	from        netip.AddrPort
}

// newReceiver asks the kernel to put datagrams of one sender together, which it
// does since Linux 5.0; older ones deliver them one by one.
func newReceiver(conn net.PacketConn) (*receiver, error) {
	raw, err := rawConn(conn)
	if err != nil {
		return nil, err
	}
	r := &receiver{raw: raw}
	r.read = func(fd uintptr) bool {
		r.hold()
		for r.errno = unix.EINTR; r.errno == unix.EINTR; {
			var n uintptr
			n, _, r.errno = unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), receiveBatch, unix.MSG_DONTWAIT, 0, 0)
			r.count = int(n)
		}
		if r.errno == unix.EAGAIN {
			r.release()
			return false
		}
		return true
	}
	for i := range r.msgs {
		r.iovs[i].SetLen(messageSpace)
		hdr := &r.msgs[i].hdr
		hdr.Iov = &r.iovs[i]
		hdr.SetIovlen(1)
		hdr.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		hdr.Control = &r.controls[i][0]
	}
	err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) })
	return r, err
}

// receive waits for datagrams. The ones before are gone.
func (r *receiver) receive() error {
	for i := range r.msgs {
		hdr := &r.msgs[i].hdr
		hdr.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		hdr.SetControllen(controlSpace)
	}
	r.count, r.next, r.rest = 0, 0, nil
	if err := r.raw.Read(r.read); err != nil {
		r.release()
		return err
	}
	if r.errno != 0 {
		r.count = 0
		r.release()
		return fmt.Errorf("receive: %w", r.errno)
	}
	return nil
}

// take returns the next datagram of the batch, valid until the next receive,
// and its sender. ok is false when there is none left.
func (r *receiver) take() (b []byte, from netip.AddrPort, ok bool) {
	for len(r.rest) == 0 {
		if r.next == r.count {
			return nil, netip.AddrPort{}, false
		}
		i := r.next
		r.next++
		m := &r.msgs[i]
		n := int(m.n)
		r.rest = r.data[i*messageSpace : i*messageSpace+n]
		r.from = addressOf(&r.names[i])
		r.segment = n
		if size := segmentSize(r.controls[i][:m.hdr.Controllen]); size > 0 {
			r.segment = size
		}
		if n == 0 {
			return nil, r.from, true
		}
	}
	n := min(r.segment, len(r.rest))
	b, r.rest = r.rest[:n:n], r.rest[n:]
	return b, r.from, true
}

// hold makes sure that there is space to receive into.
func (r *receiver) hold() {
	if r.data != nil {
		return
	}
	r.data = spaces.Get().(*space)
	for i := range r.iovs {
		r.iovs[i].Base = &r.data[i*messageSpace]
	}
}

// release gives the space back to whoever receives next.
func (r *receiver) release() {
	if r.data == nil {
		return
	}
	spaces.Put(r.data)
	r.data = nil
	for i := range r.iovs {
		r.iovs[i].Base = nil
	}
}

// segmentSize returns the size that UDP_GRO reports, 0 for a single datagram.
func segmentSize(control []byte) int {
	for len(control) > 0 {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if hdr.Level == unix.SOL_UDP && hdr.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		control = rest
	}
	return 0
}

func addressOf(name *unix.RawSockaddrInet6) netip.AddrPort {
	// The port is at the same place in both families, in network byte order.
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
	if name.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), port)
}

func rawConn(conn net.PacketConn) (syscall.RawConn, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is not a socket of the system", conn)
	}
	return sc.SyscallConn()
}
