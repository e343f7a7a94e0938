package natbox

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// Bounds of the table.
const (
	maxMappings = 1 << 15
	maxAllowed  = 1 << 12 // remote endpoints of one mapping
	firstPort   = 1024    // of those that are chosen at random
	sweepEvery  = time.Second
)

// private identifies a mapping from the private side: what the mapping
// distinguishes.
type private struct {
	protocol byte
	inside   netip.AddrPort
	remote   netip.AddrPort
}

// public identifies a mapping from outside.
type public struct {
	protocol byte
	outside  netip.AddrPort
}

type mapping struct {
	private
	outside netip.AddrPort
	expires time.Time
	allowed map[netip.AddrPort]time.Time // by what the filter distinguishes; values are ends
}

// table holds the mappings of a NAT.
type table struct {
	Behaviour
	random    *rand.Rand
	byPrivate map[private]*mapping
	byPublic  map[public]*mapping
	swept     time.Time
}

func newTable(b Behaviour, seed uint64) table {
	return table{
		Behaviour: b, random: rand.New(rand.NewPCG(seed, seed)),
		byPrivate: make(map[private]*mapping), byPublic: make(map[public]*mapping),
	}
}

// outbound returns the mapping that carries a packet to remote, made if need be,
// and lets remote answer. It returns nil when there is no room. The outside
// address of IPv6 is the inside one.
func (t *table) outbound(protocol byte, inside, remote netip.AddrPort, external netip.Addr, now time.Time) *mapping {
	t.sweep(now)
	depends := t.Mapping
	if !inside.Addr().Is4() {
		depends = EndpointIndependent
	}
	key := private{protocol, inside, depends.of(remote)}
	m := t.byPrivate[key]
	if m == nil || now.After(m.expires) {
		t.forget(m)
		outside, ok := t.choose(key, external)
		if !ok || len(t.byPrivate) >= maxMappings {
			return nil
		}
		m = &mapping{private: key, outside: outside, allowed: make(map[netip.AddrPort]time.Time)}
		t.byPrivate[key], t.byPublic[public{protocol, outside}] = m, m
	}
	who := t.Filtering.of(remote)
	if _, known := m.allowed[who]; !known && len(m.allowed) >= maxAllowed {
		return nil
	}
	m.expires = now.Add(lifetime(protocol))
	m.allowed[who] = m.expires
	return m
}

// inbound returns the mapping at a public endpoint, nil without one, and whether
// the filter lets remote use it. It refreshes nothing, as RFC 4787 REQ-6 permits.
func (t *table) inbound(protocol byte, outside, remote netip.AddrPort, now time.Time) (m *mapping, admitted bool) {
	m = t.byPublic[public{protocol, outside}]
	if m == nil || now.After(m.expires) {
		return nil, false
	}
	return m, !now.After(m.allowed[t.Filtering.of(remote)])
}

// choose returns a public endpoint that is free.
func (t *table) choose(key private, external netip.Addr) (netip.AddrPort, bool) {
	if !key.inside.Addr().Is4() {
		return key.inside, true
	}
	free := func(port uint16) (netip.AddrPort, bool) {
		outside := netip.AddrPortFrom(external, port)
		return outside, t.byPublic[public{key.protocol, outside}] == nil
	}
	if t.Preserving {
		if outside, ok := free(key.inside.Port()); ok {
			return outside, true
		}
	}
	const ports = 1<<16 - firstPort
	begin := t.random.IntN(ports)
	for i := range ports {
		if outside, ok := free(uint16(firstPort + (begin+i)%ports)); ok {
			return outside, true
		}
	}
	return netip.AddrPort{}, false
}

// sweep forgets what has expired, at most once in a while.
func (t *table) sweep(now time.Time) {
	if now.Sub(t.swept) < sweepEvery {
		return
	}
	t.swept = now
	for _, m := range t.byPrivate {
		if now.After(m.expires) {
			t.forget(m)
			continue
		}
		for who, end := range m.allowed {
			if now.After(end) {
				delete(m.allowed, who)
			}
		}
	}
}

func (t *table) forget(m *mapping) {
	if m == nil {
		return
	}
	delete(t.byPrivate, m.private)
	delete(t.byPublic, public{m.protocol, m.outside})
}

func lifetime(protocol byte) time.Duration {
	switch protocol {
	case protoUDP:
		return UDPLifetime
	case protoTCP:
		return TCPLifetime
	default:
		return ICMPLifetime
	}
}
