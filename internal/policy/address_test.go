package policy

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// The ranges are compared in a form of their own, which must be what the
// prefixes say: at their ends, anywhere, and for addresses of other forms.
func TestRangesAreThoseOfTheirPrefixes(t *testing.T) {
	check := func(t rapid.TB, a netip.Addr) {
		if got, want := IsTunnel(a), TunnelV4.Contains(a) || TunnelV6.Contains(a); got != want {
			t.Errorf("%v is a tunnel address: %v", a, got)
		}
		if got, want := IsProxy(a), ProxyV4.Contains(a) || ProxyV6.Contains(a); got != want {
			t.Errorf("%v is a proxy address: %v", a, got)
		}
	}
	check(t, netip.Addr{})
	for _, p := range []netip.Prefix{TunnelV4, TunnelV6, ProxyV4, ProxyV6} {
		if p.Addr().BitLen()-p.Bits() != hostBits {
			t.Errorf("%v leaves other bits to the host", p)
		}
		first, last := p.Addr(), lastOf(p)
		for _, a := range []netip.Addr{first, first.Prev(), last, last.Next()} {
			check(t, a)
			check(t, netip.AddrFrom16(a.As16()))
			check(t, a.WithZone("eth0"))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SampledFrom([]netip.Addr{TunnelV6.Addr(), ProxyV6.Addr()}).Draw(t, "base").As16()
		b[rapid.IntRange(0, 15).Draw(t, "at")] ^= rapid.Byte().Draw(t, "bits")
		check(t, netip.AddrFrom16(b))
		check(t, netip.AddrFrom4([4]byte{100, rapid.Byte().Draw(t, "second"), 1, 2}))
	})
}
