package labnet

import (
	"errors"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// BlockDirect drops, or admits again, every UDP packet between the clients'
// side and the gateway's side in all routers, from the next packet on and for
// established flows too. What goes through a relay passes.
func (d *Deployment) BlockDirect(on bool) error {
	var errs []error
	gateway := d.Gateway.visible()
	var clients []netip.Prefix
	for _, client := range d.Clients {
		clients = append(clients, client.visible()...)
		errs = append(errs, client.Router.blockUDP(on, gateway))
	}
	errs = append(errs, d.Gateway.Router.blockUDP(on, clients))
	return errors.Join(errs...)
}

// visible returns every prefix under which the other side may see the site.
func (s Site) visible() []netip.Prefix {
	prefixes := s.Router.single()
	for _, lan := range []netip.Prefix{s.LAN4, s.LAN6} {
		if lan.IsValid() {
			prefixes = append(prefixes, lan)
		}
	}
	return prefixes
}

// blockUDP drops UDP to the prefixes on its way through the router. The other
// direction is for the other side's router.
func (n *Namespace) blockUDP(on bool, prefixes []netip.Prefix) error {
	return n.firewall(func(c *nftables.Conn) {
		table := &nftables.Table{Name: "block", Family: nftables.TableFamilyINet}
		// Adding a table that exists changes nothing, so that the deletion
		// never misses and the result does not depend on what was there.
		c.AddTable(table)
		c.DelTable(table)
		if !on {
			return
		}
		c.AddTable(table)
		forward := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 1),
		})
		for _, prefix := range prefixes {
			addRule(c, forward, protocol(unix.IPPROTO_UDP), toPrefix(prefix), discard())
		}
	})
}
