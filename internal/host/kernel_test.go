package host

import (
	"maps"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestRouteSetTakesWaysToTheInternetOnly(t *testing.T) {
	prefix := func(cidr string) *net.IPNet {
		_, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ip := net.ParseIP
	route := func(edit func(*netlink.Route)) netlink.Route {
		r := netlink.Route{Family: unix.AF_INET, Type: unix.RTN_UNICAST, LinkIndex: 2, Gw: ip("192.0.2.1").To4(), Dst: prefix("0.0.0.0/0")}
		edit(&r)
		return r
	}
	for _, tc := range []struct {
		name string
		edit func(*netlink.Route)
		want routeSet
	}{
		{"a gateway", func(*netlink.Route) {}, setOf(wired4)},
		{"a destination that is left out", func(r *netlink.Route) { r.Dst = nil }, setOf(wired4)},
		{"a gateway in the long form", func(r *netlink.Route) { r.Gw = ip("192.0.2.1").To16() }, setOf(wired4)},
		{"an IPv6 gateway", func(r *netlink.Route) { r.Family, r.Gw, r.Dst = unix.AF_INET6, ip("fe80::1"), prefix("::/0") }, setOf(wired6)},
		{"no gateway", func(r *netlink.Route) { r.LinkIndex, r.Gw = 4, nil }, setOf(modem4)},
		{"no default route", func(r *netlink.Route) { r.Dst = prefix("0.0.0.0/1") }, setOf()},
		{"an unreachable route", func(r *netlink.Route) { r.Type, r.Gw = unix.RTN_UNREACHABLE, nil }, setOf()},
		{"a blackhole", func(r *netlink.Route) { r.Type, r.Gw, r.LinkIndex = unix.RTN_BLACKHOLE, nil, 0 }, setOf()},
		{"a dead link", func(r *netlink.Route) { r.Flags = unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN }, setOf()},
		{"a link without carrier that is used all the same", func(r *netlink.Route) { r.Flags = unix.RTNH_F_LINKDOWN }, setOf(wired4)},
		{
			"an IPv6 router for IPv4",
			func(r *netlink.Route) {
				r.Gw, r.Via = nil, &netlink.Via{AddrFamily: unix.AF_INET6, Addr: ip("fe80::1")}
			},
			setOf(nextHop{unix.AF_INET, 2, netip.MustParseAddr("fe80::1")}),
		},
		{"several paths", func(r *netlink.Route) {
			r.LinkIndex, r.Gw = 0, nil
			r.MultiPath = []*netlink.NexthopInfo{{LinkIndex: 2, Gw: ip("192.0.2.1").To4(), Hops: 5}, {LinkIndex: 3, Gw: ip("198.51.100.1").To4()}, {LinkIndex: 4}}
		}, setOf(wired4, wireless4, modem4)},
		{"several paths of which one is dead", func(r *netlink.Route) {
			r.LinkIndex, r.Gw = 0, nil
			r.MultiPath = []*netlink.NexthopInfo{{LinkIndex: 2, Gw: ip("192.0.2.1").To4(), Flags: unix.RTNH_F_DEAD}, {LinkIndex: 3, Gw: ip("198.51.100.1").To4()}}
		}, setOf(wireless4)},
		{"what is refreshed", func(r *netlink.Route) {
			r.Priority, r.Protocol, r.MTU, r.Tos, r.Src = 600, unix.RTPROT_RA, 1400, 4, ip("192.0.2.7")
		}, setOf(wired4)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := routeSet{}
			got.add(route(tc.edit))
			if !maps.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

func TestMessagesMatterUnlessTheyAreAboutOtherRoutes(t *testing.T) {
	route := func(table, bits byte) []byte {
		return []byte{unix.AF_INET, bits, 0, 0, table, unix.RTPROT_STATIC, 0, unix.RTN_UNICAST, 0, 0, 0, 0}
	}
	for _, tc := range []struct {
		name string
		kind uint16
		data []byte
		want bool
	}{
		{"a new default route", unix.RTM_NEWROUTE, route(unix.RT_TABLE_MAIN, 0), true},
		{"a removed default route", unix.RTM_DELROUTE, route(unix.RT_TABLE_MAIN, 0), true},
		{"a new route to a network", unix.RTM_NEWROUTE, route(unix.RT_TABLE_MAIN, 24), false},
		{"a removed route to a network", unix.RTM_DELROUTE, route(unix.RT_TABLE_MAIN, 1), false},
		{"a default route of a small table", unix.RTM_NEWROUTE, route(100, 0), false},
		{"a default route of a large table, such as the gateway's", unix.RTM_NEWROUTE, route(unix.RT_TABLE_COMPAT, 0), false},
		{"a short message about a route", unix.RTM_NEWROUTE, route(100, 24)[:11], true},
		{"a link", unix.RTM_NEWLINK, nil, true},
		{"an address", unix.RTM_DELADDR, route(100, 24), true},
		{"a nexthop object", unix.RTM_DELNEXTHOP, route(100, 24), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := matters(message(tc.kind, tc.data)); got != tc.want {
				t.Errorf("matters: %v", got)
			}
		})
	}
}

func FuzzMatters(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWROUTE), []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 4, 0, 1, 0, 0, 0, 0})
	f.Add(uint16(unix.RTM_DELROUTE), []byte{unix.AF_INET6, 64, 0, 0, 252, 2, 0, 1, 0, 0, 0, 0, 8, 0})
	f.Add(uint16(unix.RTM_NEWROUTE), []byte{})
	f.Add(uint16(unix.RTM_NEWLINK), []byte{1})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		about := (kind == unix.RTM_NEWROUTE || kind == unix.RTM_DELROUTE) && len(data) >= unix.SizeofRtMsg
		other := about && (data[1] != 0 || data[4] != unix.RT_TABLE_MAIN)
		if got := matters(message(kind, data)); got == other {
			t.Errorf("matters is %v for kind %d, %x", got, kind, data)
		}
	})
}

func message(kind uint16, data []byte) syscall.NetlinkMessage {
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
}
