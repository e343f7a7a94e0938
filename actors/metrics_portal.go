package actors

import (
	"sync"
	"time"

	"firezone-gateway/internal/portal"
)

// linkRecord is how the channel is, with its history.
type linkRecord struct {
	mu     sync.Mutex
	now    portalLink
	joins  uint64
	losses uint64
	apart  time.Duration // without the channel, up to now.since
}

// store records that the channel was joined or lost.
func (r *linkRecord) store(l portalLink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch was, is := r.now.route != portal.RouteUnknown, l.route != portal.RouteUnknown; {
	case is && !was:
		r.joins++
		if !r.now.since.IsZero() {
			r.apart += l.since.Sub(r.now.since)
		}
	case was && !is:
		r.losses++
	}
	r.now = l
}

func (r *linkRecord) load() portalLink {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// history returns how often the channel was joined and lost, and for how long it
// was away altogether after the first time.
func (r *linkRecord) history(now time.Time) (joins, losses uint64, apart time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	apart = r.apart
	if r.joins > 0 && r.now.route == portal.RouteUnknown {
		apart += max(0, now.Sub(r.now.since))
	}
	return r.joins, r.losses, apart
}
