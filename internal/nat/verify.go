package nat

import "slices"

// Repaired says what Repair discarded.
type Repaired struct {
	Mappings int // proxy addresses that lead nowhere from now on
	Sessions int // flows that ended
}

// Repair discards what does not fit together: mappings that are not what Assign
// makes, sessions without mapping, sessions that are found from one side only, or
// under the key of another. It is for a writer that takes over from one that failed.
// A table without faults stays as it is.
//
// Of a table with faults the memory of ended sessions is gone, and for the time of
// the repair packets find no sessions.
func (t *Table) Repair() Repaired {
	mappings, badMappings := sound(t.mappings.all(), t.soundMapping)
	sessions, badSessions := sound(t.inside.all(), t.soundSession)
	dangling := false
	for s := range t.outside.all() {
		if s.state.Load()&ended == 0 && t.findInside(s.inside) != s {
			dangling = true
		}
	}
	if badMappings == 0 && badSessions == 0 && !dangling {
		return Repaired{}
	}
	t.mappings.clear()
	t.inside.clear()
	t.outside.clear()
	t.remembered = queue{}
	clear(t.ports) // derived from the sessions, page by page
	for _, m := range mappings {
		t.replace(nil, m)
	}
	for _, s := range sessions {
		if t.mapping(s.proxyKey()) == nil || t.findInside(s.inside) != nil || t.findOutside(s.outsideKey()) != nil {
			badSessions++
			continue
		}
		t.inside.insert(t.insideHash(s.inside), s)
		t.outside.insert(t.outsideHash(s.outsideKey()), s)
	}
	t.stats.ended.Add(uint64(badSessions))
	return Repaired{Mappings: badMappings, Sessions: badSessions}
}

// sound returns the items that are, and the number of the others.
func sound[T any](all func(func(*T) bool), is func(*T) bool) (list []*T, others int) {
	for item := range all {
		if is(item) {
			list = append(list, item)
		} else {
			others++
		}
	}
	return list, others
}

func (t *Table) soundMapping(m *Mapping) bool {
	key, ok := proxyKey(m.Proxy)
	return ok && key == m.key && t.mapping(key) == m && m.Domain != "" &&
		len(m.Resources) > 0 && len(m.Resources) <= maxShared && !slices.Contains(m.Resources, "") &&
		(!m.Real.IsValid() || Forwardable(m.Real) && (t.max.NAT64 || m.Real.Is4() == m.Proxy.Is4()))
}

func (t *Table) soundSession(s *session) bool {
	return s.state.Load()&(ended|forgotten) == 0 && translatable(s.kind()) && Forwardable(s.real()) && (t.max.NAT64 || !s.crosses()) &&
		t.mapping(s.proxyKey()) != nil && t.findInside(s.inside) == s && t.findOutside(s.outsideKey()) == s
}
