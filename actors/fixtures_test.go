package actors

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/messages"
)

var ownAddresses = messages.TunnelAddresses{
	V4: netip.MustParseAddr("100.64.0.1"), V6: netip.MustParseAddr("fd00:2021:1111::1"),
}

// authorization grants resource n.0.0.0/8 to client c for an hour.
func authorization(c, n byte, change ...func(*portal.Authorize)) portal.Authorize {
	a := portal.Authorize{
		Generation: portal.V2,
		Ref:        portal.Ref(fmt.Sprintf("s3cret-ref-%d-%d", c, n)),
		Resource: portal.Resource{
			ID: resourceID(n), Name: "network", Type: portal.ResourceCIDR, Address: network(n).String(), Network: network(n),
		},
		Client: portal.Client{
			ID:        clientID(c),
			PublicKey: portal.PublicKey{c, 1, 2, 3}, PresharedKey: portal.PresharedKey{c, 9},
			IPv4: netip.AddrFrom4([4]byte{100, 64, 1, c}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:2021:1111::1:%x", c)),
		},
		ClientICE:  portal.ICECredentials{Username: fmt.Sprintf("cl%02d", c), Password: "s3cretPasswordOfTheClient"},
		GatewayICE: portal.ICECredentials{Username: fmt.Sprintf("gw%02d", c), Password: "s3cretPasswordOfTheGateway"},
		ExpiresAt:  time.Now().Add(time.Hour),
	}
	for _, f := range change {
		f(&a)
	}
	return a
}

func clientID(c byte) string   { return fmt.Sprintf("client-%d", c) }
func resourceID(n byte) string { return fmt.Sprintf("resource-%d", n) }

func network(n byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{n, 0, 0, 0}), 8)
}

func authorize(a portal.Authorize) messages.Authorize {
	return messages.Authorize{Authorization: a, Gateway: ownAddresses, Connection: 7}
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// What the relays of the tests offer.
var (
	hostShared = ice.Candidate{Type: ice.Host, Addr: addr("127.0.0.1:52625"), Base: addr("127.0.0.1:52625")}
	srflx      = ice.Candidate{Type: ice.ServerReflexive, Addr: addr("127.0.0.3:40000"), Base: addr("127.0.0.1:52625")}
)

func relayOffer(id, relayed string) messages.RelayChanged {
	r := messages.RelayChanged{RelayID: id, Usable: true, Shared: []ice.Candidate{hostShared, srflx}}
	if relayed != "" {
		r.Relayed = []netip.AddrPort{addr(relayed)}
	}
	return r
}

func offers(version uint64, relays ...messages.RelayChanged) messages.RelaysChanged {
	return messages.RelaysChanged{Version: version, Relays: relays}
}

// Candidate strings of a client.
const (
	remoteHost  = "candidate:1 1 udp 2130706175 127.0.0.1 5001 typ host"
	remoteSrflx = "candidate:2 1 udp 1694498559 127.0.0.5 6001 typ srflx raddr 0.0.0.0 rport 0"
	remoteBad   = "candidate:3 1 tcp 1694498559 127.0.0.5 6001 typ srflx"
)

// admits reports whether the policy lets a packet of client c to n.1.2.3 pass.
func admits(t testing.TB, p *testPlane, c, n byte) bool {
	t.Helper()
	a := authorization(c, n)
	client, ok := p.Tunnel.Lookup(a.Client.PublicKey)
	if !ok {
		return false
	}
	var v packet.View
	from, to := netip.AddrPortFrom(a.Client.IPv4, 4000), netip.AddrPortFrom(netip.AddrFrom4([4]byte{n, 1, 2, 3}), 53)
	if r := v.Parse(packettest.UDP(from, to, []byte("question"))); r != drop.None {
		t.Fatal(r)
	}
	return client.Policy().Outbound(&v, policy.NoProxies, time.Now().UnixNano()).Action == policy.Forward
}

// said is a message of the portal on a connection with the first key pair.
func said(m portal.Message) messages.FromPortal {
	return messages.FromPortal{Message: m, Connection: 7, Epoch: 1}
}
