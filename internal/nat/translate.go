package nat

import "firezone-gateway/internal/packet"

// ToResource translates a packet of the client that its policy has admitted: to
// the real address behind the proxy address it names, from the port or with the
// identifier of its session. It returns Untouched, Translated, NeedSession,
// Unresolved or Unsupported (dataplane §2.1 steps 10 to 14).
func (t *Table) ToResource(v *packet.View, now int64) Result {
	proxy, ok := proxyKey(v.Dst)
	if !ok {
		return Untouched
	}
	m := t.mapping(proxy)
	switch {
	case m == nil || !m.Real.IsValid():
		return Unresolved
	case !translatable(v.Kind):
		return Unsupported
	}
	s := t.findInside(insideKey(v.Kind, proxy, v.SrcPort))
	if s == nil || s.over(now) {
		return NeedSession
	}
	s.noteOut(v, now)
	v.SetDestination(s.real())
	if v.SrcPort != s.outside {
		v.SetSourcePort(s.outside)
	}
	return Translated
}

// ToClient translates a packet from the network to the client: from the proxy
// address, to the port or with the identifier that the client used. It comes
// before the policy, which judges the translated packet (dataplane §4.1 step
// 6). An ICMP error about a session becomes one about the packet that the
// client sent. It returns Untouched, Translated or Ended.
func (t *Table) ToClient(v *packet.View, now int64) Result {
	var k outsideKey
	var quote packet.Quote
	switch v.Kind {
	case packet.KindTCP, packet.KindUDP, packet.KindEcho:
		k = makeOutsideKey(v.Kind, v.Src, v.DstPort)
	case packet.KindICMPError:
		quote, _ = v.Quote()
		k = makeOutsideKey(quote.Kind, quote.Dst, quote.SrcPort)
	default:
		return Untouched
	}
	s := t.findOutside(k)
	switch {
	case s == nil:
		return Untouched
	case s.state.Load()&ended != 0 || s.over(now):
		return Ended
	}
	s.noteIn(v, now)
	proxy := proxyAddr(s.proxyKey())
	if v.Kind == packet.KindICMPError {
		restoreQuote(v, &quote, proxy, s.port())
		makeError(v, proxy)
		return Translated
	}
	v.SetSource(proxy)
	if v.DstPort != s.port() {
		v.SetDestinationPort(s.port())
	}
	return Translated
}
