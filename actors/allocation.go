package actors

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/transport/turn"
	"firezone-gateway/messages"
)

// adoptionTrial is how long an actor has to live with an allocation that it
// adopted for the next one to adopt it, too: the fault may be in it.
const adoptionTrial = 500 * time.Millisecond

// allocation is the relay's side of a TURN allocation and what of it the packet
// path uses. It belongs to one actor at a time, which leaves it to the next one,
// so that a crash closes no channel.
type allocation struct {
	cfg     portal.DualStackRelay
	sockets *transport.Sockets // whose port the server knows it by
	machine *turn.Client
	wire    *transport.Relay // nil if there is no socket for any of the addresses
	state   messages.RelayChanged
	legs    []*relayLeg
	bound   map[uint16]netip.AddrPort
	binding bindings
	adopted time.Time // when its owner took it over, zero if that one made it
}

// intact reports whether a can be used on the sockets of p, and its parts agree
// with each other. A server's answer that was lost meanwhile is repeated, and a lost
// allocation shows with the next refresh, so that neither is looked for.
func (a *allocation) intact(p *Plane) bool {
	status := a.machine.State()
	if a.sockets != p.Bind.Sockets() || a.wire == nil || !a.state.Usable || status.State != turn.StateAllocated || len(a.bound) != status.Channels {
		return false
	}
	var relayed []netip.AddrPort
	for _, addr := range [...]netip.AddrPort{status.V4, status.V6} {
		if addr.IsValid() {
			relayed = append(relayed, addr)
		}
	}
	if !slices.Equal(relayed, a.state.Relayed) || len(a.legs) != len(relayed) {
		return false
	}
	for _, leg := range a.legs {
		if known, ok := p.sinks.legs.Load(leg.relayed); !ok || known != leg {
			return false
		}
	}
	for number, peer := range a.bound {
		path, leg := a.wire.Path(number), a.leg(peer)
		if path == nil || path.Remote() != peer || leg == nil {
			return false
		}
		if known, ok := leg.paths.Load(peer); !ok || !path.Same(known.(*transport.Path)) {
			return false
		}
	}
	return true
}

// share offers c instead of what was offered of its type and family, and reports
// whether that is a change.
func (a *allocation) share(c ice.Candidate) bool {
	if slices.ContainsFunc(a.state.Shared, func(s ice.Candidate) bool { return s.Key() == c.Key() }) {
		return false
	}
	kept := slices.DeleteFunc(slices.Clone(a.state.Shared), func(s ice.Candidate) bool {
		return s.Type == c.Type && s.Addr.Addr().Is4() == c.Addr.Addr().Is4()
	})
	a.state.Shared = append(kept, c)
	return true
}

// setRelayed takes the addresses of a new allocation.
func (a *allocation) setRelayed(p *Plane, addrs ...netip.AddrPort) {
	a.dropLegs(p)
	for _, addr := range addrs {
		if addr.IsValid() {
			leg := &relayLeg{relayed: addr}
			a.legs = append(a.legs, leg)
			a.state.Relayed = append(a.state.Relayed, addr)
			p.sinks.legs.Store(addr, leg)
		}
	}
}

// dropLegs forgets the relayed addresses with their channels.
func (a *allocation) dropLegs(p *Plane) {
	for number := range a.bound {
		a.wire.ClearChannel(number)
	}
	clear(a.bound)
	for _, leg := range a.legs {
		// The address may be that of another relay's new allocation already.
		p.sinks.legs.CompareAndDelete(leg.relayed, leg)
	}
	a.legs, a.state.Relayed = nil, nil
}

func (a *allocation) channelBound(e turn.ChannelBound) {
	path := a.wire.SetChannel(e.Number, e.Peer, e.Relayed)
	a.bound[e.Number] = e.Peer
	a.binding.end(e.Peer, "")
	if leg := a.leg(e.Peer); leg != nil && path != nil {
		leg.paths.Store(e.Peer, path)
	}
}

func (a *allocation) channelLost(e turn.ChannelLost) {
	a.wire.ClearChannel(e.Number)
	delete(a.bound, e.Number)
	if leg := a.leg(e.Peer); leg != nil {
		leg.paths.Delete(e.Peer)
	}
}

// leg returns the relayed address that peer is reached from, which is that of
// its family.
func (a *allocation) leg(peer netip.AddrPort) *relayLeg {
	for _, leg := range a.legs {
		if leg.relayed.Addr().Is4() == peer.Addr().Is4() {
			return leg
		}
	}
	return nil
}

// release takes a off the packet path.
func (a *allocation) release(p *Plane) {
	a.binding.drop("relay ended")
	a.dropLegs(p)
	if a.wire != nil {
		p.sinks.relays.Delete(a.wire)
		a.sockets.RemoveRelay(a.wire)
		a.wire = nil
	}
}

// allocations are those whose actor has ended, for the next one of the same
// relay with the same credentials. The zero value is empty.
type allocations struct {
	mu     sync.Mutex
	parked map[portal.DualStackRelay]*allocation
	barred map[portal.DualStackRelay]int
}

// park leaves a to the next actor, unless that could not use it, or must not.
func (s *allocations) park(p *Plane, a *allocation) {
	usable := a.intact(p) && (a.adopted.IsZero() || time.Since(a.adopted) >= adoptionTrial)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.barred[a.cfg] > 0:
		s.unbar(a.cfg)
		a.release(p)
	case !usable:
		a.release(p)
	default:
		if s.parked == nil {
			s.parked = map[portal.DualStackRelay]*allocation{}
		}
		s.parked[a.cfg] = a
	}
}

// bar keeps the actor of a relay that is told to stop from leaving its allocation:
// a relay that the portal took away and names again begins anew.
func (s *allocations) bar(cfg portal.DualStackRelay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.barred == nil {
		s.barred = map[portal.DualStackRelay]int{}
	}
	s.barred[cfg]++
}

// unbar takes one bar back; the caller holds the lock.
func (s *allocations) unbar(cfg portal.DualStackRelay) {
	if s.barred[cfg]--; s.barred[cfg] <= 0 {
		delete(s.barred, cfg)
	}
}

// adopt returns the allocation that was left for cfg, nil if there is none that
// can be used on the sockets in use.
func (s *allocations) adopt(p *Plane, cfg portal.DualStackRelay) *allocation {
	a := s.take(cfg)
	if a == nil {
		return nil
	}
	if !a.intact(p) {
		a.release(p)
		return nil
	}
	a.adopted = time.Now()
	return a
}

// retain releases what was left for other relays than these.
func (s *allocations) retain(p *Plane, known []portal.DualStackRelay) {
	for _, cfg := range s.left() {
		if slices.Contains(known, cfg) {
			continue
		}
		if a := s.take(cfg); a != nil {
			a.release(p)
		}
	}
}

func (s *allocations) take(cfg portal.DualStackRelay) *allocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.parked[cfg]
	delete(s.parked, cfg)
	return a
}

func (s *allocations) left() (cfgs []portal.DualStackRelay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for cfg := range s.parked {
		cfgs = append(cfgs, cfg)
	}
	return cfgs
}
