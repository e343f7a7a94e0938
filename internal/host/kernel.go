package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const familyV6 = unix.AF_INET6

// system is what the watch asks of the host.
type system struct {
	readClocks   func() (clocks, error)
	subscribe    func() (subscription, error)
	listDefaults func() (routeSet, error)
}

// subscription yields messages of the kernel until it fails or is closed.
type subscription interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

var kernel = system{readClocks, subscribe, listDefaults}

func readClocks() (clocks, error) {
	var c clocks
	for _, r := range []struct {
		clock int32
		to    *time.Duration
	}{
		{unix.CLOCK_MONOTONIC, &c.before},
		{unix.CLOCK_BOOTTIME, &c.boot},
		{unix.CLOCK_MONOTONIC, &c.after},
	} {
		var t unix.Timespec
		if err := unix.ClockGettime(r.clock, &t); err != nil {
			return clocks{}, fmt.Errorf("clock %d: %w", r.clock, err)
		}
		*r.to = time.Duration(t.Nano())
	}
	return c, nil
}

// subscribe opens a socket for everything that can change routes. Messages about
// routes alone do not tell all: the kernel removes IPv4 routes without a word
// when their link goes down, or when their address or nexthop object is removed.
func subscribe() (subscription, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_NEXTHOP)
}

// matters tells whether the default routes may differ after m. It keeps the
// routes of others, of which a router has many, from causing looks.
func matters(m syscall.NetlinkMessage) bool {
	route := m.Header.Type == unix.RTM_NEWROUTE || m.Header.Type == unix.RTM_DELROUTE
	if !route || len(m.Data) < unix.SizeofRtMsg {
		return true
	}
	r := nl.DeserializeRtMsg(m.Data)
	return r.Dst_len == 0 && r.Table == unix.RT_TABLE_MAIN
}

// listDefaults returns the next hops of the default routes of the main table that
// the kernel uses. The routes of the TUN device are in other tables.
func listDefaults() (routeSet, error) {
	set := routeSet{}
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		err := netlink.RouteListFilteredIter(family, filter, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			set.add(r)
			return true
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	return set, nil
}

// add adds the next hops of r if it is a default route that leads somewhere.
func (s routeSet) add(r netlink.Route) {
	if r.Type != unix.RTN_UNICAST {
		return // unreachable, blackhole and the like
	}
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones != 0 {
			return
		}
	}
	if len(r.MultiPath) == 0 {
		s.addHop(r.Family, r.LinkIndex, r.Flags, r.Gw, r.Via)
	}
	for _, h := range r.MultiPath {
		s.addHop(r.Family, h.LinkIndex, h.Flags, h.Gw, h.Via)
	}
}

func (s routeSet) addHop(family, link, flags int, gateway net.IP, via netlink.Destination) {
	if flags&unix.RTNH_F_DEAD != 0 {
		return // its link is down, the others of the route carry on
	}
	if v, ok := via.(*netlink.Via); ok {
		gateway = v.Addr // an IPv4 route over an IPv6 router
	}
	address, _ := netip.AddrFromSlice(gateway)
	s[nextHop{uint8(family), link, address.Unmap()}] = struct{}{}
}
