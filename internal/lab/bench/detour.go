package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

// detour is what a relayed run has beside the two hops: a host with the relay
// between the middle and a client of its own. The host forwards nothing, so the
// only way from that client to the middle leads through the relay.
//
//	Client ------------------- Middle -- Resource
//	detour.client -- detour.relay --'
type detour struct {
	relay  labnet.Host // with its address towards the middle
	client labnet.Host
}

// Networks of the detour, apart from those of labnet.TwoHop.
var (
	relayToMiddle = netip.MustParsePrefix("198.18.1.2/24")
	middleToRelay = netip.MustParsePrefix("198.18.1.1/24")
	relayToClient = netip.MustParsePrefix("198.18.2.1/24")
	clientToRelay = netip.MustParsePrefix("198.18.2.2/24")
	everywhere    = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
)

// Devices of the detour, and that of the other client.
const (
	towardsMiddle  = "eth0"
	towardsClient  = "eth1"
	middlesDetour  = "eth2"
	uplinkOfClient = "eth0"
)

func newDetour(n *labnet.TwoHop) (d detour, err error) {
	d.relay.IPv4, d.client.IPv4 = relayToMiddle.Addr(), clientToRelay.Addr()
	if d.relay.Namespace, err = n.Lab.AddNamespace("relay"); err != nil {
		return d, err
	}
	if d.client.Namespace, err = n.Lab.AddNamespace("client-relayed"); err != nil {
		return d, err
	}
	end := func(ns *labnet.Namespace, device string, address netip.Prefix) labnet.End {
		return labnet.End{Namespace: ns, Device: device, Addresses: []netip.Prefix{address}}
	}
	return d, errors.Join(
		// A new namespace may inherit that it forwards.
		d.relay.SetSysctl("net/ipv4/ip_forward", "0"),
		n.Lab.Connect(end(d.relay.Namespace, towardsMiddle, relayToMiddle), end(n.Middle.Namespace, middlesDetour, middleToRelay)),
		n.Lab.Connect(end(d.relay.Namespace, towardsClient, relayToClient), end(d.client.Namespace, uplinkOfClient, clientToRelay)),
		// With routes through the relay's host, what is meant for the other side
		// is lost there without a word, as in a firewall.
		d.client.AddRoute(everywhere, relayToClient.Addr(), uplinkOfClient),
		n.Middle.AddRoute(clientToRelay.Masked(), relayToMiddle.Addr(), middlesDetour),
		// The other client reaches portal and relay through the middle.
		n.Client.AddRoute(relayToMiddle.Masked(), n.Middle.IPv4, uplinkOfClient),
		d.relay.AddRoute(netip.PrefixFrom(n.Client.IPv4, 24).Masked(), middleToRelay.Addr(), towardsMiddle),
	)
}

// buildRelayed puts the gateway alone in the middle, with one client that
// reaches it and one that does not.
func (r *rig) buildRelayed(ctx context.Context) error {
	d, err := newDetour(r.net)
	if err != nil {
		return fmt.Errorf("detour: %w", err)
	}
	return r.addGateway(ctx, d.relay, d.relay,
		way{name: relayedWay, client: d.client, relayed: true, granted: byAddress},
		way{name: "direct", client: r.net.Client, granted: byAddress})
}

const relayedWay = "relayed"

// forwarded returns the payload bytes that the relay of a relayed run has moved
// so far in a direction. The gateway is the relay's client, so what goes to the
// resource comes from a peer.
func (r *rig) forwarded(d resource.Direction) uint64 {
	if !r.options.Relayed {
		return 0
	}
	stats := r.relay.Stats()
	if d == resource.ToResource {
		return stats.FromPeers.Bytes
	}
	return stats.ToPeers.Bytes
}

// leftover is what may still be on its way of the stream before: no more than a
// TCP window.
const leftover = 8 << 20

// checkPath holds that a stream of so many bytes went the way it should. What the relay forwards beside a direct stream is connectivity checks
// and the end of the stream before.
func (w way) checkPath(stream, forwarded uint64) error {
	if w.relayed && forwarded < stream || !w.relayed && forwarded > stream/2+leftover {
		return fmt.Errorf("the relay forwarded %d bytes during a %s stream of %d", forwarded, w.kind(), stream)
	}
	return nil
}
