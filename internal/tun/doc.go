// Package tun is the gateway's edge towards the kernel's network stack: the TUN
// device and its batched reader and writer, its addresses, policy rules and
// routes, the masquerade table, and the sysctls that forwarding needs.
//
// The package holds no decisions. An owner opens the device, configures the
// link when the portal names the addresses, and opens it again when [Device.Gone]
// fires. Everything acts on the network namespace of the calling thread.
package tun

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Defaults of the device (dataplane §7.1).
const (
	DefaultName       = "tun-firezone"
	DefaultMTU        = 1280
	DefaultTxQueueLen = 10000
)

// SocketMark is the firewall mark of every socket that must bypass the tunnel's
// policy rules (dataplane §7.3).
const SocketMark = 0xfd002021

// Routing tables of the gateway (dataplane §7.3).
const (
	TableUser     = 0x2021fd00 // routes into the TUN device
	TableLink     = 0x2021fd01 // copies of link-scope routes of the main table
	TableInternet = 0x2021fd02 // default routes; a gateway leaves it empty
)

// TunnelV4 and TunnelV6 are the ranges of the tunnel addresses of clients and
// gateways (dataplane §0.3).
var (
	TunnelV4 = netip.MustParsePrefix("100.64.0.0/11")
	TunnelV6 = netip.MustParsePrefix("fd00:2021:1111::/107")
)

// families lists what exists once per address family.
var families = [...]struct {
	id     int
	name   string
	tunnel netip.Prefix
}{
	{netlink.FAMILY_V4, "IPv4", TunnelV4},
	{netlink.FAMILY_V6, "IPv6", TunnelV6},
}
