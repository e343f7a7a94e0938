package portal

import "time"

// RouteRetry is how long attempts begin on an old path before the current one is
// tried again.
const RouteRetry = 10 * time.Minute

// RouteMemory says which route an attempt begins with, so that a portal that
// lacks the versioned path is not asked for it each time, and one that gets it
// is not missed for long (§5.5). The zero value knows nothing and is ready.
type RouteMemory struct {
	old   bool      // an old path worked last
	asked time.Time // when an attempt began with RouteV2
}

// First returns the route that an attempt at now begins with: RouteV2, or
// RouteV1 if an old path worked and RouteV2 was asked for within RouteRetry. It
// is never RouteV1Query, which writes the token into the logs of whatever stands
// before the portal: only an answer on RouteV1 leads there.
func (m *RouteMemory) First(now time.Time) Route {
	if m.old && now.Sub(m.asked) < RouteRetry {
		return RouteV1
	}
	m.asked = now
	return RouteV2
}

// Worked records the route of an attempt that led to a connection.
func (m *RouteMemory) Worked(r Route) { m.old = r.Generation() == V1 }

// Refused records that a portal answered and admitted on no route. What it knows
// may have changed, so that the next attempt begins with RouteV2.
func (m *RouteMemory) Refused() { m.old = false }
