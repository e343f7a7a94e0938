package actors

import (
	"net/netip"
	"testing"

	"firezone-gateway/messages"
)

func TestProxyAddressesOfTheOtherFamily(t *testing.T) {
	for _, tt := range []struct {
		name string
		on   bool
		want netip.Addr // behind the IPv4 proxy address of a domain with IPv6 only
	}{
		{"by default they lead nowhere", false, netip.Addr{}},
		{"with --nat64 they lead to what there is", true, real6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newPeerRig(t)
			r.plane.NAT64 = tt.on
			r.tell(authorize(site(siteID, "*.example.com")))
			r.asks(setUp("six.example.com"))
			m := next[messages.Resolve](r.t, r.dns)
			r.tell(messages.Resolved{Setup: m.Setup, Addresses: []netip.Addr{real6}})
			eventually(t, func() bool { return r.table() != nil && r.table().Lookup(proxy6) != nil }, "the domain is set up")
			eventually(t, func() bool { m := r.table().Lookup(proxy4); return m != nil && m.Real == tt.want }, "the proxy address leads where it is to")
			if m := r.table().Lookup(proxy6); m.Real != real6 {
				t.Errorf("the IPv6 proxy address leads to %v", m.Real)
			}
		})
	}
}
