package labnet

import (
	"fmt"
	"net/netip"
)

// Addresses are those of one device. IPv6 is not valid where there is none.
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

// single returns the addresses as host prefixes.
func (a Addresses) single() []netip.Prefix {
	prefixes := []netip.Prefix{netip.PrefixFrom(a.IPv4, 32)}
	if a.IPv6.IsValid() {
		prefixes = append(prefixes, netip.PrefixFrom(a.IPv6, 128))
	}
	return prefixes
}

func public(number int, o Options) Addresses {
	a := Addresses{IPv4: netip.AddrFrom4([4]byte{203, 0, 113, byte(number)})}
	if !o.IPv4Only {
		a.IPv6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", number))
	}
	return a
}

func lanAddresses(s Site, number byte) Addresses {
	a := Addresses{IPv4: nth(s.LAN4, number)}
	if s.LAN6.IsValid() {
		a.IPv6 = nth(s.LAN6, number)
	}
	return a
}

// nth returns the address with the given number in a prefix whose last byte
// leaves room for it.
func nth(p netip.Prefix, number byte) netip.Addr {
	bytes := p.Addr().AsSlice()
	bytes[len(bytes)-1] += number
	address, _ := netip.AddrFromSlice(bytes)
	return address
}
