package tun

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firewallTable is the only table the gateway touches.
const firewallTable = "firezone_gateway"

// The chains of firewallTable.
const (
	chainForward     = "forward"
	chainPostrouting = "postrouting"
)

// Masquerade is the firewall table that lets tunnel traffic be forwarded and
// hides tunnel addresses behind the host's own (dataplane §7.4). Unlike the
// scripts of the reference it covers every outgoing interface.
//
// Accepting in a table of its own does not overrule another table that drops:
// where a host firewall has a dropping forward policy, the operator has to
// admit the TUN device there.
type Masquerade struct {
	Link   string // name of the TUN device, DefaultName if empty
	V4, V6 bool   // families to masquerade
}

// Install creates the table, in one transaction that replaces an earlier one of
// the same name. It needs Linux 5.2 for NAT in an inet table.
func (m Masquerade) Install() error {
	if m.Link == "" {
		m.Link = DefaultName
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := replaceTable(c)
	forward := c.AddChain(&nftables.Chain{
		Name: chainForward, Table: table,
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	postrouting := c.AddChain(&nftables.Chain{
		Name: chainPostrouting, Table: table,
		Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	add := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		rule := &nftables.Rule{Table: table, Chain: chain}
		for _, e := range exprs {
			rule.Exprs = append(rule.Exprs, e...)
		}
		c.AddRule(rule)
	}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	masquerade := []expr.Any{&expr.Masq{}}

	add(forward, matchName(expr.MetaKeyIIFNAME, expr.CmpOpEq, m.Link), accept)
	add(forward, matchName(expr.MetaKeyOIFNAME, expr.CmpOpEq, m.Link), accept)
	for i, wanted := range [...]bool{m.V4, m.V6} {
		if wanted {
			add(postrouting, matchSource(families[i].tunnel), matchName(expr.MetaKeyOIFNAME, expr.CmpOpNeq, m.Link), masquerade)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Remove deletes the table. A missing table is no error.
func (m Masquerade) Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c.DelTable(c.AddTable(ownTable()))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

func ownTable() *nftables.Table {
	return &nftables.Table{Name: firewallTable, Family: nftables.TableFamilyINet}
}

// replaceTable queues the creation of an empty table. Creating before deleting
// makes the deletion valid whether or not the table exists.
func replaceTable(c *nftables.Conn) *nftables.Table {
	c.DelTable(c.AddTable(ownTable()))
	return c.AddTable(ownTable())
}

func matchName(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded},
	}
}

func matchSource(source netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	if source.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	net := ipNet(source)
	size := uint32(len(net.IP))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net.IP},
	}
}
