package nat

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"firezone-gateway/internal/policy"
)

// Mapping says what stands behind a proxy address. It never changes.
type Mapping struct {
	Proxy  netip.Addr
	Domain string // as the client wrote it
	// Resources are the IDs of the DNS resources that the address was set up
	// for, the latest last. Any of them may admit a packet.
	Resources []string
	Real      netip.Addr // of the family of Proxy unless Config.NAT64; invalid if the domain has none
	Version   uint64     // counts the calls of Assign; that of the latest for Proxy

	key uint64
}

// Assignment is the set-up of one domain.
type Assignment struct {
	Resource string       // resource ID
	Domain   string       // compared without regard to case
	ProxyIPs []netip.Addr // in any order, duplicates count once
	RealIPs  []netip.Addr // what the domain resolves to, both families, may be empty
}

// Assigned says what Assign did.
type Assigned struct {
	Resolved   int  // proxy addresses with a real address
	Unresolved int  // proxy addresses without
	Refused    int  // real addresses that a gateway must not forward to
	Reset      bool // the client has renumbered, see Assign
}

// Reasons why Assign refuses an assignment.
var (
	// ErrNotProxy means that one of the addresses is not a proxy address.
	ErrNotProxy = errors.New("address outside the proxy ranges")
	// ErrTooManyProxies means that there is no room for the assignment.
	ErrTooManyProxies = errors.New("too many proxy addresses")
)

// maxShared bounds how many resources share a mapping. A client names only
// resources that it is granted, but those change.
const maxShared = 32

// Assign sets up a domain (dataplane §3.4). Of each family the i-th proxy
// address, in numeric order, gets the i-th real address, which are used again
// from the start when there are fewer. If there are none, those of the other
// family take their place where Config.NAT64 says so. Sessions keep the real
// address they have.
//
// If one of the proxy addresses belongs to another domain, the client has made
// up its addresses anew: all mappings and sessions are forgotten first. With an
// error, ErrNotProxy or ErrTooManyProxies, nothing has changed.
func (t *Table) Assign(a Assignment) (Assigned, error) {
	var out Assigned
	proxies := sortedSet(a.ProxyIPs)
	known := 0
	for _, ip := range proxies {
		key, ok := proxyKey(ip)
		if !ok {
			return Assigned{}, ErrNotProxy
		}
		if m := t.mapping(key); m != nil {
			known++
			out.Reset = out.Reset || !strings.EqualFold(m.Domain, a.Domain)
		}
	}
	total := t.mappings.len() + len(proxies) - known
	if out.Reset {
		total = len(proxies)
	}
	if total > t.max.MaxProxies {
		return Assigned{}, ErrTooManyProxies
	}
	if out.Reset {
		t.Reset()
	}
	var reals [2][]netip.Addr // by family
	for _, ip := range sortedSet(a.RealIPs) {
		if Forwardable(ip) {
			reals[family(ip)] = append(reals[family(ip)], ip)
		} else {
			out.Refused++
		}
	}
	t.version++
	var next [2]int
	for _, ip := range proxies {
		key, _ := proxyKey(ip)
		m := &Mapping{Proxy: ip, Domain: a.Domain, Version: t.version, key: key}
		f := family(ip)
		behind := reals[f]
		if len(behind) == 0 && t.max.NAT64 {
			behind = reals[1-f]
		}
		if n := len(behind); n > 0 {
			m.Real = behind[next[f]%n]
			next[f]++
			out.Resolved++
		} else {
			out.Unresolved++
		}
		old := t.mapping(key)
		m.Resources = shared(old, a.Resource)
		t.replace(old, m)
	}
	return out, nil
}

// Lookup returns the mapping of a, nil if there is none.
func (t *Table) Lookup(a netip.Addr) *Mapping {
	key, ok := proxyKey(a)
	if !ok {
		return nil
	}
	return t.mapping(key)
}

// Resources returns the IDs of the resources that a proxy address was set up for,
// as [policy.Proxies] asks for them.
func (t *Table) Resources(proxy netip.Addr) []string {
	if m := t.Lookup(proxy); m != nil {
		return m.Resources
	}
	return nil
}

// Mappings yields each mapping. Of what changes meanwhile it may miss some.
func (t *Table) Mappings() iter.Seq[*Mapping] { return t.mappings.all() }

// Invalidate ends the sessions through proxy addresses that were set up for
// that resource alone and returns their number. The mappings stay: what the
// client sends to a resource that was revoked is prohibited, not unreachable
// (dataplane §2.4, §3.4).
func (t *Table) Invalidate(resource string) int {
	only := make(map[uint64]bool)
	for m := range t.mappings.all() {
		if len(m.Resources) == 1 && m.Resources[0] == resource {
			only[m.key] = true
		}
	}
	n := 0
	if len(only) == 0 {
		return n
	}
	for s := range t.inside.all() {
		if only[s.proxyKey()] && s.state.Load()&ended == 0 {
			t.end(s)
			n++
		}
	}
	return n
}

// Remove forgets a resource that is gone for good: it ends sessions as
// Invalidate does, and returns their number, and unmaps the proxy addresses
// that were set up for it alone.
func (t *Table) Remove(resource string) int {
	n := t.Invalidate(resource)
	for _, old := range slices.Collect(t.mappings.all()) {
		if !slices.Contains(old.Resources, resource) {
			continue
		}
		if len(old.Resources) == 1 {
			t.replace(old, nil)
			continue
		}
		m := *old
		m.Resources = slices.DeleteFunc(slices.Clone(old.Resources), func(id string) bool { return id == resource })
		t.replace(old, &m)
	}
	return n
}

// Forwardable reports whether a gateway may forward to an address that a domain
// resolved to. Loopback, multicast, broadcast, unspecified and IPv4-mapped
// addresses, and those of the tunnel and proxy ranges, it may not (dataplane
// §11, defect 13).
func Forwardable(a netip.Addr) bool {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsLoopback() && !a.IsMulticast() && !a.IsUnspecified() &&
		a != broadcast && !policy.IsTunnel(a) && !policy.IsProxy(a)
}

func (t *Table) mapping(key uint64) *Mapping {
	h := t.insideHash(key)
	p, at := t.mappings.part(h)
	m, at := p.find(h, at)
	for m != nil && m.key != key {
		m, at = p.find(h, at)
	}
	return m
}

// replace files m in the place of old; one of them may be nil. If none is,
// readers find one or the other all the time.
func (t *Table) replace(old, m *Mapping) {
	switch {
	case old == nil:
		t.mappings.insert(t.insideHash(m.key), m)
	case m == nil:
		t.mappings.delete(t.insideHash(old.key), old)
	default:
		t.mappings.replace(t.insideHash(m.key), old, m)
	}
}

// shared returns the resources of old with id as the latest.
func shared(old *Mapping, id string) []string {
	if old == nil {
		return []string{id}
	}
	if slices.Contains(old.Resources, id) {
		return old.Resources
	}
	ids := append(slices.Clone(old.Resources), id)
	return ids[max(0, len(ids)-maxShared):]
}

// sortedSet returns the addresses in numeric order, IPv4 before IPv6, each
// once.
func sortedSet(addrs []netip.Addr) []netip.Addr {
	out := slices.Clone(addrs)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// The proxy ranges of both families leave 21 bits to the host.
const hostMask = 1<<21 - 1

var (
	proxyBase4 = policy.ProxyV4.Addr().As4()
	proxyBase6 = policy.ProxyV6.Addr().As16()
)

// proxyKey packs a proxy address into the bits of proxyMask. The result is
// false for any other address.
func proxyKey(a netip.Addr) (uint64, bool) {
	if !policy.IsProxy(a) {
		return 0, false
	}
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:])&hostMask) << insideHost, true
	}
	b := a.As16()
	return uint64(binary.BigEndian.Uint32(b[12:])&hostMask)<<insideHost | 1<<insideIs6, true
}

// proxyAddr returns the address that proxyKey has packed.
func proxyAddr(key uint64) netip.Addr {
	host := uint32(key >> insideHost & hostMask)
	if key>>insideIs6&1 == 0 {
		b := proxyBase4
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|host)
		return netip.AddrFrom4(b)
	}
	b := proxyBase6
	binary.BigEndian.PutUint32(b[12:], binary.BigEndian.Uint32(b[12:])|host)
	return netip.AddrFrom16(b)
}
