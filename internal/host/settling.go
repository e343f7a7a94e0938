package host

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// nextHop is one way to the Internet: what of a default route, or of one path of
// a multipath route, decides where packets go. Metric, preference, protocol and
// lifetime are not part of it: router advertisements and DHCP refresh them.
type nextHop struct {
	family  uint8      // AF_INET or AF_INET6, of the route
	link    int        // index of the output link
	gateway netip.Addr // not valid on links without one, such as PPP
}

// String returns the next hop as it belongs into a log line.
func (h nextHop) String() string {
	family := "IPv4"
	if h.family == familyV6 {
		family = "IPv6"
	}
	if !h.gateway.IsValid() {
		return fmt.Sprintf("%s link %d", family, h.link)
	}
	return fmt.Sprintf("%s link %d via %v", family, h.link, h.gateway)
}

// routeSet is the set of the ways to the Internet.
type routeSet map[nextHop]struct{}

// String returns the next hops, sorted.
func (s routeSet) String() string {
	hops := make([]string, 0, len(s))
	for h := range s {
		hops = append(hops, h.String())
	}
	slices.Sort(hops)
	return strings.Join(hops, ", ")
}

// settling decides when to look at the default routes and whether what is found
// is a change. It waits until nothing has touched them for a while, so that
// a change in several steps is one, but not for ever.
//
// The set that counts is the last one that was not empty, or the first one:
//
//	first look          any set counts              no change
//	later, no routes    the set before goes on      no change: there is no network to start anew in
//	later, the same     the set before goes on      no change: also when routes were lost in between
//	later, another      the new set counts          change
type settling struct {
	pace pace

	known bool
	set   routeSet // the one that counts, if known

	pending bool
	at      time.Time // when to look, if pending
	limit   time.Time // for at, if pending
}

// touch notes that the routes may have changed.
func (s *settling) touch(now time.Time) {
	if !s.pending {
		s.pending, s.limit = true, now.Add(s.pace.patience)
	}
	s.at = now.Add(s.pace.quiet)
	if s.at.After(s.limit) {
		s.at = s.limit
	}
}

// postpone notes that a look yielded nothing and has to be taken again.
func (s *settling) postpone(now time.Time) {
	s.pending, s.limit = true, now.Add(s.pace.patience)
	s.at = now.Add(s.pace.retry)
}

// due returns when to look at the routes, if at all.
func (s *settling) due() (time.Time, bool) { return s.at, s.pending }

// settle takes the set that a look found, owns it, and tells whether it is
// a change.
func (s *settling) settle(found routeSet) bool {
	s.pending = false
	switch {
	case !s.known:
		s.known, s.set = true, found
		return false
	case len(found) == 0, maps.Equal(s.set, found):
		return false
	}
	s.set = found
	return true
}
