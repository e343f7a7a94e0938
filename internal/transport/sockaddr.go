package transport

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Family selects one of the two sockets.
type Family uint8

// The families. They index arrays.
const (
	IPv4 Family = iota
	IPv6
	families = 2
)

// String returns "ipv4" or "ipv6".
func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// FamilyOf returns the family of the socket that reaches a.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

const (
	sockaddrSpace = unix.SizeofSockaddrInet6
	// infoSpace holds the packet info of either family as a control message.
	infoSpace = 40
	// controlSpace holds packet info, a segment size and a TOS or traffic class,
	// each padded.
	controlSpace = 88
)

// sockaddr is a socket address as the kernel reads it.
type sockaddr struct {
	raw [sockaddrSpace]byte
	n   uint32
}

func (s *sockaddr) set(ap netip.AddrPort) {
	a := ap.Addr().Unmap()
	s.raw = [sockaddrSpace]byte{}
	binary.BigEndian.PutUint16(s.raw[2:], ap.Port())
	if a.Is4() {
		binary.NativeEndian.PutUint16(s.raw[0:], unix.AF_INET)
		a4 := a.As4()
		copy(s.raw[4:], a4[:])
		s.n = unix.SizeofSockaddrInet4
		return
	}
	binary.NativeEndian.PutUint16(s.raw[0:], unix.AF_INET6)
	a16 := a.As16()
	copy(s.raw[8:], a16[:])
	binary.NativeEndian.PutUint32(s.raw[24:], zoneIndex(a.Zone()))
	s.n = unix.SizeofSockaddrInet6
}

// origin is where a received message came from and which local address it
// reached, in the kernel's byte order. It is comparable.
type origin struct {
	remote [16]byte
	local  [16]byte
	scope  uint32
	port   uint16
}

// setRemote takes the source from raw, as written by the kernel for family f.
func (o *origin) setRemote(raw *[sockaddrSpace]byte, f Family) {
	o.port = binary.BigEndian.Uint16(raw[2:])
	if f == IPv4 {
		o.remote = [16]byte{}
		copy(o.remote[:4], raw[4:8])
		o.scope = 0
		return
	}
	copy(o.remote[:], raw[8:24])
	o.scope = binary.NativeEndian.Uint32(raw[24:])
}

func (o *origin) remoteAddrPort(f Family) netip.AddrPort {
	a := o.addr(&o.remote, f)
	if o.scope != 0 {
		a = a.WithZone(strconv.Itoa(int(o.scope)))
	}
	return netip.AddrPortFrom(a, o.port)
}

func (o *origin) localAddr(f Family) netip.Addr { return o.addr(&o.local, f) }

func (o *origin) addr(raw *[16]byte, f Family) netip.Addr {
	if f == IPv4 {
		return netip.AddrFrom4([4]byte(raw[:4]))
	}
	return netip.AddrFrom16(*raw)
}

// putPacketInfo writes the control message that makes local the source address
// of a datagram and returns its padded length. It writes nothing when local is
// invalid or unspecified: the kernel chooses then.
func putPacketInfo(b []byte, local netip.Addr) int {
	local = local.Unmap()
	if !local.IsValid() || local.IsUnspecified() {
		return 0
	}
	if local.Is4() {
		info := putHeader(b, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		a := local.As4()
		copy(info[4:], a[:]) // ipi_spec_dst
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	info := putHeader(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
	a := local.As16()
	copy(info, a[:])
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// putSegmentSize writes the control message that makes the kernel cut the
// message into datagrams of size bytes, and returns its padded length.
func putSegmentSize(b []byte, size int) int {
	data := putHeader(b, unix.SOL_UDP, unix.UDP_SEGMENT, 2)
	binary.NativeEndian.PutUint16(data, uint16(size))
	return unix.CmsgSpace(2)
}

func putHeader(b []byte, level, kind int32, n int) (data []byte) {
	clear(b[:unix.CmsgSpace(n)])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	return b[unix.CmsgLen(0):unix.CmsgLen(n)]
}

// parseControl reads the control messages of a received message: the local
// address into local, the segment size, which is zero when the kernel did not
// coalesce, and the ECN field. It returns false without packet info.
func parseControl(b []byte, local *[16]byte) (segment int, ecn byte, ok bool) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := uint64(h.Len) //nolint:unconvert // it is 32 bits wide on 32-bit systems
		if n < unix.SizeofCmsghdr || n > uint64(len(b)) {
			break
		}
		data := b[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			*local = [16]byte{}
			copy(local[:4], data[4:8])
			ok = true
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			copy(local[:], data[:16])
			ok = true
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = max(0, int(int32(binary.NativeEndian.Uint32(data))))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			ecn = data[0] & ecnMask
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			ecn = byte(binary.NativeEndian.Uint32(data)) & ecnMask
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
	return segment, ecn, ok
}

func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if iface, err := net.InterfaceByName(zone); err == nil {
		return uint32(iface.Index)
	}
	return 0
}
