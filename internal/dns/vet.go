package dns

import (
	"net/netip"
	"slices"

	"firezone-gateway/internal/policy"
)

var (
	thisNetworkV4 = netip.MustParsePrefix("0.0.0.0/8")   // RFC 1122 §3.2.1.3
	reservedV4    = netip.MustParsePrefix("240.0.0.0/4") // class E and broadcast
)

// vet returns the addresses that a DNS resource may lead to, split by family,
// each sorted and without duplicates, and how many were refused. A name server
// that answers with an address of the gateway, of a client or of a loopback
// interface must not open it to clients (dataplane §11, defect 13). own may be
// nil.
func vet(addrs []netip.Addr, own func(netip.Addr) bool) (v4, v6 []netip.Addr, refused int) {
	for _, a := range addrs {
		switch {
		case unfit(a) || (own != nil && own(a)):
			refused++
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
	}
	return bounded(v4), bounded(v6), refused
}

// unfit refuses IPv4 addresses in IPv6 form as a whole: the kernel treats them
// as what they hide.
func unfit(a netip.Addr) bool {
	return !a.IsValid() || a.Zone() != "" || a.Is4In6() ||
		a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() ||
		thisNetworkV4.Contains(a) || reservedV4.Contains(a) || policy.IsTunnel(a) || policy.IsProxy(a)
}

// bounded sorts in place. Cutting afterwards keeps the choice the same for the
// same set, so that repeated set-ups agree.
func bounded(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	return slices.Clip(addrs[:min(len(addrs), MaxAddresses)])
}
