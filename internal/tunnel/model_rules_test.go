package tunnel

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The model decides about packets after the text of dataplane §2 to §4, with
// maps and scans. It shares no code with what it is compared to.

// modelClient is one client.
type modelClient struct {
	own         [2]netip.Addr // IPv4 and IPv6; the latter may be missing
	gateway     [2]netip.Addr
	gatewayOpen bool
	grants      map[string]modelGrant
	nat         *modelNAT // nil before the first domain

	present   bool // admitted and not removed
	connected bool // has a session
	reachable bool // or had one that can be renewed
	closing   bool
	life      int // counts the times it was admitted

	answered       int // in this second
	answeredSecond int64
}

type modelGrant struct {
	kind    string // "cidr", "dns", "internet"
	network netip.Prefix
	pattern string
	filters []modelFilter
	ends    int64 // 0: never
}

type modelFilter struct {
	kind        string // "tcp", "udp", "icmp"
	first, last uint16
}

func (g modelGrant) live(now int64) bool { return g.ends == 0 || now < g.ends }

// admits is §2.3. port is the one of the service.
func (g modelGrant) admits(l *letter, port uint16) bool {
	if g.kind == "internet" || len(g.filters) == 0 {
		return true
	}
	return slices.ContainsFunc(g.filters, func(f modelFilter) bool {
		switch l.kind {
		case kindTCP:
			return f.kind == "tcp" && f.first <= port && port <= f.last
		case kindUDP:
			return f.kind == "udp" && f.first <= port && port <= f.last
		case kindEcho, kindMessage, kindError:
			return f.kind == "icmp"
		}
		return false
	})
}

// fate is what becomes of a packet.
type fate int

const (
	refused    fate = iota // silently
	prohibited             // refused with an answer
	unreachable
	passed
	waiting // for a session
	heard   // as a control packet
)

var (
	tunnelRanges   = mustPrefixes("100.64.0.0/11", "fd00:2021:1111::/107")
	proxyRanges    = mustPrefixes("100.96.0.0/11", "fd00:2021:1111:8000::/107")
	neverRouted    = slices.Concat(tunnelRanges, proxyRanges, mustPrefixes("224.0.0.0/4", "ff00::/8"))
	notForInternet = mustPrefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10",
		"224.0.0.0/4", "240.0.0.0/4", "::1/128", "::ffff:0:0/96", "fc00::/7", "fe80::/10", "ff00::/8")
	notForDomains = slices.Concat(neverRouted, mustPrefixes("127.0.0.0/8", "0.0.0.0/32", "255.255.255.255/32", "::1/128", "::/128", "::ffff:0:0/96"))
)

func mustPrefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func within(a netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// fromClient is §2.1 for a decrypted packet.
func (c *modelClient) fromClient(l *letter, now int64) (fate, *letter) {
	switch {
	case c.closing || l.fault != sound || l.dst.IsMulticast():
		return refused, nil
	case l.kind == kindControl && l.src.IsUnspecified() && l.dst.IsUnspecified() && l.size >= 8:
		return heard, l
	case l.kind == kindError:
		return refused, nil
	}
	f := c.judge(l, now)
	if f == passed && within(l.dst, proxyRanges) {
		return c.nat.fromClient(c, l, now)
	}
	return c.budget(f, now), l
}

// judge is §2.1 from step 6 to step 9.
func (c *modelClient) judge(l *letter, now int64) fate {
	switch {
	case l.src != c.own[0] && l.src != c.own[1]:
		return prohibited
	case l.dst == c.gateway[0] || l.dst == c.gateway[1]:
		if c.gatewayOpen || l.kind == kindEcho || (l.kind == kindTCP || l.kind == kindUDP) && l.dport == 53535 {
			return passed
		}
		return prohibited
	case within(l.dst, tunnelRanges):
		return prohibited
	}
	return c.lookUp(l, l.dst, l.dport, c.nat, now)
}

// budget bounds the answers of a second (§11, defect 14).
func (c *modelClient) budget(f fate, now int64) fate {
	if f != prohibited && f != unreachable {
		return f
	}
	if second := now / int64(time.Second); second != c.answeredSecond {
		c.answered, c.answeredSecond = 0, second
	}
	if c.answered == 200 {
		return refused
	}
	c.answered++
	return f
}

// lookUp is §2.2: any resource that covers the remote address and admits the
// packet is enough.
func (c *modelClient) lookUp(l *letter, remote netip.Addr, port uint16, proxies *modelNAT, now int64) fate {
	if within(remote, proxyRanges) {
		m := proxies.mapping(remote)
		if m == nil {
			// A domain that is not set up yet is no lost authorisation (§2.4).
			for _, g := range c.grants {
				if g.kind == "dns" && g.live(now) {
					return unreachable
				}
			}
			return prohibited
		}
		for _, id := range m.resources {
			if g, ok := c.grants[id]; ok && g.kind == "dns" && g.live(now) && g.admits(l, port) {
				return passed
			}
		}
		return prohibited
	}
	for _, g := range c.grants {
		if g.kind == "internet" && g.live(now) {
			if within(remote, notForInternet) {
				return unreachable
			}
			return passed
		}
	}
	for _, g := range c.grants {
		if g.kind == "cidr" && g.live(now) && g.network.Contains(remote) && !inside(g.network, neverRouted) && g.admits(l, port) {
			return passed
		}
	}
	return prohibited
}

// inside reports whether a network lies in one of the ranges.
func inside(n netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Bits() <= n.Bits() && p.Contains(n.Addr()) })
}

// fromNetwork is §4.1 for a packet from the TUN device to a client that is
// there.
func (c *modelClient) fromNetwork(l *letter, now int64) (fate, *letter) {
	if !c.reachable || c.closing {
		return refused, nil
	}
	f, to := c.nat.fromNetwork(c, l, now)
	if f != passed {
		return refused, nil
	}
	proxies := c.nat
	if to == l {
		proxies = nil // an address that nobody translated leads nowhere
	}
	own := to.src == c.gateway[0] || to.src == c.gateway[1]
	switch {
	case own:
		return passed, to
	case l.kind == kindMessage || l.kind == kindOpaque || l.kind == kindControl || within(to.src, tunnelRanges):
		return refused, nil
	case l.kind == kindError:
		return passed, to
	case c.lookUp(to, to.src, to.sport, proxies, now) != passed:
		return refused, nil
	}
	return passed, to
}

// cross gives the packet the header of src's family (RFC 7915 §4.1, §5.1).
func (l *letter) cross(src netip.Addr) {
	l.src, l.crossed = src, true
	l.extended, l.identified, l.unsummed = false, false, false
}

// counterpart returns what an ICMP error says in the other family (RFC 7915 §4.2,
// §5.2). ok is false if it must not be translated.
func (l *letter) counterpart() (typ, code byte, mtu uint32, ok bool) {
	at := [2]byte{l.typ, l.code}
	if l.is6() {
		switch at {
		case [2]byte{1, 0}, [2]byte{1, 2}, [2]byte{1, 3}:
			return 3, 1, 0, true
		case [2]byte{1, 1}:
			return 3, 10, 0, true
		case [2]byte{1, 4}:
			return 3, 3, 0, true
		}
		switch l.typ {
		case 2:
			return 3, 4, l.mtu - 20, true
		case 3:
			return 11, l.code, 0, true
		}
		return 0, 0, 0, false
	}
	switch at {
	case [2]byte{3, 0}, [2]byte{3, 1}:
		return 1, 0, 0, true
	case [2]byte{3, 2}:
		return 4, 1, 6, true
	case [2]byte{3, 3}:
		return 1, 4, 0, true
	case [2]byte{3, 4}:
		return 2, 0, 1280, true
	}
	return 3, l.code, 0, l.typ == 11
}

// covers is §3.2: whether the pattern of a DNS resource covers a domain.
func covers(pattern, domain string) bool {
	pattern, domain = strings.ToLower(pattern), strings.ToLower(strings.TrimSuffix(domain, "."))
	if parent, ok := strings.CutPrefix(pattern, "*."); ok && matches(parent, domain) {
		return true
	}
	return matches(pattern, domain)
}

func matches(pattern, domain string) bool {
	switch {
	case pattern == "":
		return domain == ""
	case pattern[0] == '*':
		rest, dots := strings.CutPrefix(pattern, "**")
		if !dots {
			rest = pattern[1:]
		}
		for i := range len(domain) + 1 {
			if matches(rest, domain[i:]) {
				return true
			}
			if i < len(domain) && domain[i] == '.' && !dots {
				return false
			}
		}
		return false
	case domain == "":
		return false
	}
	return (domain[0] == pattern[0] || pattern[0] == '?' && domain[0] != '.') && matches(pattern[1:], domain[1:])
}
