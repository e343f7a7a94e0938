package policy

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Grants are the resources that one client may use, by resource ID. A value
// never changes: every operation returns a new one, so that it can be kept as
// the state from before a message.
type Grants struct {
	byID    map[string]Grant
	version uint64
}

// Len returns the number of grants.
func (g Grants) Len() int { return len(g.byID) }

// Has reports whether the resource is granted.
func (g Grants) Has(id string) bool {
	_, ok := g.byID[id]
	return ok
}

// Get returns the grant of a resource.
func (g Grants) Get(id string) (Grant, bool) {
	grant, ok := g.byID[id]
	return grant, ok
}

// Version grows with every change.
func (g Grants) Version() uint64 { return g.version }

// List returns the grants ordered by resource ID.
func (g Grants) List() []Grant {
	return slices.SortedFunc(maps.Values(g.byID), func(a, b Grant) int {
		return strings.Compare(a.Resource.ID, b.Resource.ID)
	})
}

// Upsert adds a grant or replaces the one for the same resource, filters and
// end included (dataplane rules 31, 37, 38).
func (g Grants) Upsert(n Grant) Grants {
	return g.change(func(m map[string]Grant) { m[n.Resource.ID] = n })
}

// Revoke removes the grant for a resource.
func (g Grants) Revoke(id string) Grants {
	if !g.Has(id) {
		return g
	}
	return g.change(func(m map[string]Grant) { delete(m, id) })
}

// Retain keeps what is listed and gives it the listed end; everything else is
// removed (portal rules 25 and 26). Resources that are listed but not granted
// are ignored: their definition is not known.
func (g Grants) Retain(expiresAt map[string]time.Time) Grants {
	return g.change(func(m map[string]Grant) {
		for id, grant := range m {
			end, listed := expiresAt[id]
			if !listed {
				delete(m, id)
				continue
			}
			grant.ExpiresAt = end
			m[id] = grant
		}
	})
}

// Extend moves the end of one grant.
func (g Grants) Extend(id string, expiresAt time.Time) Grants {
	return g.update(id, func(n *Grant) { n.ExpiresAt = expiresAt })
}

// UpdateFilters replaces the filters of a granted resource. A resource that
// changed its kind is left alone (dataplane §2.3).
func (g Grants) UpdateFilters(r Resource) Grants {
	if g.byID[r.ID].Resource.Kind != r.Kind {
		return g
	}
	return g.update(r.ID, func(n *Grant) { n.Resource.Filters, n.Resource.Name = r.Filters, r.Name })
}

// Expire removes the grants that have ended at now and returns their IDs.
func (g Grants) Expire(now time.Time) (Grants, []string) {
	var ended []string
	for id, n := range g.byID {
		if n.ended(now) {
			ended = append(ended, id)
		}
	}
	if len(ended) == 0 {
		return g, nil
	}
	slices.Sort(ended)
	return g.change(func(m map[string]Grant) {
		for _, id := range ended {
			delete(m, id)
		}
	}), ended
}

// NextExpiry returns the earliest end, false if no grant ends.
func (g Grants) NextExpiry() (time.Time, bool) {
	var next time.Time
	for _, n := range g.byID {
		if !n.ExpiresAt.IsZero() && (next.IsZero() || n.ExpiresAt.Before(next)) {
			next = n.ExpiresAt
		}
	}
	return next, !next.IsZero()
}

func (n Grant) ended(now time.Time) bool { return !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now) }

func (g Grants) update(id string, f func(*Grant)) Grants {
	if !g.Has(id) {
		return g
	}
	return g.change(func(m map[string]Grant) {
		n := m[id]
		f(&n)
		m[id] = n
	})
}

func (g Grants) change(f func(map[string]Grant)) Grants {
	m := maps.Clone(g.byID)
	if m == nil {
		m = map[string]Grant{}
	}
	f(m)
	return Grants{byID: m, version: g.version + 1}
}
