package policy

import (
	"net/netip"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
)

// Snapshot holds the compiled grants of one client. It never changes and may be
// used by any number of goroutines. The zero value admits nothing.
type Snapshot struct {
	peer       Peer
	version    uint64
	table      networks // of CIDR resources
	rules      []rule   // of table
	filters    []filter
	internet   []rule          // greatest resource ID first
	dns        map[string]rule // by resource ID
	resources  []Resource
	skipped    []Skip
	nextExpiry int64
}

// Version returns the version that Compile was given.
func (s *Snapshot) Version() uint64 { return s.version }

// Empty reports whether no grant was compiled, expired ones included.
func (s *Snapshot) Empty() bool { return len(s.resources) == 0 }

// Skipped returns the grants that were left out. The caller must not change the
// slice.
func (s *Snapshot) Skipped() []Skip { return s.skipped }

// NextExpiry returns the earliest end of any compiled grant, which may lie in
// the past. The result is false if no grant ends.
func (s *Snapshot) NextExpiry() (time.Time, bool) {
	if s.Empty() || s.nextExpiry == never {
		return time.Time{}, false
	}
	return time.Unix(0, s.nextExpiry), true
}

// Credited returns the resource that admitted the packet of verdict v: of the
// admitting ones that with the longest prefix, then that with the greatest ID.
// v must come from this snapshot. The result is false if no resource did, as
// for packets to the gateway itself.
func (s *Snapshot) Credited(v Verdict) (Resource, bool) {
	if v.rule <= 0 || int(v.rule) > len(s.resources) {
		return Resource{}, false
	}
	return s.resources[v.rule-1], true
}

// Proxies says which DNS resources a proxy address was set up for.
type Proxies interface {
	// Resources returns the resource IDs, none if the address was not set up. The
	// caller does not change the slice.
	Resources(proxy netip.Addr) []string
}

// NoProxies knows of no proxy address.
var NoProxies Proxies = noProxies{}

type noProxies struct{}

func (noProxies) Resources(netip.Addr) []string { return nil }

// Outbound judges a packet that was decrypted from the client's tunnel, in the
// order of dataplane §2.1 up to step 9. now is the wall clock in Unix
// nanoseconds.
func (s *Snapshot) Outbound(v *packet.View, proxies Proxies, now int64) Verdict {
	switch {
	case v.Dst.IsMulticast():
		return dropped(drop.Multicast)
	case v.Protocol == packet.Control && packet.IsControl(v.B):
		return Verdict{Action: Control}
	case v.Kind == packet.KindICMPError:
		return dropped(drop.OutboundICMP)
	case !s.isClient(v.Src):
		return rejected(drop.ForeignSource, packet.Prohibited)
	case s.isGateway(v.Dst):
		if s.peer.GatewayOpen || openOnGateway(v) {
			return Verdict{Action: Forward}
		}
		return rejected(drop.GatewayClosed, packet.Prohibited)
	case IsTunnel(v.Dst):
		return rejected(drop.TunnelRange, packet.Prohibited)
	}
	reason, rule := s.match(v.Dst, v.Protocol, v.DstPort, proxies, now)
	switch reason {
	case drop.None:
		return Verdict{Action: Forward, rule: rule}
	case drop.NotPublic, drop.Unresolved:
		return rejected(reason, packet.NoRoute)
	}
	return rejected(reason, packet.Prohibited)
}

// Inbound judges a packet that was read from the TUN device for the client and
// translated if it belongs to a session, in the order of dataplane §4.1 from
// step 4 on. Nothing is ever answered. now is the wall clock in Unix
// nanoseconds.
func (s *Snapshot) Inbound(v *packet.View, proxies Proxies, now int64) Verdict {
	switch own := s.isGateway(v.Src); {
	case own && s.isClient(v.Dst):
		return Verdict{Action: Forward}
	case !own && (v.Kind == packet.KindOther || v.Kind == packet.KindICMPOther):
		return dropped(drop.Unclassified)
	case !s.isClient(v.Dst):
		return dropped(drop.NoPeerState)
	case IsTunnel(v.Src):
		return dropped(drop.NotAllowed)
	case v.Kind == packet.KindICMPError:
		return Verdict{Action: Forward}
	}
	reason, rule := s.match(v.Src, v.Protocol, v.SrcPort, proxies, now)
	if reason != drop.None {
		return dropped(drop.NotAllowed)
	}
	return Verdict{Action: Forward, rule: rule}
}

// match looks for a grant that admits packets between the client and the given
// address and port, whichever way they go. It returns drop.None and the
// credited rule, or why there is none.
func (s *Snapshot) match(remote netip.Addr, p packet.Protocol, port uint16, proxies Proxies, now int64) (drop.Reason, int32) {
	if IsProxy(remote) {
		if ids := proxies.Resources(remote); len(ids) > 0 {
			return s.matchProxy(ids, p, port, now)
		}
		return s.unmapped(now), 0
	}
	reason := drop.NoResource
	if len(s.internet) > 0 {
		refused := notPublic(remote)
		for i := range s.internet {
			switch r := &s.internet[i]; {
			case r.expired(now):
			case refused:
				return drop.NotPublic, 0
			default:
				return drop.None, r.id
			}
		}
		if !refused {
			reason = drop.Expired
		}
	}
	for at := s.table.lookup(remote); at != 0; {
		e := &s.table.entries[at]
		at = e.wider
		for r, next := &e.rule, e.more; ; next++ {
			switch {
			case r.expired(now):
				if reason == drop.NoResource {
					reason = drop.Expired
				}
			case s.filters[r.filter].admits(p, port):
				return drop.None, r.id
			default:
				reason = drop.Filtered
			}
			if next == e.end {
				break
			}
			r = &s.rules[next]
		}
	}
	return reason, 0
}

// matchProxy is match for a proxy address that was set up for these resources.
// Of those that admit the packet the one with the greatest ID is credited.
func (s *Snapshot) matchProxy(ids []string, p packet.Protocol, port uint16, now int64) (drop.Reason, int32) {
	reason, credited, best := drop.NoResource, int32(0), ""
	for _, id := range ids {
		r, ok := s.dns[id]
		switch {
		case !ok:
		case r.expired(now):
			if reason == drop.NoResource {
				reason = drop.Expired
			}
		case !s.filters[r.filter].admits(p, port):
			if credited == 0 {
				reason = drop.Filtered
			}
		case credited == 0 || id > best:
			reason, credited, best = drop.None, r.id, id
		}
	}
	return reason, credited
}

// unmapped says why a proxy address that was not set up leads nowhere. With a
// DNS resource it is a domain that is not set up yet; the client must not take
// that for a lost authorisation (dataplane §2.4).
func (s *Snapshot) unmapped(now int64) drop.Reason {
	reason := drop.NoResource
	for _, r := range s.dns {
		if !r.expired(now) {
			return drop.Unresolved
		}
		reason = drop.Expired
	}
	return reason
}

// openOnGateway reports whether the gateway itself serves the packet.
func openOnGateway(v *packet.View) bool {
	switch v.Kind {
	case packet.KindEcho:
		return true
	case packet.KindTCP, packet.KindUDP:
		return v.DstPort == DNSPort
	}
	return false
}

func (s *Snapshot) isClient(a netip.Addr) bool { return a == s.peer.ClientV4 || a == s.peer.ClientV6 }

func (s *Snapshot) isGateway(a netip.Addr) bool {
	return a == s.peer.GatewayV4 || a == s.peer.GatewayV6
}
