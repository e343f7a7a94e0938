package labnet

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddress gives a host that is attached to the internet one more public
// address. Connections to it where nobody listens are refused.
func (d *Deployment) AddAddress(host Host, address netip.Addr) error {
	link, err := host.links.LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("address %v of %s: %w", address, host.Name(), err)
	}
	prefix := netip.PrefixFrom(address, address.BitLen())
	added := &netlink.Addr{IPNet: ipNet(prefix)}
	if address.Is6() {
		added.Flags = unix.IFA_F_NODAD
	}
	if err := host.links.AddrAdd(link, added); err != nil {
		return fmt.Errorf("address %v of %s: %w", address, host.Name(), err)
	}
	return d.Internet.AddRoute(prefix, netip.Addr{}, host.Name())
}

// Swallow makes the internet discard what is sent to an address without a word,
// as a firewall or a dead host behind a live router does.
func (d *Deployment) Swallow(address netip.Addr) error {
	route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(address, address.BitLen())), Type: unix.RTN_BLACKHOLE}
	if err := d.Internet.links.RouteAdd(route); err != nil {
		return fmt.Errorf("swallow packets to %v: %w", address, err)
	}
	return nil
}
