package scale

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	labnet "firezone-gateway/internal/lab/net"
)

// Every client has one address of each prefix: the one with its number.
var (
	clients4 = netip.MustParsePrefix("198.18.0.0/15")
	clients6 = netip.MustParsePrefix("2001:db8:18::/64")
)

// MaxClients is how many simulated clients there are addresses and session
// indices for.
const MaxClients = 100_000

const (
	clientPort    = 52625
	receiveBuffer = 16 << 20 // bytes; a thousand clients are answered at once
	maxDatagram   = 2048
)

// addressesOf returns the addresses of a client, numbered from 1.
func addressesOf(number uint32) []netip.AddrPort {
	four, six := clients4.Addr().As4(), clients6.Addr().As16()
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(four[:])+number)
	binary.BigEndian.PutUint32(six[12:], number)
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4(four), clientPort),
		netip.AddrPortFrom(netip.AddrFrom16(six), clientPort),
	}
}

// numberOf is the inverse of addressesOf, zero for the address of nobody.
func numberOf(a netip.Addr) uint32 {
	switch {
	case clients4.Contains(a):
		four, base := a.As4(), clients4.Addr().As4()
		return binary.BigEndian.Uint32(four[:]) - binary.BigEndian.Uint32(base[:])
	case clients6.Contains(a):
		six := a.As16()
		return binary.BigEndian.Uint32(six[12:])
	}
	return 0
}

// socket is the one that all clients share in one family. The address that a
// datagram was sent to tells whose it is.
type socket struct {
	conn *net.UDPConn
	four bool
}

// claimAddresses makes a namespace take all addresses of the clients for its own.
func claimAddresses(ns *labnet.Namespace) error {
	// IPv6 does not let a socket send from an address that no device has.
	if err := ns.SetSysctl("net/ipv6/ip_nonlocal_bind", "1"); err != nil {
		return err
	}
	return ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, prefix := range []netip.Prefix{clients4, clients6} {
			err := netlink.RouteAdd(&netlink.Route{
				LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
				Dst: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())},
			})
			if err != nil {
				return fmt.Errorf("take the addresses %v: %w", prefix, err)
			}
		}
		return nil
	})
}

// listen opens a socket of the family of the unspecified address.
func listen(ns *labnet.Namespace, any netip.Addr) (*socket, error) {
	conn, err := ns.ListenUDP(netip.AddrPortFrom(any, clientPort))
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
	if any.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), level, option, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, receiveBuffer),
		)
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare socket: %w", err), conn.Close())
	}
	return &socket{conn: conn, four: any.Is4()}, nil
}

// read hands datagrams to handle until the socket is closed.
func (s *socket) read(handle func(b []byte, local, remote netip.AddrPort)) {
	b, control := make([]byte, maxDatagram), make([]byte, 128)
	for {
		n, used, _, from, err := s.conn.ReadMsgUDPAddrPort(b, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error; the socket goes on
		}
		if local, ok := destination(control[:used]); ok {
			handle(b[:n], netip.AddrPortFrom(local, clientPort), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}
}

// send sends b from one of the clients' addresses. What cannot be sent is lost, as
// on any network.
func (s *socket) send(b []byte, local, remote netip.AddrPort) {
	var control []byte
	if s.four {
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.Addr().As4()})
	} else {
		control = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.Addr().As16()})
	}
	_, _, _ = s.conn.WriteMsgUDPAddrPort(b, control, remote)
}

// destination finds the address that a datagram was sent to.
func destination(control []byte) (netip.Addr, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(m.Data[8:12])), true
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(m.Data[:16])), true
		}
	}
	return netip.Addr{}, false
}
