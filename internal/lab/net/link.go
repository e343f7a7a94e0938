package labnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a link: a network device in a namespace, with addresses.
type End struct {
	Namespace *Namespace
	Device    string
	Addresses []netip.Prefix
}

// Connect joins two namespaces by a virtual Ethernet cable, with the kernel's
// default offloads, brings both ends up and waits until they are.
func (l *Lab) Connect(a, b End) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Device
	// Were both ends to get the same index, as they may in two namespaces, the
	// kernel would announce the carrier up to a second late (its link watch
	// takes equal indices for a physical device).
	attrs.Index = l.nextDevice()
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Device, PeerNamespace: netlink.NsFd(b.Namespace.descriptor())}
	if err := a.Namespace.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s/%s to %s/%s: %w", a.Namespace.name, a.Device, b.Namespace.name, b.Device, err)
	}
	for _, end := range []End{a, b} {
		if err := end.bringUp(); err != nil {
			return fmt.Errorf("link %s/%s: %w", end.Namespace.name, end.Device, err)
		}
	}
	for _, end := range []End{a, b} {
		if err := end.awaitCarrier(); err != nil {
			return fmt.Errorf("link %s/%s: %w", end.Namespace.name, end.Device, err)
		}
	}
	return nil
}

// AddRoute routes dst through via on the device. A via that is not valid makes
// the route one to the link itself; otherwise via need not be covered by a
// prefix of the device.
func (n *Namespace) AddRoute(dst netip.Prefix, via netip.Addr, device string) error {
	link, err := n.links.LinkByName(device)
	if err != nil {
		return fmt.Errorf("route to %v in %s: %w", dst, n.name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst)}
	if via.IsValid() {
		route.Gw = via.AsSlice()
		route.SetFlag(netlink.FLAG_ONLINK)
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := n.links.RouteAdd(route); err != nil {
		return fmt.Errorf("route to %v in %s: %w", dst, n.name, err)
	}
	return nil
}

func (n *Namespace) setMTU(device string, mtu int) error {
	link, err := n.links.LinkByName(device)
	if err == nil {
		err = n.links.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("MTU of %s in %s: %w", device, n.name, err)
	}
	return nil
}

func (e End) bringUp() error {
	links := e.Namespace.links
	link, err := links.LinkByName(e.Device)
	if err != nil {
		return err
	}
	if err := links.LinkSetUp(link); err != nil {
		return err
	}
	for _, prefix := range e.Addresses {
		address := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := links.AddrAdd(link, address); err != nil {
			return fmt.Errorf("address %v: %w", prefix, err)
		}
	}
	return nil
}

// awaitCarrier waits until the kernel uses the device: until then it drops
// IPv6 neighbour discovery, which tries again after a second only.
func (e End) awaitCarrier() error {
	for deadline := time.Now().Add(carrierPatience); ; time.Sleep(carrierPoll) {
		link, err := e.Namespace.links.LinkByName(e.Device)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("no carrier")
		}
	}
}

const (
	carrierPatience = 5 * time.Second
	carrierPoll     = 200 * time.Microsecond
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
