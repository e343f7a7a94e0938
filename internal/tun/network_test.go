package tun

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestConfigureSetsUpLinkRulesAndRoutes(t *testing.T) {
	ns := enterNamespace(t)
	d := open(t, Auto)
	defer d.Close()
	link := ns.link(testName)
	ns.must(netlink.AddrAdd(link, mustAddr(t, "192.0.2.7/24")))
	ns.must(netlink.AddrAdd(link, mustAddr(t, "100.64.0.1/11"))) // right address, wrong length
	ns.must(netlink.LinkSetMTU(link, 1400))

	for range 2 {
		fam, err := Configure(Network{Link: testName, V4: gatewayV4, V6: gatewayV6})
		if err != nil || fam != (Families{V4: true, V6: true}) {
			t.Fatalf("Configure = %+v, %v", fam, err)
		}
		attrs := ns.link(testName).Attrs()
		if attrs.MTU != 1280 || attrs.TxQLen != 10000 || attrs.RawFlags&unix.IFF_UP == 0 {
			t.Errorf("MTU %d, queue %d, flags %#x", attrs.MTU, attrs.TxQLen, attrs.RawFlags)
		}
		expectAddresses(t, "100.64.0.1/32", "fd00:2021:1111::1/128")
		for _, family := range families {
			if got := ourRules(t, family.id); !slices.Equal(got, wantRules) {
				t.Errorf("%s rules %+v, want %+v", family.name, got, wantRules)
			}
			expectRoute(t, family.id, attrs.Index, family.tunnel.String())
		}
	}

	// Another address replaces the first one, as after a new init.
	if _, err := Configure(Network{Link: testName, V4: clientV4, V6: gatewayV6}); err != nil {
		t.Fatal(err)
	}
	expectAddresses(t, "100.64.0.9/32", "fd00:2021:1111::1/128")

	for range 2 {
		if err := Cleanup(); err != nil {
			t.Errorf("Cleanup: %v", err)
		}
		for _, family := range families {
			if got := ourRules(t, family.id); len(got) != 0 {
				t.Errorf("%s rules %+v after Cleanup", family.name, got)
			}
			for _, p := range policy {
				if got := tableRoutes(t, family.id, p.table); len(got) != 0 {
					t.Errorf("routes %v after Cleanup", got)
				}
			}
		}
	}
}

func TestMarkedPacketsBypassTheTunnel(t *testing.T) {
	ns := enterNamespace(t)
	d := openConfigured(t, Auto)
	defer d.Close()
	index := ns.link(testName).Attrs().Index
	for _, dst := range []netip.Addr{clientV4, clientV6} {
		routes, err := netlink.RouteGet(dst.AsSlice())
		if err != nil || len(routes) != 1 || routes[0].LinkIndex != index {
			t.Errorf("unmarked packets to %v: %+v, %v", dst, routes, err)
		}
		marked, err := netlink.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{Mark: SocketMark})
		if err == nil && len(marked) > 0 && marked[0].LinkIndex == index {
			t.Errorf("marked packets to %v enter the tunnel: %+v", dst, marked)
		}
	}
}

func TestCleanupRemovesLeftoversOfAnEarlierGateway(t *testing.T) {
	ns := enterNamespace(t)
	stale := policyRule(netlink.FAMILY_V4, 77, TableInternet)
	stale.Invert = false
	ns.must(netlink.RuleAdd(stale))
	other := policyRule(netlink.FAMILY_V4, 78, 500)
	ns.must(netlink.RuleAdd(other))
	lo := ns.link("lo").Attrs().Index
	for _, p := range policy {
		ns.must(netlink.RouteAdd(&netlink.Route{LinkIndex: lo, Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), Table: p.table}))
	}
	ns.must(netlink.RouteAdd(&netlink.Route{LinkIndex: lo, Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), Table: 500}))

	ns.must(Cleanup())

	if got := ourRules(t, netlink.FAMILY_V4); len(got) != 0 {
		t.Errorf("rules left: %+v", got)
	}
	for _, p := range policy {
		if got := tableRoutes(t, netlink.FAMILY_V4, p.table); len(got) != 0 {
			t.Errorf("routes left: %v", got)
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	ns.must(err)
	if !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Priority == 78 }) {
		t.Error("a foreign rule was removed")
	}
	if got := tableRoutes(t, netlink.FAMILY_V4, 500); len(got) != 1 {
		t.Error("a foreign route was removed")
	}
}

func TestLinkScopeRoutesAreCopied(t *testing.T) {
	ns := enterNamespace(t)
	d := openConfigured(t, Auto)
	defer d.Close()
	ns.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}))
	for _, side := range []struct{ link, addr string }{{"eth0", "192.0.2.1/24"}, {"eth1", "198.51.100.1/24"}, {testName, "203.0.113.1/24"}} {
		link := ns.link(side.link)
		ns.must(netlink.LinkSetUp(link))
		ns.must(netlink.AddrAdd(link, mustAddr(t, side.addr)))
	}
	ns.must(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.0.0.0/8")), Gw: []byte{192, 0, 2, 9}}))
	ns.must(netlink.LinkSetDown(ns.link("eth1")))

	for range 2 {
		n, err := CopyLinkRoutes(testName)
		if n != 1 || err != nil {
			t.Fatalf("CopyLinkRoutes = %d, %v", n, err)
		}
		got := tableRoutes(t, netlink.FAMILY_V4, TableLink)
		if len(got) != 1 || got[0].Dst.String() != "192.0.2.0/24" || got[0].LinkIndex != ns.link("eth0").Attrs().Index {
			t.Errorf("copies %+v", got)
		}
	}
}

func TestConfigureToleratesOneFamilyFailing(t *testing.T) {
	for _, tc := range []struct {
		name    string
		network Network
		prepare func(t *testing.T)
		want    Families
		fails   bool
	}{
		{name: "IPv6 is disabled", network: Network{V4: gatewayV4, V6: gatewayV6}, prepare: disableIPv6, want: Families{V4: true}},
		{name: "no IPv6 address", network: Network{V4: gatewayV4}, want: Families{V4: true}},
		{name: "no IPv4 address", network: Network{V6: gatewayV6}, want: Families{V6: true}},
		{name: "families swapped", network: Network{V4: gatewayV6, V6: gatewayV4}, fails: true},
		{name: "IPv4 written as IPv6", network: Network{V6: netip.MustParseAddr("::ffff:100.64.0.1")}, fails: true},
		{name: "both fail", network: Network{V6: gatewayV6}, prepare: disableIPv6, fails: true},
		{name: "no such link", network: Network{Link: "absent", V4: gatewayV4}, fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			enterNamespace(t)
			d := open(t, Auto)
			defer d.Close()
			if tc.prepare != nil {
				tc.prepare(t)
			}
			if tc.network.Link == "" {
				tc.network.Link = testName
			}
			got, err := Configure(tc.network)
			if (err != nil) != tc.fails {
				t.Fatalf("Configure: %v", err)
			}
			if !tc.fails && got.Tolerated == nil {
				t.Error("the failing family is not reported")
			}
			got.Tolerated = nil
			if got != tc.want {
				t.Errorf("families %+v, want %+v", got, tc.want)
			}
			if len(ourRules(t, netlink.FAMILY_V6)) > 0 != tc.want.V6 {
				t.Error("IPv6 rules do not match the family's state")
			}
		})
	}
}

type ruleView struct {
	Priority, Table int
	Mark            uint32
	Invert          bool
	Protocol        uint8
}

var wantRules = []ruleView{
	{100, 0x2021fd00, 0xfd002021, true, unix.RTPROT_KERNEL},
	{200, 0x2021fd01, 0xfd002021, true, unix.RTPROT_KERNEL},
	{300, 0x2021fd02, 0xfd002021, true, unix.RTPROT_KERNEL},
}

// ourRules lists the rules that lead to the gateway's tables.
func ourRules(t *testing.T, family int) (views []ruleView) {
	t.Helper()
	rules, err := netlink.RuleList(family)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if isOurTable(r.Table) {
			views = append(views, ruleView{r.Priority, r.Table, r.Mark, r.Invert, r.Protocol})
		}
	}
	return views
}

func tableRoutes(t *testing.T, family, table int) []netlink.Route {
	t.Helper()
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	return routes
}

func expectRoute(t *testing.T, family, index int, dst string) {
	t.Helper()
	routes := tableRoutes(t, family, 0x2021fd00)
	if len(routes) != 1 || routes[0].Dst.String() != dst || routes[0].LinkIndex != index ||
		routes[0].Protocol != unix.RTPROT_STATIC || routes[0].Scope != netlink.SCOPE_UNIVERSE {
		t.Errorf("routes %+v, want %s by link %d", routes, dst, index)
	}
}

func expectAddresses(t *testing.T, want ...string) {
	t.Helper()
	addrs, err := netlink.AddrList((&namespace{tb: t}).link(testName), netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		got = append(got, a.IPNet.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
}

func mustAddr(t *testing.T, s string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func disableIPv6(t *testing.T) {
	t.Helper()
	writeSysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
}
