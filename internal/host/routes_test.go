package host

import (
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Everything here runs in the namespace, inside of do. A hop is "gateway link".

func (n *hostNetwork) add(hops ...string) {
	n.t.Helper()
	for _, hop := range hops {
		n.addWith(hop, func(*netlink.Route) {})
	}
}

func (n *hostNetwork) addWith(hop string, edit func(*netlink.Route)) {
	n.t.Helper()
	r := n.route(hop)
	edit(r)
	n.must(netlink.RouteAdd(r))
}

func (n *hostNetwork) replace(hop string) {
	n.t.Helper()
	n.must(netlink.RouteReplace(n.route(hop)))
}

func (n *hostNetwork) remove(hops ...string) {
	n.t.Helper()
	for _, hop := range hops {
		n.must(netlink.RouteDel(n.route(hop)))
	}
}

// replaceMultipath replaces the default route of the hops' family by one with
// these paths, the first of which has a weight.
func (n *hostNetwork) replaceMultipath(weight int, hops ...string) {
	n.t.Helper()
	r := n.route(hops[0])
	for _, hop := range hops {
		path := n.route(hop)
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: path.LinkIndex, Gw: path.Gw, Flags: path.Flags})
	}
	r.MultiPath[0].Hops = weight - 1
	r.LinkIndex, r.Gw, r.Flags = 0, nil, 0
	n.must(netlink.RouteReplace(r))
}

func (n *hostNetwork) route(hop string) *netlink.Route {
	n.t.Helper()
	gateway, device, _ := strings.Cut(hop, " ")
	r := &netlink.Route{LinkIndex: n.link(device).Attrs().Index, Dst: cidr("::/0"), Gw: net.ParseIP(gateway)}
	r.SetFlag(netlink.FLAG_ONLINK)
	if v4 := r.Gw.To4(); v4 != nil {
		r.Dst, r.Gw = cidr("0.0.0.0/0"), v4
	}
	return r
}

func (n *hostNetwork) removeAddress(device, address string) {
	n.t.Helper()
	a, err := netlink.ParseAddr(address)
	n.must(err)
	n.must(netlink.AddrDel(n.link(device), a))
}

// Attributes of nexthop objects (linux/nexthop.h, linux/rtnetlink.h), of which
// the netlink library knows nothing.
const (
	nexthopID      = 1
	nexthopLink    = 5
	nexthopGateway = 6
	routeNexthopID = 30
)

// nexthopHeader is struct nhmsg.
type nexthopHeader struct{ family, scope, protocol byte }

func (h nexthopHeader) Len() int { return 8 }

func (h nexthopHeader) Serialize() []byte {
	return []byte{h.family, h.scope, h.protocol, 0, 0, 0, 0, 0}
}

func (n *hostNetwork) addNexthop(id uint32, gateway, device string) {
	n.t.Helper()
	n.request(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		nexthopHeader{family: unix.AF_INET, protocol: unix.RTPROT_STATIC},
		nl.NewRtAttr(nexthopID, nl.Uint32Attr(id)),
		nl.NewRtAttr(nexthopLink, nl.Uint32Attr(uint32(n.link(device).Attrs().Index))),
		nl.NewRtAttr(nexthopGateway, net.ParseIP(gateway).To4()))
}

func (n *hostNetwork) removeNexthop(id uint32) {
	n.t.Helper()
	n.request(unix.RTM_DELNEXTHOP, 0, nexthopHeader{}, nl.NewRtAttr(nexthopID, nl.Uint32Attr(id)))
}

// addByNexthop adds an IPv4 default route that uses a nexthop object.
func (n *hostNetwork) addByNexthop(id uint32) {
	n.t.Helper()
	route := nl.NewRtMsg()
	route.Family = unix.AF_INET
	n.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, route, nl.NewRtAttr(routeNexthopID, nl.Uint32Attr(id)))
}

func (n *hostNetwork) request(kind, flags int, data ...nl.NetlinkRequestData) {
	n.t.Helper()
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	for _, d := range data {
		r.AddData(d)
	}
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	n.must(err)
}

func cidr(s string) *net.IPNet {
	_, prefix, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return prefix
}
