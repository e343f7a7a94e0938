package actors

import (
	"net/netip"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
)

// players make the actors of each kind. Tests put others in their place.
type players struct {
	portal, tun, transport, peers func(*Plane) actorkit.Actor
	relay                         func(*Plane, portal.DualStackRelay) actorkit.Actor
	peer                          func(peerEnv) actorkit.Actor
	nat                           func(*Plane, *tunnel.NAT) actorkit.Actor
	dns, resolver                 func(*Plane) actorkit.Actor
	dnsServer                     func(*Plane, dns.Network, netip.AddrPort) actorkit.Actor
}

var allPlayers = players{
	portal:    func(p *Plane) actorkit.Actor { return newPortal(p) },
	tun:       func(p *Plane) actorkit.Actor { return newTUN(p) },
	transport: func(p *Plane) actorkit.Actor { return newTransport(p) },
	peers:     func(p *Plane) actorkit.Actor { return newPeers(p) },
	relay:     func(p *Plane, cfg portal.DualStackRelay) actorkit.Actor { return newRelay(p, cfg) },
	peer:      func(env peerEnv) actorkit.Actor { return newPeer(env) },
	nat:       func(p *Plane, n *tunnel.NAT) actorkit.Actor { return newNAT(p, n) },
	dns:       func(p *Plane) actorkit.Actor { return newDNS(p) },
	resolver:  func(p *Plane) actorkit.Actor { return newResolver(p) },
	dnsServer: func(p *Plane, n dns.Network, a netip.AddrPort) actorkit.Actor { return newDNSServer(p, n, a) },
}
