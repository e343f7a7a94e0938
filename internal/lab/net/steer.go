package labnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Priorities of the rules of a router with a box. The first table that has a
// route to a packet's destination decides; that of what is local is the kernel's.
const (
	beforeLocal = 10
	localAgain  = 20
	afterLocal  = 30
	localTable  = unix.RT_TABLE_LOCAL
)

// steer makes the router's kernel pass what comes from the devices lan and wan
// to the box, except what is for the router itself. Where the box translates,
// packets to the router's public address pass it as well; what the box leaves to
// the router comes back from it.
func (n *Namespace) steer(lan, wan string, translates bool) error {
	for _, way := range []struct {
		device string
		table  int
	}{{boxInner, boxInnerTable}, {boxOuter, boxOuterTable}} {
		if err := n.enableBoxDevice(way.device, way.table); err != nil {
			return err
		}
	}
	var errs []error
	add := func(family, priority, table int, device string, protocol int) {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.IifName, rule.IPProto = family, priority, table, device, protocol
		if err := n.links.RuleAdd(rule); err != nil {
			errs = append(errs, fmt.Errorf("rule for %s: %w", device, err))
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		add(family, afterLocal, boxInnerTable, lan, 0)
		add(family, afterLocal, boxOuterTable, wan, 0)
	}
	if translates {
		// By protocol, because ARP looks for the address among what is local.
		for _, protocol := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMP} {
			add(unix.AF_INET, beforeLocal, boxOuterTable, wan, protocol)
		}
		add(unix.AF_INET, localAgain, localTable, "", 0)
		first := netlink.NewRule()
		first.Family, first.Priority, first.Table = unix.AF_INET, 0, localTable
		if err := n.links.RuleDel(first); err != nil {
			errs = append(errs, fmt.Errorf("first rule: %w", err))
		}
	}
	return errors.Join(errs...)
}

// enableBoxDevice brings a device of the box up and routes everything in the
// table into it.
func (n *Namespace) enableBoxDevice(device string, table int) error {
	// Translated packets come from an address of the router's own.
	if err := n.SetSysctl("net/ipv4/conf/"+device+"/accept_local", "1"); err != nil {
		return err
	}
	link, err := n.links.LinkByName(device)
	if err != nil {
		return err
	}
	err = errors.Join(
		n.links.LinkSetTxQLen(link, boxQueue),
		n.links.LinkSetUp(link),
	)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	for _, everything := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(everything, 0)), Table: table, Scope: netlink.SCOPE_LINK,
		}
		if err := n.links.RouteAdd(route); err != nil {
			return fmt.Errorf("route into %s: %w", device, err)
		}
	}
	return nil
}
