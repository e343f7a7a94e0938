package dns

import (
	"net/netip"
	"slices"
)

// minAttempts is how often a query is sent over UDP, even if there are fewer
// name servers: datagrams get lost.
const minAttempts = 4

// schedule says which name server one query is sent to next: each once, then
// over UDP the same again until there were minAttempts. Servers that failed are
// not asked again.
type schedule struct {
	servers []netip.Addr // the best first; those that failed are removed
	repeat  bool         // UDP
	next    int          // index in servers
	round   int          // how often next went past the end
	taken   int
}

// take returns the next server.
func (s *schedule) take() (netip.Addr, bool) {
	if s.next == len(s.servers) {
		s.next = 0
		s.round++
	}
	if len(s.servers) == 0 || (s.round > 0 && (!s.repeat || s.taken >= minAttempts)) {
		return netip.Addr{}, false
	}
	server := s.servers[s.next]
	s.next++
	s.taken++
	return server, true
}

// failed removes a server.
func (s *schedule) failed(server netip.Addr) {
	i := slices.Index(s.servers, server)
	if i < 0 {
		return
	}
	s.servers = slices.Delete(s.servers, i, i+1)
	if i < s.next {
		s.next--
	}
}
