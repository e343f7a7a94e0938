package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// policy lists the tables in the order in which unmarked packets try them.
var policy = [...]struct{ priority, table int }{
	{100, TableUser},
	{200, TableLink},
	{300, TableInternet},
}

// CopyLinkRoutes copies the link-scope routes of the main table, except those
// of the TUN link itself and of links that are down, to TableLink
// (dataplane §7.3). Copies are never removed; Cleanup does that. Only IPv4 knows
// link scope. It returns the number of routes in the copy.
func CopyLinkRoutes(tunName string) (int, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_LINK}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_SCOPE)
	if err != nil {
		return 0, fmt.Errorf("list link-scope routes: %w", err)
	}
	copied := 0
	var errs []error
	for _, route := range routes {
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil || link.Attrs().Name == tunName || link.Attrs().RawFlags&unix.IFF_UP == 0 {
			continue
		}
		route.Table = TableLink
		route.Flags = 0 // what the kernel reports there, such as a lost carrier, is not to be set
		if err := netlink.RouteReplace(&route); err != nil {
			errs = append(errs, fmt.Errorf("copy route %v: %w", route.Dst, err))
			continue
		}
		copied++
	}
	return copied, errors.Join(errs...)
}

// addRules installs the three policy rules of a family. Existing ones are fine.
func addRules(family int) error {
	var errs []error
	for _, p := range policy {
		err := netlink.RuleAdd(policyRule(family, p.priority, p.table))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add rule %d: %w", p.priority, err))
		}
	}
	return errors.Join(errs...)
}

// removeRules deletes every rule that leads to one of our tables, so also those
// of an earlier gateway with other priorities.
func removeRules(family int) error {
	rules, err := netlink.RuleList(family)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	var errs []error
	for _, rule := range rules {
		if !isOurTable(rule.Table) {
			continue
		}
		rule.Family = family
		if err := netlink.RuleDel(&rule); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete rule %d: %w", rule.Priority, err))
		}
	}
	return errors.Join(errs...)
}

func policyRule(family, priority, table int) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family = family
	rule.Priority = priority
	rule.Table = table
	rule.Mark = SocketMark
	rule.Invert = true
	rule.Protocol = unix.RTPROT_KERNEL
	return rule
}

// addRoute sends a tunnel range into the TUN device.
func addRoute(link netlink.Link, family int, dst netip.Prefix) error {
	err := netlink.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Family:    family,
		Dst:       ipNet(dst),
		Table:     TableUser,
		Protocol:  unix.RTPROT_STATIC,
		Scope:     netlink.SCOPE_UNIVERSE,
	})
	if err != nil {
		return fmt.Errorf("add route %v: %w", dst, err)
	}
	return nil
}

// flushTables deletes the routes of our tables.
func flushTables(family int) error {
	var errs []error
	for _, p := range policy {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: p.table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			errs = append(errs, fmt.Errorf("list routes of table %#x: %w", p.table, err))
			continue
		}
		for _, route := range routes {
			if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("delete route %v: %w", route.Dst, err))
			}
		}
	}
	return errors.Join(errs...)
}

func isOurTable(table int) bool {
	for _, p := range policy {
		if p.table == table {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
