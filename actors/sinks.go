package actors

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/messages"
)

// relayLimit bounds the datagrams of one relay that wait for its actor.
const relayLimit = 128

var errNoChannel = fmt.Errorf("no channel to the address: %w", ice.ErrNotReady)

// sinks take STUN off the sockets: to the agents, or to the actor of a relay.
// Its methods run on the receiving goroutines and never wait.
type sinks struct {
	drops  *drop.Counters
	plane  *Plane // for the port of the sockets
	mux    atomic.Pointer[ice.Mux]
	relays sync.Map // *transport.Relay → *relaySink
	legs   sync.Map // relayed netip.AddrPort → *relayLeg
	demand atomic.Pointer[channelDemand]
}

// relaySink is the way to the actor of a relay.
type relaySink struct {
	system *actorkit.System
	pid    actorkit.PID
	gate   *actorkit.Gate
}

// relayLeg finds the channel to a peer behind a relayed address.
type relayLeg struct {
	relayed netip.AddrPort
	paths   sync.Map // peer netip.AddrPort → *transport.Path
}

// STUN implements transport.Sinks.
func (s *sinks) STUN(b []byte, p *transport.Path) {
	if mux := s.mux.Load(); mux != nil {
		s.drops.Add(mux.Deliver(b, p.Local(), p.Remote()), 1)
	}
}

// Relay implements transport.Sinks.
func (s *sinks) Relay(r *transport.Relay, b []byte, local netip.Addr) {
	v, ok := s.relays.Load(r)
	if !ok {
		s.drops.Add(drop.STUNUnknown, 1)
		return
	}
	sink := v.(*relaySink)
	msg := messages.FromRelay{
		From:     serverOf(r, local),
		Local:    netip.AddrPortFrom(local, s.plane.Bind.Sockets().LocalPort(transport.FamilyOf(local))),
		Datagram: append([]byte(nil), b...),
	}
	if !sink.gate.TrySend(sink.system, sink.pid, msg) {
		s.drops.Add(drop.STUNOverflow, 1)
	}
}

// SendSTUN implements ice.Sender. A local address that is a relayed one stands
// for a channel; if there is none yet it is asked for.
func (s *sinks) SendSTUN(b []byte, local, remote netip.AddrPort) error {
	path := s.path(local, remote)
	if path == nil {
		s.demand.Load().ask(local, remote)
		return errNoChannel
	}
	return s.plane.Bind.Sockets().SendTo(b, path)
}

// path returns the way between two addresses, nil if it takes a channel that does
// not exist.
func (s *sinks) path(local, remote netip.AddrPort) *transport.Path {
	v, relayed := s.legs.Load(local)
	if !relayed {
		return s.plane.Bind.Sockets().Path(local.Addr(), remote)
	}
	if path, ok := v.(*relayLeg).paths.Load(remote); ok {
		return path.(*transport.Path)
	}
	return nil
}

// serverOf returns the address of the relay that a datagram to local came from:
// a relay has one address per family.
func serverOf(r *transport.Relay, local netip.Addr) netip.AddrPort {
	for _, server := range r.Servers() {
		if server.Addr().Is4() == local.Is4() {
			return server
		}
	}
	return netip.AddrPort{}
}
