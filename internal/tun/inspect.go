package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Missing names what of Configure's work on n somebody has undone: the link, its
// state, sizes and addresses, the policy rules, the way to clients. The names are
// for people. A family without address in n is not looked at. Additions by others
// are not its business.
//
// It is meant to be called every few seconds: the cost does not depend on the
// number of the host's routes, because the way is looked up and not listed.
func (n Network) Missing() ([]string, error) {
	n = n.complete()
	link, err := netlink.LinkByName(n.Link)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return []string{"link"}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", n.Link, err)
	}
	var missing []string
	attrs := link.Attrs()
	if attrs.RawFlags&unix.IFF_UP == 0 {
		missing = append(missing, "link is down")
	}
	if attrs.MTU != n.MTU || attrs.TxQLen != n.TxQueueLen {
		missing = append(missing, "link sizes")
	}
	for i, addr := range [...]netip.Addr{n.V4, n.V6} {
		if !addr.IsValid() {
			continue
		}
		family := families[i]
		more, err := missingOfFamily(link, family.id, addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", family.name, err)
		}
		for _, what := range more {
			missing = append(missing, family.name+" "+what)
		}
	}
	return missing, nil
}

func missingOfFamily(link netlink.Link, family int, addr netip.Addr) ([]string, error) {
	var missing []string
	present, err := netlink.AddrList(link, family)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	if !slices.ContainsFunc(present, func(a netlink.Addr) bool {
		ones, bits := a.Mask.Size()
		return ones == bits && a.IP.Equal(addr.AsSlice())
	}) {
		missing = append(missing, "address")
	}
	rules, err := netlink.RuleList(family)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	for _, p := range policy {
		if !slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return r.Priority == p.priority && r.Table == p.table && r.Mark == SocketMark && r.Invert
		}) {
			missing = append(missing, fmt.Sprintf("rule %d", p.priority))
		}
	}
	// Whatever keeps the kernel from finding a way, there is none.
	routes, err := netlink.RouteGet(neighbour(addr).AsSlice())
	if err != nil || len(routes) == 0 || routes[0].LinkIndex != link.Attrs().Index {
		missing = append(missing, "route")
	}
	return missing, nil
}

// neighbour returns the other address of the pair that differs in the last bit: one
// of the same tunnel range that is not the gateway's own.
func neighbour(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] ^= 1
	other, _ := netip.AddrFromSlice(b)
	return other
}

// Missing names what somebody has removed of what Install made. The names are for
// people.
func (m Masquerade) Missing() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	postrouting := 0
	for _, wanted := range [...]bool{m.V4, m.V6} {
		if wanted {
			postrouting++
		}
	}
	var missing []string
	for _, chain := range [...]struct {
		name  string
		rules int
	}{{chainForward, 2}, {chainPostrouting, postrouting}} {
		rules, err := c.GetRules(ownTable(), &nftables.Chain{Name: chain.name, Table: ownTable()})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("nftables: list rules of %s: %w", chain.name, err)
		}
		if len(rules) < chain.rules {
			missing = append(missing, "firewall rules of "+chain.name)
		}
	}
	return missing, nil
}

// ForwardingMissing names the sysctls that EnableForwarding would have to set. One
// that cannot be read is left out: it could not be set either.
func ForwardingMissing() []string {
	var missing []string
	for _, s := range forwarding {
		if value, err := procSysctls.read(s.key); err == nil && value < s.want {
			missing = append(missing, s.key)
		}
	}
	return missing
}
