package transport

import (
	"net/netip"
	"slices"
	"sync/atomic"
)

// Channel numbers that Firezone relays understand (T-41).
const (
	MinChannel = 0x4000
	MaxChannel = 0x4FFF
)

// Relay is one TURN server as the packet path sees it: its addresses and its
// channels. All methods may be called concurrently.
type Relay struct {
	peers    *Peers
	servers  []netip.AddrPort // immutable
	server   atomic.Pointer[netip.AddrPort]
	channels [MaxChannel - MinChannel + 1]atomic.Pointer[Path]
}

// Servers returns the addresses of the relay, which the caller must not change.
func (r *Relay) Servers() []netip.AddrPort { return r.servers }

// Server returns the address that new channels send to.
func (r *Relay) Server() netip.AddrPort { return *r.server.Load() }

// UseServer makes one of Servers the address that channels set from then on send
// to; it is the first one at the start. It returns false for any other address.
func (r *Relay) UseServer(server netip.AddrPort) bool {
	i := slices.Index(r.servers, unmap(server))
	if i < 0 {
		return false
	}
	r.server.Store(&r.servers[i])
	return true
}

// SetChannel admits data on channel number from peer and returns the path
// through it; relayed is our address on the relay, of the peer's family. The path
// that is already there is kept and returned if it is the same. The result is nil
// when number is not within MinChannel and MaxChannel.
func (r *Relay) SetChannel(number uint16, peer, relayed netip.AddrPort) *Path {
	if number < MinChannel || number > MaxChannel {
		return nil
	}
	p := newRelayedPath(r.peers, r, number, r.Server(), relayed, peer)
	slot := &r.channels[number-MinChannel]
	if old := slot.Load(); old.Same(p) && old.to == p.to {
		return old
	}
	slot.Store(p)
	return p
}

// ClearChannel ends channel number; data arriving on it is dropped.
func (r *Relay) ClearChannel(number uint16) {
	if number >= MinChannel && number <= MaxChannel {
		r.channels[number-MinChannel].Store(nil)
	}
}

// Path returns the path through channel number, nil if there is none.
func (r *Relay) Path(number uint16) *Path {
	if number < MinChannel || number > MaxChannel {
		return nil
	}
	return r.channels[number-MinChannel].Load()
}

// AddRelay makes a relay known by the address of its server and its further
// addresses. From then on datagrams from there are TURN, and of this relay: it
// takes the place of those that had one of the addresses.
func (s *Sockets) AddRelay(server netip.AddrPort, further ...netip.AddrPort) *Relay {
	r := &Relay{peers: s.peers, servers: []netip.AddrPort{unmap(server)}}
	for _, f := range further {
		r.servers = append(r.servers, unmap(f))
	}
	r.server.Store(&r.servers[0])
	s.updateRelays(func(relays []*Relay) []*Relay {
		relays = slices.DeleteFunc(relays, func(o *Relay) bool {
			return slices.ContainsFunc(o.servers, func(a netip.AddrPort) bool { return slices.Contains(r.servers, a) })
		})
		return append(relays, r)
	})
	return r
}

// RemoveRelay forgets r. Its channels receive nothing any more; sending through
// their paths remains possible and is up to the relay.
func (s *Sockets) RemoveRelay(r *Relay) {
	s.updateRelays(func(relays []*Relay) []*Relay {
		return slices.DeleteFunc(relays, func(o *Relay) bool { return o == r })
	})
}

func (s *Sockets) updateRelays(change func([]*Relay) []*Relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := change(slices.Clone(*s.relays.Load()))
	s.relays.Store(&next)
}

// findRelay returns the relay with this server address, nil if there is none.
// Gateways know a handful of relays.
func findRelay(relays []*Relay, from netip.AddrPort) *Relay {
	for _, r := range relays {
		for _, server := range r.servers {
			if server == from {
				return r
			}
		}
	}
	return nil
}
