package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// mtu is that of a Firezone tunnel, for both ways of the comparison.
const mtu = 1280

// engine is golang.zx2c4.com/wireguard as its authors ship it: its TUN device
// with offloads, its sockets, its defaults.
type engine struct{ dev *device.Device }

// newEngine makes a TUN device with addresses and routes in the namespace of
// the calling thread and starts the engine on it, with its peers in config, in
// the format of the cross-platform userspace interface.
func newEngine(name string, bind conn.Bind, addresses, routes []netip.Prefix, config string) (*engine, error) {
	device, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("TUN device %s: %w", name, err)
	}
	e := &engine{dev: newDevice(device, bind)}
	if err := errors.Join(e.dev.IpcSet(config), e.dev.Up(), configure(name, addresses, routes)); err != nil {
		e.Close()
		return nil, fmt.Errorf("engine %s: %w", name, err)
	}
	return e, nil
}

// Close ends the engine and removes its device.
func (e *engine) Close() { e.dev.Close() }

func newDevice(t tun.Device, bind conn.Bind) *device.Device {
	return device.NewDevice(t, bind, &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
}

func configure(name string, addresses, routes []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, prefix := range addresses {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(prefix)}); err != nil {
			return fmt.Errorf("address %v: %w", prefix, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, prefix := range routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %v: %w", prefix, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// namespaceBind is the engine's standard bind with its sockets in a namespace,
// for an engine of this process that belongs elsewhere.
type namespaceBind struct {
	conn.Bind
	in interface{ Do(func() error) error }
}

// Open implements conn.Bind.
func (b namespaceBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.in.Do(func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}
