package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address.
const addrGenNone = 1

// Network says how the TUN link is to look.
type Network struct {
	Link       string     // DefaultName if empty
	V4, V6     netip.Addr // tunnel addresses; the zero Addr leaves a family out
	MTU        int        // DefaultMTU if zero
	TxQueueLen int        // DefaultTxQueueLen if zero
}

// Families tells which address families work after Configure.
type Families struct {
	V4, V6 bool
	// Tolerated joins what went wrong without being fatal, for a warning: a
	// family that failed, a rule that could not be added. Nil if all is well.
	Tolerated error
}

// Configure gives the link its sizes and addresses, brings it up, and installs
// the policy rules and routes of every family whose address could be set
// (dataplane §7.2, §7.3). It may be called again and with other addresses; what
// is already right is not touched. It fails if no family works.
func Configure(n Network) (Families, error) {
	n = n.complete()
	link, err := netlink.LinkByName(n.Link)
	if err != nil {
		return Families{}, fmt.Errorf("link %s: %w", n.Link, err)
	}
	var tolerated []error
	tolerate := func(err error) {
		if err != nil {
			tolerated = append(tolerated, err)
		}
	}

	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil {
		tolerate(fmt.Errorf("disable link-local address: %w", err))
	}
	wanted := [...]netip.Addr{n.V4, n.V6}
	tolerate(removeOtherAddresses(link, wanted[:]))
	if err := setLinkSizes(link, n.MTU, n.TxQueueLen); err != nil {
		return Families{}, err
	}

	var up [len(families)]bool
	var failed []error
	for i, family := range families {
		if err := setAddress(link, family.id, wanted[i]); err != nil {
			failed = append(failed, fmt.Errorf("%s address: %w", family.name, err))
			continue
		}
		up[i] = true
	}
	if !slices.Contains(up[:], true) {
		return Families{}, errors.Join(failed...)
	}
	tolerated = append(tolerated, failed...)

	if err := netlink.LinkSetUp(link); err != nil {
		return Families{}, fmt.Errorf("bring link up: %w", err)
	}
	for i, family := range families {
		if !up[i] {
			continue
		}
		tolerate(addRules(family.id))
		if err := addRoute(link, family.id, family.tunnel); err != nil {
			return Families{}, err
		}
	}
	return Families{V4: up[0], V6: up[1], Tolerated: errors.Join(tolerated...)}, nil
}

// Cleanup removes the gateway's policy rules and all routes of its tables. It is
// for the start, after Open proved that no other gateway runs, and for the end.
// Nothing to remove is no error.
func Cleanup() error {
	var errs []error
	for _, family := range families {
		if err := errors.Join(removeRules(family.id), flushTables(family.id)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", family.name, err))
		}
	}
	return errors.Join(errs...)
}

func (n Network) complete() Network {
	if n.Link == "" {
		n.Link = DefaultName
	}
	if n.MTU == 0 {
		n.MTU = DefaultMTU
	}
	if n.TxQueueLen == 0 {
		n.TxQueueLen = DefaultTxQueueLen
	}
	return n
}

func setLinkSizes(link netlink.Link, mtu, txQueueLen int) error {
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU: %w", err)
	}
	if err := netlink.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("set transmit queue length: %w", err)
	}
	return nil
}

func setAddress(link netlink.Link, family int, addr netip.Addr) error {
	if !addr.IsValid() || addr.Is4() != (family == netlink.FAMILY_V4) || addr.Is4In6() {
		return fmt.Errorf("%v is not an address of this family", addr)
	}
	err := netlink.AddrReplace(link, &netlink.Addr{
		IPNet: netlink.NewIPNet(addr.AsSlice()),
		Flags: unix.IFA_F_NODAD,
	})
	if err != nil {
		return fmt.Errorf("add %v: %w", addr, err)
	}
	return nil
}

// removeOtherAddresses deletes every address of link that is not a wanted host
// address.
func removeOtherAddresses(link netlink.Link, wanted []netip.Addr) error {
	present, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var errs []error
	for _, a := range present {
		addr, ok := netip.AddrFromSlice(a.IP)
		ones, bits := a.Mask.Size()
		if ok && ones == bits && slices.Contains(wanted, addr.Unmap()) {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("delete address %v: %w", a.IPNet, err))
		}
	}
	return errors.Join(errs...)
}
