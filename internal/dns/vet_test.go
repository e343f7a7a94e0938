package dns

import (
	"net/netip"
	"slices"
	"testing"
)

func TestVet(t *testing.T) {
	own := func(a netip.Addr) bool { return slices.Contains(addrs("10.0.0.1", "2001:db8::1"), a) }
	for _, tc := range []struct {
		name, addr string
		ok         bool
	}{
		{"public IPv4", "198.51.100.1", true},
		{"public IPv6", "2001:db8::2", true},
		{"private IPv4", "10.0.0.2", true},
		{"private IPv6", "fd00::1", true},
		{"IPv4 loopback", "127.0.0.1", false},
		{"another IPv4 loopback", "127.255.255.254", false},
		{"IPv6 loopback", "::1", false},
		{"IPv4 unspecified", "0.0.0.0", false},
		{"this network", "0.1.2.3", false},
		{"IPv6 unspecified", "::", false},
		{"IPv4 link-local with a cloud's credentials", "169.254.169.254", false},
		{"IPv6 link-local", "fe80::1", false},
		{"IPv6 with a zone", "2001:db8::2%eth0", false},
		{"IPv4 multicast", "224.0.0.1", false},
		{"last IPv4 multicast", "239.255.255.255", false},
		{"IPv6 multicast", "ff02::1", false},
		{"class E", "240.0.0.1", false},
		{"broadcast", "255.255.255.255", false},
		{"first IPv4 tunnel address", "100.64.0.0", false},
		{"last IPv4 tunnel address", "100.95.255.255", false},
		{"below the tunnel addresses", "100.63.255.255", true},
		{"first IPv4 proxy address", "100.96.0.0", false},
		{"last IPv4 proxy address", "100.127.255.255", false},
		{"above the proxy addresses", "100.128.0.0", true},
		{"IPv6 tunnel address", "fd00:2021:1111::1", false},
		{"IPv6 proxy address", "fd00:2021:1111:8000::1", false},
		{"beside the IPv6 tunnel addresses", "fd00:2021:1112::1", true},
		{"loopback in IPv6 form", "::ffff:127.0.0.1", false},
		{"public IPv4 in IPv6 form", "::ffff:198.51.100.1", false},
		{"own IPv4 address", "10.0.0.1", false},
		{"own IPv6 address", "2001:db8::1", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := netip.MustParseAddr(tc.addr)
			v4, v6, refused := vet([]netip.Addr{a}, own)
			if got := append(v4, v6...); tc.ok != (len(got) == 1 && got[0] == a) || tc.ok != (refused == 0) {
				t.Errorf("vet(%v) = %v, %v, %d refused", a, v4, v6, refused)
			}
			if tc.ok && a.Is4() != (len(v4) == 1) {
				t.Errorf("%v is in the wrong family", a)
			}
		})
	}
}

func TestVetSortsAndCutsAlways(t *testing.T) {
	var all []netip.Addr
	for i := range MaxAddresses + 10 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(200 - i)})
		all = append(all, a, a)
	}
	all = append(all, netip.Addr{}, netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::1"))
	v4, v6, refused := vet(all, nil)
	if len(v4) != MaxAddresses || !slices.IsSortedFunc(v4, netip.Addr.Compare) || v4[0] != netip.MustParseAddr("198.51.100.127") || v4[1] == v4[0] {
		t.Errorf("IPv4: %v", v4)
	}
	if !slices.Equal(v6, addrs("2001:db8::1", "2001:db8::2")) {
		t.Errorf("IPv6: %v", v6)
	}
	if refused != 1 {
		t.Errorf("%d refused, want the invalid one", refused)
	}
}
