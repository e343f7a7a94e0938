package host

import "time"

// suspendThreshold is the shortest suspension that counts. Shorter ones look to
// everybody else like lost packets: NAT bindings and connections outlive them.
const suspendThreshold = 5 * time.Second

// clocks is one reading of CLOCK_BOOTTIME between two of CLOCK_MONOTONIC. Both
// clocks run evenly whatever happens to the time of day; only the boot clock goes
// on while the host is suspended. To a virtual machine that its hypervisor pauses
// without telling it, both show the same, and no suspension.
type clocks struct {
	before time.Duration // monotonic
	boot   time.Duration
	after  time.Duration // monotonic
}

// suspension tells from readings of the clocks when the host was suspended. The
// zero value is ready. It allows for a thread that stands still in the middle of
// a reading: of the time suspended since boot, a reading gives a lower and an
// upper bound.
type suspension struct {
	known bool
	most  time.Duration // suspended since boot as of the last look, upper bound
}

// look takes a reading and returns for how long the host was suspended at least
// since the reading before, and whether that counts.
func (s *suspension) look(c clocks) (slept time.Duration, resumed bool) {
	slept = c.boot - c.after - s.most
	resumed = s.known && slept > suspendThreshold
	s.known, s.most = true, c.boot-c.before
	return slept, resumed
}
