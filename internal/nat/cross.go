package nat

import (
	"net/netip"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
)

// Crossing is where a packet lies that changes its IP version, and the address
// that it cannot tell.
type Crossing struct {
	// Buf[At:] is the packet, with room for packet.MaxGrowth bytes before it.
	Buf []byte
	At  int
	// Client is the client's tunnel address of the other family; invalid if it has
	// none.
	Client netip.Addr
}

// mss6 is the maximum segment size of TCP over IPv6 in a tunnel. A client that
// sends IPv4 announces what fits over IPv4, and its peer would have to learn
// better from errors.
const mss6 = packet.MaxSize - 40 - 20

// CrossToResource translates a packet that ToResource or Open called OtherFamily.
// The packet is c.Buf[start:] afterwards and may be larger than packet.MaxSize. What
// a SYN announces as maximum segment size fits into the tunnel on the way back. It
// returns Translated, Unresolved for a client without address of the other
// family, Unsupported, or NeedSession if the session has ended meanwhile.
func (t *Table) CrossToResource(v *packet.View, c Crossing, now int64) (start int, r Result) {
	var ls [1]Lookup
	t.Begin(&ls[0], v)
	t.Finish(ls[:])
	s := ls[0].found.session
	switch {
	case s == nil || s.over(now):
		return c.At, NeedSession
	case !c.Client.IsValid():
		return c.At, Unresolved
	}
	start, r = t.cross(v, c, c.Client, s.real(), packet.MaxSize+packet.MaxGrowth)
	if r != Translated {
		return c.At, Unsupported
	}
	s.noteOut(v, now)
	if v.Is6() {
		v.LimitMSS(mss6)
	}
	if v.SrcPort != s.outside {
		v.SetSourcePort(s.outside)
	}
	return start, Translated
}

// CrossToClient translates a packet that ToClient called OtherFamily. The packet
// is c.Buf[start:] afterwards. It returns Translated, Unsupported, TooBig if the
// client's tunnel does not take what it would become, or Ended if the session has
// ended meanwhile.
func (t *Table) CrossToClient(v *packet.View, c Crossing, now int64) (start int, r Result) {
	var rs [1]Return
	t.BeginReturn(&rs[0], v)
	FinishReturns(rs[:])
	s := rs[0].found.session
	switch {
	case s == nil || s.state.Load()&ended != 0 || s.over(now):
		return c.At, Ended
	case !c.Client.IsValid():
		return c.At, Unsupported
	}
	proxy := proxyAddr(s.proxyKey())
	start, r = t.cross(v, c, proxy, c.Client, packet.MaxSize)
	if r != Translated {
		return c.At, r
	}
	s.noteIn(v, now)
	if quote, ok := v.Quote(); ok {
		restoreQuote(v, &quote, proxy, s.port())
		makeError(v, proxy)
	} else if v.DstPort != s.port() {
		v.SetDestinationPort(s.port())
	}
	return start, Translated
}

// cross translates v, which must not be larger than limit afterwards.
func (t *Table) cross(v *packet.View, c Crossing, src, dst netip.Addr, limit int) (start int, r Result) {
	to := packet.Translation{Src: src, Dst: dst, ID: uint16(t.ids.Add(1)), Limit: limit}
	switch start, fault := v.Translate(c.Buf, c.At, &to); fault {
	case drop.None:
		return start, Translated
	case drop.Oversize:
		return c.At, TooBig
	}
	return c.At, Unsupported
}

// crosses reports whether the session leads from a proxy address of one family to
// a real address of the other.
func (s *session) crosses() bool { return s.is6() != s.real6() }

// real6 reports whether the real address is IPv6. An IPv4 address is in its mapped
// form, which no real address has otherwise.
func (s *session) real6() bool { return s.high != 0 || s.low>>32 != 0xffff }
