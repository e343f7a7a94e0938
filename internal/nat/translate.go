package nat

import "firezone-gateway/internal/packet"

// ToResource translates a packet of the client that its policy has admitted: to
// the real address behind the proxy address it names, from the port or with the
// identifier of its session. It returns Untouched, Translated, OtherFamily,
// NeedSession, Unresolved or Unsupported (dataplane §2.1 steps 10 to 14).
func (t *Table) ToResource(v *packet.View, now int64) Result {
	var ls [1]Lookup
	t.Begin(&ls[0], v)
	t.Finish(ls[:])
	return t.Translate(v, &ls[0], now)
}

// Translate is ToResource with the finished look-up for v.
func (t *Table) Translate(v *packet.View, l *Lookup, now int64) Result {
	s := l.found.session
	switch {
	case !l.proxied:
		return Untouched
	case l.mapping == nil || !l.mapping.Real.IsValid():
		return Unresolved
	case !translatable(v.Kind):
		return Unsupported
	case s == nil || s.over(now):
		return NeedSession
	case s.crosses():
		return OtherFamily
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
// client sent. It returns Untouched, Translated, OtherFamily or Ended.
func (t *Table) ToClient(v *packet.View, now int64) Result {
	var rs [1]Return
	t.BeginReturn(&rs[0], v)
	FinishReturns(rs[:])
	return t.TranslateBack(v, &rs[0], now)
}

// TranslateBack is ToClient with the finished look-up for v.
func (t *Table) TranslateBack(v *packet.View, r *Return, now int64) Result {
	s := r.found.session
	switch {
	case s == nil:
		return Untouched
	case s.state.Load()&ended != 0 || s.over(now):
		return Ended
	case s.crosses():
		return OtherFamily
	}
	s.noteIn(v, now)
	proxy := proxyAddr(s.proxyKey())
	if v.Kind == packet.KindICMPError {
		quote, _ := v.Quote()
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
