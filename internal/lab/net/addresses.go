package labnet

import (
	"fmt"
	"net/netip"
)

// Addresses are those of one device. What a device has none of is not valid.
type Addresses struct {
	IPv4, IPv6 netip.Addr
}

// Numbers of public hosts: 203.0.113.n and 2001:db8::n, n read as decimal
// digits in both.
const (
	internetNumber = 1
	portalNumber   = 2
	gatewayNumber  = 99
	relayNumber    = 10
	clientNumber   = 100
)

var (
	resource4 = netip.MustParsePrefix("10.20.0.0/24")
	resource6 = netip.MustParsePrefix("fd00:20::/64")
	client4   = netip.MustParsePrefix("198.18.0.0/24")
	client6   = netip.MustParsePrefix("2001:db8:18::/64")
)

// all returns the addresses that there are.
func (a Addresses) all() []netip.Addr {
	var all []netip.Addr
	for _, address := range []netip.Addr{a.IPv4, a.IPv6} {
		if address.IsValid() {
			all = append(all, address)
		}
	}
	return all
}

// single returns the addresses as host prefixes.
func (a Addresses) single() []netip.Prefix {
	var prefixes []netip.Prefix
	for _, address := range a.all() {
		prefixes = append(prefixes, netip.PrefixFrom(address, address.BitLen()))
	}
	return prefixes
}

func public(number int, o Options) (a Addresses) {
	if !o.IPv6Only {
		a.IPv4 = netip.AddrFrom4([4]byte{203, 0, 113, byte(number)})
	}
	if !o.IPv4Only {
		a.IPv6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", number))
	}
	return a
}

// subnet is the network of one link: a prefix for each family, not valid where
// there is none.
type subnet struct{ v4, v6 netip.Prefix }

// host returns the addresses of the host with the given number.
func (s subnet) host(number byte) (a Addresses) {
	if s.v4.IsValid() {
		a.IPv4 = nth(s.v4, number)
	}
	if s.v6.IsValid() {
		a.IPv6 = nth(s.v6, number)
	}
	return a
}

// prefixes returns the addresses with the lengths of their networks' prefixes.
func (s subnet) prefixes(a Addresses) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, address := range a.all() {
		bits := s.v4.Bits()
		if address.Is6() {
			bits = s.v6.Bits()
		}
		prefixes = append(prefixes, netip.PrefixFrom(address, bits))
	}
	return prefixes
}

func unspecified(of netip.Addr) netip.Addr {
	if of.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// nth returns the address with the given number in a prefix whose last byte
// leaves room for it.
func nth(p netip.Prefix, number byte) netip.Addr {
	bytes := p.Addr().AsSlice()
	bytes[len(bytes)-1] += number
	address, _ := netip.AddrFromSlice(bytes)
	return address
}
