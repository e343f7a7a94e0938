package policy

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"firezone-gateway/internal/packet"
)

// Compile builds the snapshot of one client's grants. It never fails: a grant
// that could match no packet is left out and reported by Snapshot.Skipped.
// Resource IDs are expected to be distinct. Compile keeps nothing of grants but
// strings. version is whatever the caller uses to tell snapshots apart.
func Compile(p Peer, grants []Grant, version uint64) *Snapshot {
	s := &Snapshot{
		peer: Peer{
			ClientV4: p.ClientV4.Unmap(), ClientV6: p.ClientV6,
			GatewayV4: p.GatewayV4.Unmap(), GatewayV6: p.GatewayV6,
			GatewayOpen: p.GatewayOpen,
		},
		version:    version,
		nextExpiry: never,
	}
	networks := map[netip.Prefix][]rule{}
	for i := range grants {
		g := &grants[i]
		if err := usable(&g.Resource); err != nil {
			s.skipped = append(s.skipped, Skip{ID: g.Resource.ID, Err: err})
			continue
		}
		r := s.add(g)
		switch g.Resource.Kind {
		case CIDR:
			network := g.Resource.Network.Masked()
			networks[network] = append(networks[network], r)
		case DNS:
			if s.dns == nil {
				s.dns = map[string]rule{}
			}
			s.dns[g.Resource.ID] = r
		case Internet:
			r.filter = s.intern(filter{all: true})
			s.internet = append(s.internet, r)
		}
	}
	s.greatestFirst(s.internet)
	s.link(networks)
	s.rules = slices.Clip(s.rules)
	return s
}

// usable returns why a resource can never match a packet, or nil.
func usable(r *Resource) error {
	switch r.Kind {
	case DNS, Internet:
		return nil
	case CIDR:
	default:
		return ErrKind
	}
	if !r.Network.IsValid() {
		return ErrNetwork
	}
	for _, closed := range [...]netip.Prefix{TunnelV4, TunnelV6, ProxyV4, ProxyV6, multicastV4, multicastV6} {
		if closed.Bits() <= r.Network.Bits() && closed.Overlaps(r.Network) {
			return ErrUnreachable
		}
	}
	return nil
}

// add stores the grant for credit and returns its rule.
func (s *Snapshot) add(g *Grant) rule {
	stored := g.Resource
	stored.Filters = slices.Clone(stored.Filters)
	s.resources = append(s.resources, stored)
	expires := unixNano(g.ExpiresAt)
	s.nextExpiry = min(s.nextExpiry, expires)
	return rule{expires: expires, id: int32(len(s.resources)), filter: s.intern(compileFilter(stored.Filters))}
}

// link fills the table.
func (s *Snapshot) link(networks map[netip.Prefix][]rule) {
	s.table.add(slices.Collect(maps.Keys(networks)), func(network netip.Prefix) entry {
		rules := networks[network]
		s.greatestFirst(rules)
		more := len(s.rules)
		s.rules = append(s.rules, rules[1:]...)
		return entry{rule: rules[0], more: int32(more), end: int32(len(s.rules))}
	})
}

// intern returns the index of f in s.filters: most grants of a client have one
// of a few lists.
func (s *Snapshot) intern(f filter) int32 {
	for i := range s.filters {
		if s.filters[i].equal(&f) {
			return int32(i)
		}
	}
	s.filters = append(s.filters, f)
	return int32(len(s.filters) - 1)
}

// greatestFirst sorts rules by descending resource ID.
func (s *Snapshot) greatestFirst(rules []rule) {
	slices.SortStableFunc(rules, func(a, b rule) int {
		return cmp.Compare(s.resources[b.id-1].ID, s.resources[a.id-1].ID)
	})
}

// rule is one compiled grant.
type rule struct {
	expires int64 // Unix nanoseconds
	filter  int32 // index in Snapshot.filters
	id      int32 // 1 + index in Snapshot.resources
}

func (r *rule) expired(now int64) bool { return r.expires <= now }

// filter is a compiled filter list.
type filter struct {
	all, icmp bool
	tcp, udp  []PortRange // sorted, disjoint
}

func compileFilter(filters []Filter) filter {
	f := filter{all: len(filters) == 0}
	for _, x := range filters {
		switch {
		case x.Protocol == FilterICMP:
			f.icmp = true
		case x.Ports.First > x.Ports.Last:
		case x.Protocol == FilterTCP:
			f.tcp = append(f.tcp, x.Ports)
		case x.Protocol == FilterUDP:
			f.udp = append(f.udp, x.Ports)
		}
	}
	f.tcp, f.udp = merge(f.tcp), merge(f.udp)
	return f
}

func (f *filter) equal(o *filter) bool {
	return f.all == o.all && f.icmp == o.icmp && slices.Equal(f.tcp, o.tcp) && slices.Equal(f.udp, o.udp)
}

// merge sorts ranges and joins those that overlap or touch.
func merge(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	var out []PortRange
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// admits reports whether the filter lets a packet of protocol p pass. port is
// the one on the resource's side and only matters for TCP and UDP.
func (f *filter) admits(p packet.Protocol, port uint16) bool {
	if f.all {
		return true
	}
	switch p {
	case packet.TCP:
		return holds(f.tcp, port)
	case packet.UDP:
		return holds(f.udp, port)
	case packet.ICMP, packet.ICMPv6:
		return f.icmp
	}
	return false
}

// holds reports whether port is in one of the sorted, disjoint ranges.
func holds(ranges []PortRange, port uint16) bool {
	lo, hi := 0, len(ranges)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch r := ranges[mid]; {
		case port < r.First:
			hi = mid
		case port > r.Last:
			lo = mid + 1
		default:
			return true
		}
	}
	return false
}

// never is the expiry of a grant without one.
const never = math.MaxInt64

// unixNano returns t in Unix nanoseconds, clamped to what fits. The zero time
// is never.
func unixNano(t time.Time) int64 {
	switch {
	case t.IsZero() || t.After(time.Unix(0, math.MaxInt64)):
		return never
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	}
	return t.UnixNano()
}
