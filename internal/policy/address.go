package policy

import (
	"encoding/binary"
	"net/netip"
)

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
func IsTunnel(a netip.Addr) bool { return tunnels.hold(a) }

// IsProxy reports whether a is a proxy address.
func IsProxy(a netip.Addr) bool { return proxies.hold(a) }

var (
	tunnels = pairOf(TunnelV4, TunnelV6)
	proxies = pairOf(ProxyV4, ProxyV6)
)

// pair is a network of each family without its host bits. Several are compared
// with for each packet, which takes a few instructions this way.
type pair struct {
	v4        uint32
	high, low uint64 // of IPv6
}

// hostBits are those that each network of the address plan leaves to the host.
const hostBits = 21

func pairOf(v4, v6 netip.Prefix) pair {
	a, b := v4.Addr().As4(), v6.Addr().As16()
	return pair{binary.BigEndian.Uint32(a[:]) >> hostBits, binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]) >> hostBits}
}

func (p *pair) hold(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])>>hostBits == p.v4
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])>>hostBits == p.low && binary.BigEndian.Uint64(b[:8]) == p.high && a.Zone() == ""
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
