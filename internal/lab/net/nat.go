package labnet

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// NATKind is how a router treats the packets between its private side and the
// internet, in the terms of RFC 3489 §5.
type NATKind uint8

const (
	// NoNAT routes: the addresses behind the router are public.
	NoNAT NATKind = iota
	// PortRestricted rewrites IPv4 sources to the router's public address,
	// keeps the source port whatever the destination (as long as no other
	// mapping to the same destination has it), and admits from outside only
	// what comes from an address and port already sent to. IPv6 is not
	// rewritten, but filtered by the same rule.
	PortRestricted
)

var natNames = [...]string{NoNAT: "none", PortRestricted: "port-restricted"}

// String returns the name of the kind, as UnmarshalText reads it.
func (k NATKind) String() string {
	if int(k) >= len(natNames) {
		return fmt.Sprintf("NATKind(%d)", uint8(k))
	}
	return natNames[k]
}

// UnmarshalText reads the name of a kind, for flags.
func (k *NATKind) UnmarshalText(text []byte) error {
	for kind, name := range natNames {
		if name == string(text) {
			*k = NATKind(kind)
			return nil
		}
	}
	return fmt.Errorf("NAT kind %q is none of %v", text, natNames)
}

// translate makes the namespace, a router between the devices lan and wan, a
// NAT of the given kind.
func (n *Namespace) translate(kind NATKind, lan, wan string) error {
	switch kind {
	case NoNAT:
		return nil
	case PortRestricted:
		return n.firewall(func(c *nftables.Conn) { portRestricted(c, lan, wan) })
	}
	return fmt.Errorf("NAT kind %v is unknown", kind)
}

func portRestricted(c *nftables.Conn, lan, wan string) {
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
}
