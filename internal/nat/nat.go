// Package nat translates the traffic of one client's DNS resources.
//
// A client makes up proxy addresses for the domains it wants to reach. A Table
// knows which real address stands behind each of them and keeps a session for
// every flow, so that replies find their way back. One goroutine at a time
// writes; any number of others translate packets meanwhile, without locks and
// without allocating.
//
// The package is pure: the time is passed in, as nanoseconds of a clock that
// all calls share and that starts anywhere. The rules come from dataplane
// §3.4–3.7; where the two generations of the protocol differ it has the form of
// G1.6. Addresses of the two families are translated into each other only where
// Config.NAT64 says so.
package nat

import (
	"math/bits"
	"sync/atomic"

	"firezone-gateway/internal/packet"
)

// Result says what became of a packet. The zero value leaves it to others.
type Result uint8

// The results. Only Translated changes the packet. OtherFamily is for packets of
// sessions whose two sides are of different families.
const (
	Untouched   Result = iota // neither to a proxy address nor of a session
	Translated                // rewritten, checksums included
	OtherFamily               // to be rewritten by CrossToResource or CrossToClient, which need room
	NeedSession               // the first packet of a flow: pass it to Open
	Unresolved                // a proxy address without a real one; answer packet.NoRoute
	Unsupported               // to a proxy address, in a protocol that has no way back
	Ended                     // from the network, for a session that has ended
	Full                      // the client has as many sessions as it may have
	Exhausted                 // no port or identifier is left towards the real address
	TooBig                    // from the network, and larger than a tunnel takes with the headers of the other family
)

// String returns the result as it appears in traces.
func (r Result) String() string {
	switch r {
	case Untouched:
		return "untouched"
	case Translated:
		return "translated"
	case OtherFamily:
		return "other_family"
	case NeedSession:
		return "need_session"
	case Unresolved:
		return "unresolved"
	case Unsupported:
		return "unsupported"
	case Ended:
		return "ended"
	case Full:
		return "full"
	case Exhausted:
		return "exhausted"
	case TooBig:
		return "too_big"
	}
	return "invalid"
}

// Limits of a Config that leaves them out.
const (
	DefaultMaxSessions   = 1 << 17
	DefaultMaxProxies    = 1 << 16 // 8,192 domains with eight proxy addresses each
	DefaultMaxRemembered = 1 << 16
)

// Config bounds a Table. A limit of 0 means its default.
type Config struct {
	MaxSessions int // at a time; a session takes about 120 bytes
	MaxProxies  int // proxy addresses that are mapped at a time

	// MaxRemembered bounds how many ended sessions are remembered, each of
	// about 100 bytes. Packets from the network for one that is forgotten are
	// no longer told from packets that were never translated (dataplane §11,
	// defect 2).
	MaxRemembered int

	// NAT64 lets a proxy address without real address of its family stand for one
	// of the other family (RFC 7915).
	NAT64 bool

	// Seed is a random number that keeps the client from choosing ports and
	// addresses that meet in one place of the table.
	Seed uint64
}

// Table is the address translation of one client. ToResource, ToClient,
// Lookup, Mappings and Stats may be called by any number of goroutines at any
// time; all other methods by one goroutine at a time. A Table outlives its writer: the next one
// goes on with it.
type Table struct {
	mappings index[Mapping]
	inside   index[session] // by insideHash, live sessions
	outside  index[session] // by outsideHash, live and remembered sessions
	seed     [2]uint64
	max      Config

	ids atomic.Uint32 // of the IPv4 packets made so far

	// For the writer.
	ports      map[portSpace]*portSet
	remembered queue // ended sessions, the oldest first
	version    uint64
	stats      counters
}

// Stats counts what a Table holds and what happened to it.
type Stats struct {
	Proxies, Sessions, Remembered int    // held
	Opened, Ended                 uint64 // sessions since New
	RefusedFull, RefusedExhausted uint64 // sessions that were not opened
	Resets                        uint64
}

// New returns an empty Table.
func New(c Config) *Table {
	if c.MaxSessions <= 0 {
		c.MaxSessions = DefaultMaxSessions
	}
	if c.MaxProxies <= 0 {
		c.MaxProxies = DefaultMaxProxies
	}
	if c.MaxRemembered <= 0 {
		c.MaxRemembered = DefaultMaxRemembered
	}
	t := &Table{max: c, seed: [2]uint64{spread(c.Seed), spread(c.Seed + 1)}, ports: make(map[portSpace]*portSet)}
	t.ids.Store(uint32(spread(c.Seed + 2)))
	return t
}

// counters is what Stats counts, written by the writer only.
type counters struct {
	opened, ended, refusedFull, refusedExhausted, resets atomic.Uint64
}

// Stats returns the current figures, which are consistent one by one.
func (t *Table) Stats() Stats {
	c := &t.stats
	s := Stats{
		Proxies: t.mappings.len(), Sessions: t.inside.len(),
		Opened: c.opened.Load(), Ended: c.ended.Load(),
		RefusedFull: c.refusedFull.Load(), RefusedExhausted: c.refusedExhausted.Load(), Resets: c.resets.Load(),
	}
	s.Remembered = max(0, t.outside.len()-s.Sessions)
	return s
}

// Reset forgets everything: mappings, sessions and the memory of ended ones.
func (t *Table) Reset() {
	t.stats.ended.Add(uint64(t.inside.len()))
	t.stats.resets.Add(1)
	t.inside.clear()
	t.outside.clear()
	t.mappings.clear()
	t.remembered = queue{}
	clear(t.ports)
}

// insideHash and outsideHash spread keys over the indexes. Both fold a 128-bit
// product, which mixes every bit of the input into every bit of the result.
func (t *Table) insideHash(key uint64) uint64 {
	return usable(fold(key^t.seed[0], golden))
}

func (t *Table) outsideHash(k outsideKey) uint64 {
	return usable(fold(fold(k.high^t.seed[0], k.low^t.seed[1])^k.meta, golden))
}

func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

// golden is 2^64 divided by the golden ratio.
const golden = 0x9e3779b97f4a7c15

// spread makes any number one whose bits look random (the finaliser of
// SplitMix64): a seed of few bits would let keys meet.
func spread(x uint64) uint64 {
	x += golden
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// translatable reports whether packets of that kind have ports or an identifier
// by which replies are recognised.
func translatable(k packet.Kind) bool {
	return k == packet.KindTCP || k == packet.KindUDP || k == packet.KindEcho
}
