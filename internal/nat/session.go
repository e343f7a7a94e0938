package nat

import (
	"encoding/binary"
	"iter"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"firezone-gateway/internal/packet"
)

// Lifetimes of sessions (dataplane §3.6). A session ends when the earliest that
// applies has passed.
const (
	TCPIdle     = 2*time.Hour + 4*time.Minute // since the last packet, either way
	UDPIdle     = 2 * time.Minute             // same
	EchoIdle    = 2 * time.Minute             // same
	Unconfirmed = time.Minute                 // since the last packet out, while none has come back
	Finished    = 5 * time.Second             // since the last packet, after FIN both ways
)

// Memory is how long an ended session is remembered, counted from the sweep that
// follows its end. Packets of the network for it that come later than that are
// judged as if there had been none; TCP has given up by then, or nearly.
const Memory = 10 * time.Minute

// Session describes a session for those who look at it.
type Session struct {
	Kind          packet.Kind // KindTCP, KindUDP or KindEcho
	Proxy, Real   netip.Addr
	Inside        uint16 // the client's port or identifier
	Outside       uint16 // that port or identifier on the way to Real
	LastOut       int64  // time of the last packet of the client
	LastIn        int64  // time of the last packet from the network, if Confirmed
	Confirmed     bool   // a packet came back
	FinOut, FinIn bool   // TCP: FIN seen on the way out, on the way in
	Reset         bool   // TCP: RST seen, ends with the next sweep
}

// session is one flow. Readers write the stamps and the state, all else is
// fixed. It has no pointers, to spare the garbage collector a look, and takes 48
// bytes.
type session struct {
	inside    uint64 // insideKey
	high, low uint64 // real address; an IPv4 address in its mapped form
	lastOut   atomic.Int64
	lastIn    atomic.Int64 // never until a packet came back
	state     atomic.Uint32
	outside   uint16
}

const never = math.MinInt64

// Bits of session.state.
const (
	finOut uint32 = 1 << iota
	finIn
	reset
	ended     // by the writer
	forgotten // by the writer: no longer in an index

	closing = finOut | finIn | reset
)

// TCP flags, and where they are in the header.
const (
	tcpFlags = 13

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// The key of a session's inside: kind, family, the part of the proxy address
// that is not fixed, and port or identifier.
const (
	insideHost = 16 // 21 bits
	insideIs6  = 37
	insideKind = 38

	proxyMask = 1<<(insideIs6+1) - 1<<insideHost
	flowMask  = ^uint64(1<<insideIs6 - 1) // kind and family
	kindMask  = ^uint64(1<<insideKind - 1)
)

func insideKey(kind packet.Kind, proxy uint64, port uint16) uint64 {
	return uint64(kind)<<insideKind | proxy | uint64(port)
}

// outsideKey is the key of a session's outside. meta is kind and family, of the
// real address, as in the inside key, and port or identifier.
type outsideKey struct{ high, low, meta uint64 }

func makeOutsideKey(kind packet.Kind, real netip.Addr, port uint16) outsideKey {
	b := real.As16()
	k := outsideKey{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint64(kind)<<insideKind | uint64(port)}
	if real.Is6() {
		k.meta |= 1 << insideIs6
	}
	return k
}

// findInside returns the session of a packet of the client, nil if it is new.
func (t *Table) findInside(key uint64) *session {
	var f sought
	f.begin(&t.inside, t.insideHash(key))
	return findInside(&f, key)
}

// findOutside returns the session, live or remembered, of a packet from the
// network, nil if it belongs to none.
func (t *Table) findOutside(k outsideKey) *session {
	var f sought
	f.begin(&t.outside, t.outsideHash(k))
	return findOutside(&f, k)
}

func (s *session) outsideKey() outsideKey {
	k := outsideKey{s.high, s.low, s.inside&kindMask | uint64(s.outside)}
	if s.real6() {
		k.meta |= 1 << insideIs6
	}
	return k
}

func (s *session) kind() packet.Kind { return packet.Kind(s.inside >> insideKind) }
func (s *session) is6() bool         { return s.inside>>insideIs6&1 != 0 }
func (s *session) port() uint16      { return uint16(s.inside) }
func (s *session) proxyKey() uint64  { return s.inside & proxyMask }

func (s *session) real() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], s.high)
	binary.BigEndian.PutUint64(b[8:], s.low)
	if s.real6() {
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(b[12:]))
}

// over reports whether the session's time is up. RST is left to the sweep:
// until then packets pass (dataplane §3.6).
func (s *session) over(now int64) bool {
	ttl := EchoIdle
	switch s.kind() {
	case packet.KindTCP:
		ttl = TCPIdle
	case packet.KindUDP:
		ttl = UDPIdle
	}
	out, in := s.lastOut.Load(), s.lastIn.Load()
	if in == never {
		ttl = min(ttl, Unconfirmed)
	}
	if state := s.state.Load(); state&closing != 0 && state&(finOut|finIn) == finOut|finIn {
		ttl = min(ttl, Finished)
	}
	return now-max(out, in) >= int64(ttl)
}

// noteOut records a packet of the client. A bare SYN begins another connection
// with the same ports, which must not end with the one before.
func (s *session) noteOut(v *packet.View, now int64) {
	stamp(&s.lastOut, now)
	if v.Kind != packet.KindTCP {
		return
	}
	switch flags := v.B[v.Transport+tcpFlags]; {
	case flags&(flagFIN|flagSYN|flagRST) == 0:
	case flags&flagRST != 0:
		s.state.Or(reset)
	case flags&flagFIN != 0:
		s.state.Or(finOut)
	case flags&flagACK == 0:
		s.state.And(^closing)
	}
}

// noteIn records a packet from the network.
func (s *session) noteIn(v *packet.View, now int64) {
	stamp(&s.lastIn, now)
	if v.Kind != packet.KindTCP {
		return
	}
	switch flags := v.B[v.Transport+tcpFlags]; {
	case flags&(flagFIN|flagRST) == 0:
	case flags&flagRST != 0:
		s.state.Or(reset)
	default:
		s.state.Or(finIn)
	}
}

// stamp records the time of a packet. The packets of a batch share one, so that
// a busy session is written to once a batch: its two directions may be
// translated on two processors, which would else take it from each other. The
// time of a batch that was held up does not replace that of a later one.
func stamp(at *atomic.Int64, now int64) {
	if at.Load() < now {
		at.Store(now)
	}
}

// Sessions yields each session. The table must not be changed meanwhile.
func (t *Table) Sessions() iter.Seq[Session] {
	return func(yield func(Session) bool) {
		for s := range t.inside.all() {
			if !yield(s.describe()) {
				return
			}
		}
	}
}

func (s *session) describe() Session {
	state := s.state.Load()
	out := Session{
		Kind: s.kind(), Proxy: proxyAddr(s.proxyKey()), Real: s.real(),
		Inside: s.port(), Outside: s.outside, LastOut: s.lastOut.Load(),
		FinOut: state&finOut != 0, FinIn: state&finIn != 0, Reset: state&reset != 0,
	}
	if in := s.lastIn.Load(); in != never {
		out.LastIn, out.Confirmed = in, true
	}
	return out
}
