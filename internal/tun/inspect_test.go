package tun

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMissingNamesWhatSomebodyHasUndone(t *testing.T) {
	ns := enterNamespace(t)
	d := open(t, Auto)
	n := Network{Link: testName, V4: gatewayV4, V6: gatewayV6}
	must := func(err error) { t.Helper(); ns.must(err) }
	missing := func() string {
		t.Helper()
		list, err := n.Missing()
		must(err)
		return strings.Join(list, ", ")
	}
	if got := missing(); !strings.Contains(got, "IPv4 address") || !strings.Contains(got, "link is down") {
		t.Errorf("before the first configuration: %s", got)
	}
	link := func() netlink.Link { return ns.link(testName) }
	delAddr := func(a string) func() { return func() { must(netlink.AddrDel(link(), mustAddr(t, a))) } }
	for _, tc := range []struct {
		name, want string
		undo       func()
	}{
		{"nothing", "", func() {}},
		{"something that is not ours", "", func() { must(netlink.AddrAdd(link(), mustAddr(t, "192.0.2.7/24"))) }},
		{"the IPv4 address", "IPv4 address, IPv4 route", delAddr("100.64.0.1/32")},
		{"the IPv6 address", "IPv6 address", delAddr("fd00:2021:1111::1/128")},
		{"the IPv4 route", "IPv4 route", func() { must(flushTables(unix.AF_INET)) }},
		{"the IPv6 route", "IPv6 route", func() { must(flushTables(unix.AF_INET6)) }},
		{"the IPv4 rules", "IPv4 rule 100, IPv4 rule 200, IPv4 rule 300, IPv4 route", func() { must(removeRules(unix.AF_INET)) }},
		{"one IPv6 rule", "IPv6 rule 200", func() { must(netlink.RuleDel(policyRule(unix.AF_INET6, 200, TableLink))) }},
		{"the MTU", "link sizes", func() { must(netlink.LinkSetMTU(link(), 1400)) }},
		{"the link, set down", "link is down, IPv4 route, IPv6 address, IPv6 route", func() { must(netlink.LinkSetDown(link())) }},
	} {
		fam, err := Configure(n)
		if err != nil || fam != (Families{V4: true, V6: true}) {
			t.Fatalf("Configure = %+v, %v", fam, err)
		}
		if got := missing(); got != "" {
			t.Fatalf("%s: missing before: %s", tc.name, got)
		}
		tc.undo()
		if got := missing(); got != tc.want {
			t.Errorf("without %s: missing %q, want %q", tc.name, got, tc.want)
		}
	}
	must(d.Close())
	if got := missing(); got != "link" {
		t.Errorf("without the link: missing %q", got)
	}
}

func TestMissingLooksAtNoFamilyThatIsLeftOut(t *testing.T) {
	enterNamespace(t)
	d := open(t, Auto)
	defer d.Close()
	disableIPv6(t)
	fam, err := Configure(Network{Link: testName, V4: gatewayV4, V6: gatewayV6})
	if err != nil || !fam.V4 || fam.V6 {
		t.Fatalf("Configure = %+v, %v", fam, err)
	}
	if got, err := (Network{Link: testName, V4: gatewayV4}).Missing(); err != nil || len(got) != 0 {
		t.Errorf("missing %q, %v", got, err)
	}
	if got, err := (Network{Link: testName, V4: gatewayV4, V6: gatewayV6}).Missing(); err != nil || !slices.Contains(got, "IPv6 address") {
		t.Errorf("missing %q, %v", got, err)
	}
}

// A way to clients that leads elsewhere is as bad as none.
func TestMissingFindsAWayThatLeadsElsewhere(t *testing.T) {
	ns := enterNamespace(t)
	d := openConfigured(t, Auto)
	defer d.Close()
	ns.must(netlink.RouteReplace(&netlink.Route{LinkIndex: ns.link("lo").Attrs().Index, Dst: ipNet(TunnelV4), Table: TableUser}))
	if got, err := (Network{Link: testName, V4: gatewayV4}).Missing(); err != nil || !slices.Equal(got, []string{"IPv4 route"}) {
		t.Errorf("missing %q, %v", got, err)
	}
}

func TestTheNeighbourOfATunnelAddressIsOne(t *testing.T) {
	for _, a := range []string{"100.64.0.0", "100.95.255.255", "fd00:2021:1111::", "fd00:2021:1111::1f:ffff"} {
		own := netip.MustParseAddr(a)
		if n := neighbour(own); n == own || !TunnelV4.Contains(n) && !TunnelV6.Contains(n) {
			t.Errorf("neighbour of %v is %v", own, n)
		}
	}
}

func TestMissingNamesFirewallRulesThatAreGone(t *testing.T) {
	ns := enterNamespace(t)
	m := Masquerade{Link: testName, V4: true, V6: true}
	missing := func() string {
		t.Helper()
		list, err := m.Missing()
		ns.must(err)
		return strings.Join(list, ", ")
	}
	const forward, postrouting = "firewall rules of forward", "firewall rules of postrouting"
	if got := missing(); got != forward+", "+postrouting {
		t.Errorf("before the first installation: %q", got)
	}
	c, err := nftables.New()
	ns.must(err)
	for _, tc := range []struct {
		name, want string
		undo       func()
	}{
		{"nothing", "", func() {}},
		{"the whole ruleset", forward + ", " + postrouting, func() { c.FlushRuleset() }},
		{"the rules of a chain", forward, func() { c.FlushChain(&nftables.Chain{Name: chainForward, Table: ownTable()}) }},
		{"one rule", postrouting, func() {
			rules, err := c.GetRules(ownTable(), &nftables.Chain{Name: chainPostrouting, Table: ownTable()})
			ns.must(err)
			ns.must(c.DelRule(rules[0]))
		}},
	} {
		ns.must(m.Install())
		if got := missing(); got != "" {
			t.Fatalf("%s: missing before: %s", tc.name, got)
		}
		tc.undo()
		ns.must(c.Flush())
		if got := missing(); got != tc.want {
			t.Errorf("without %s: missing %q, want %q", tc.name, got, tc.want)
		}
	}
	ns.must(m.Install())
	ns.must(m.Remove())
}

func TestForwardingMissingNamesWhatIsSwitchedOff(t *testing.T) {
	enterNamespace(t)
	if _, err := EnableForwarding(); err != nil {
		t.Fatal(err)
	}
	if got := ForwardingMissing(); len(got) != 0 {
		t.Fatalf("missing %q", got)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if got := ForwardingMissing(); !slices.Equal(got, []string{"net.ipv4.ip_forward"}) {
		t.Errorf("missing %q", got)
	}
}
