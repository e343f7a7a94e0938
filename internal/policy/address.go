package policy

import "net/netip"

// The address plan of the tunnel (dataplane §0.3). None of these is ever
// written to.
var (
	// TunnelV4 and TunnelV6 hold the tunnel addresses of clients and gateways.
	TunnelV4 = netip.MustParsePrefix("100.64.0.0/11")
	TunnelV6 = netip.MustParsePrefix("fd00:2021:1111::/107")

	// ProxyV4 and ProxyV6 hold the addresses that a client makes up for the
	// domains of DNS resources.
	ProxyV4 = netip.MustParsePrefix("100.96.0.0/11")
	ProxyV6 = netip.MustParsePrefix("fd00:2021:1111:8000::/107")
)

// DNSPort is the port on the gateway's tunnel addresses where it answers SRV
// and TXT queries, over UDP and TCP.
const DNSPort = 53535

// IsTunnel reports whether a is a tunnel address.
func IsTunnel(a netip.Addr) bool { return within(a, &TunnelV4, &TunnelV6) }

// IsProxy reports whether a is a proxy address.
func IsProxy(a netip.Addr) bool { return within(a, &ProxyV4, &ProxyV6) }

// within looks at the prefix of a's family only.
func within(a netip.Addr, v4, v6 *netip.Prefix) bool {
	if a.Is4() {
		return v4.Contains(a)
	}
	return v6.Contains(a)
}

var (
	sharedV4   = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	reservedV4 = netip.MustParsePrefix("240.0.0.0/4")   // class E and broadcast

	multicastV4 = netip.MustParsePrefix("224.0.0.0/4")
	multicastV6 = netip.MustParsePrefix("ff00::/8")
)

// notPublic reports whether the Internet resource refuses a (dataplane §2.2).
func notPublic(a netip.Addr) bool {
	return a.Is4In6() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() ||
		sharedV4.Contains(a) || reservedV4.Contains(a)
}
