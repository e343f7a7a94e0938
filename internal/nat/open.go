package nat

import "firezone-gateway/internal/packet"

// Open translates a packet for which ToResource said NeedSession, opening a
// session for it unless one of the packets before it did so. The session goes
// to the real address that is mapped and stays with it. It returns Translated,
// OtherFamily, Full or Exhausted, or else what ToResource returns.
func (t *Table) Open(v *packet.View, now int64) Result {
	if r := t.ToResource(v, now); r != NeedSession {
		return r
	}
	proxy, _ := proxyKey(v.Dst)
	key := insideKey(v.Kind, proxy, v.SrcPort)
	if s := t.findInside(key); s != nil {
		t.end(s) // its time is up, the sweep has not come by
	}
	if t.inside.len() >= t.max.MaxSessions {
		t.stats.refusedFull.Add(1)
		return Full
	}
	k, ok := t.freeOutside(makeOutsideKey(v.Kind, t.mapping(proxy).Real, v.SrcPort), now)
	if !ok {
		t.stats.refusedExhausted.Add(1)
		return Exhausted
	}
	s := &session{inside: key, high: k.high, low: k.low, outside: uint16(k.meta)}
	s.lastOut.Store(now)
	s.lastIn.Store(never)
	t.begin(s, k)
	return t.ToResource(v, now)
}

// Sweep ends the sessions whose time is up and those that were reset, and
// returns their number. To be called about once a second (dataplane §3.6). It
// looks at every session, and forgets those that ended Memory ago.
func (t *Table) Sweep(now int64) int {
	n := 0
	for s := range t.inside.all() {
		if state := s.state.Load(); state&ended == 0 && (state&reset != 0 || s.over(now)) {
			t.end(s)
			n++
		}
	}
	t.remembered.note(now)
	t.remembered.stale(now, int64(Memory), t.forget)
	return n
}

// begin files s, in the place of what is remembered about its outside.
func (t *Table) begin(s *session, k outsideKey) {
	h := t.outsideHash(k)
	if old := t.findOutside(k); old != nil {
		t.outside.replace(h, old, s)
		old.state.Or(forgotten)
	} else {
		t.outside.insert(h, s)
	}
	t.inside.insert(t.insideHash(s.inside), s)
	t.markPort(k, true)
	t.stats.opened.Add(1)
}

// end ends s and remembers its outside.
func (t *Table) end(s *session) {
	s.state.Or(ended)
	t.inside.delete(t.insideHash(s.inside), s)
	t.markPort(s.outsideKey(), false)
	t.stats.ended.Add(1)
	if oldest := t.remembered.push(s, t.max.MaxRemembered); oldest != nil {
		t.forget(oldest)
	}
}

func (t *Table) forget(s *session) { t.outside.delete(t.outsideHash(s.outsideKey()), s) }
