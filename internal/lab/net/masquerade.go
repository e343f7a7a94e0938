package labnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// masquerade makes the namespace, a router between the devices lan and wan, a
// NAT of kind PortRestricted: source ports are kept whatever the destination, as
// long as no other mapping to the same destination has them.
func (n *Namespace) masquerade(lan, wan string) error {
	return n.firewall(func(c *nftables.Conn) {
		nat := c.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
		source := c.AddChain(&nftables.Chain{
			Name: "source", Table: nat, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		addRule(c, source, toDevice(wan), []expr.Any{&expr.Masq{}})

		filter := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyINet})
		refuse := nftables.ChainPolicyDrop
		forward := c.AddChain(&nftables.Chain{
			Name: "forward", Table: filter, Type: nftables.ChainTypeFilter, Policy: &refuse,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		addRule(c, forward, known(), accept())
		addRule(c, forward, fromDevice(lan), accept())

		// What no mapping claims is for the router itself. It must fall silently:
		// an answer would confirm the connection in the kernel's table, and the
		// same tuple could then not be mapped for the private side, which is
		// exactly what happens when two sides punch holes at the same moment.
		input := c.AddChain(&nftables.Chain{
			Name: "input", Table: filter, Type: nftables.ChainTypeFilter, Policy: &refuse,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
		})
		addRule(c, input, known(), accept())
		addRule(c, input, protocol(unix.IPPROTO_ICMP), accept())
		addRule(c, input, protocol(unix.IPPROTO_ICMPV6), accept())
	})
}

// admitUDPOnlyTo drops the UDP packets that come in by the device lan and go to
// none of the addresses.
func (n *Namespace) admitUDPOnlyTo(addresses []netip.Prefix, lan string) error {
	return n.firewall(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "udp", Family: nftables.TableFamilyINet})
		forward := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 2),
		})
		for _, address := range addresses {
			addRule(c, forward, protocol(unix.IPPROTO_UDP), toPrefix(address), accept())
		}
		addRule(c, forward, protocol(unix.IPPROTO_UDP), fromDevice(lan), discard())
	})
}
