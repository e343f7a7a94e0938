package actors

import (
	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
)

// players make the actors of each kind. Tests put others in their place.
type players struct {
	portal, tun, transport, peers func(*Plane) actorkit.Actor
	relay                         func(*Plane, portal.DualStackRelay) actorkit.Actor
	peer                          func(peerEnv) actorkit.Actor
}

var allPlayers = players{
	portal:    func(p *Plane) actorkit.Actor { return newPortal(p) },
	tun:       func(p *Plane) actorkit.Actor { return newTUN(p) },
	transport: func(p *Plane) actorkit.Actor { return newTransport(p) },
	peers:     func(p *Plane) actorkit.Actor { return newPeers(p) },
	relay:     func(p *Plane, cfg portal.DualStackRelay) actorkit.Actor { return newRelay(p, cfg) },
	peer:      func(env peerEnv) actorkit.Actor { return newPeer(env) },
}
