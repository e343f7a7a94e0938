package actors

import (
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
)

func TestTheGatewayIsClosedToClientsUnlessItIsOpened(t *testing.T) {
	for _, open := range []bool{false, true} {
		r := newPeerRig(t)
		r.plane.GatewayOpen = open
		client := r.granted()
		var v packet.View
		from := netip.AddrPortFrom(authorization(1, 0).Client.IPv4, 4000)
		v.Parse(packettest.UDP(from, netip.AddrPortFrom(ownAddresses.V4, 8080), nil))
		if got := client.Policy().Outbound(&v, policy.NoProxies, time.Now().UnixNano()).Action == policy.Forward; got != open {
			t.Errorf("opened %v: passes %v", open, got)
		}
	}
}
