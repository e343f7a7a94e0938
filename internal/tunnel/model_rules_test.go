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

// modelNAT is the translation of one client (§3.4 to §3.7).
type modelNAT struct {
	mappings    map[netip.Addr]*modelMapping
	sessions    []*modelSession
	ended       map[modelOutside]int64 // the sweep that noticed it, 0: none yet
	waiting     []modelWaiting
	maxSessions int
	maxProxies  int
	nat64       bool // proxy addresses lead to the other family if need be
}

type modelMapping struct {
	domain    string
	resources []string
	real      netip.Addr // invalid: none
}

type modelOutside struct {
	kind kind
	port uint16
	real netip.Addr
}

type modelSession struct {
	outside     modelOutside
	proxy       netip.Addr
	port        uint16 // of the client
	out, in     int64  // times of the last packets; in 0: none came back
	finOut, fin bool
	reset       bool
}

// modelWaiting is a packet that needs a session first.
type modelWaiting struct {
	client *modelClient
	life   int
	letter *letter
}

func (n *modelNAT) mapping(proxy netip.Addr) *modelMapping {
	if n == nil {
		return nil
	}
	return n.mappings[proxy]
}

// over is §3.6.
func (s *modelSession) over(now int64) bool {
	idle := 2 * time.Minute
	if s.outside.kind == kindTCP {
		idle = 2*time.Hour + 4*time.Minute
	}
	last := max(s.out, s.in)
	age := time.Duration(now - last)
	return age >= idle || s.in == 0 && age >= time.Minute || s.finOut && s.fin && age >= 5*time.Second
}

func (n *modelNAT) end(s *modelSession) {
	n.sessions = slices.DeleteFunc(n.sessions, func(o *modelSession) bool { return o == s })
	n.ended[s.outside] = 0
}

func (n *modelNAT) sweep(now int64) {
	for _, s := range slices.Clone(n.sessions) {
		if s.reset || s.over(now) {
			n.end(s)
		}
	}
	for k, noticed := range n.ended {
		switch {
		case noticed == 0:
			n.ended[k] = now
		case now-noticed >= int64(10*time.Minute):
			delete(n.ended, k)
		}
	}
}

// assign is §3.4 with its validation (§11, defects 1, 8 and 13). It reports
// false if it changed nothing.
func (n *modelNAT) assign(resource, domain string, proxies, reals []netip.Addr) bool {
	fresh := map[netip.Addr]bool{}
	renumbered := false
	for _, p := range proxies {
		if !within(p, proxyRanges) {
			return false
		}
		m := n.mappings[p]
		fresh[p] = m == nil
		renumbered = renumbered || m != nil && !strings.EqualFold(m.domain, domain)
	}
	total := len(n.mappings)
	if renumbered {
		total = len(fresh)
	} else {
		for _, isNew := range fresh {
			if isNew {
				total++
			}
		}
	}
	if total > n.maxProxies {
		return false
	}
	if renumbered {
		clear(n.mappings)
		clear(n.ended)
		n.sessions = nil
	}
	family := func(list []netip.Addr, is6 bool) []netip.Addr {
		var out []netip.Addr
		for _, a := range list {
			if a.Is6() == is6 && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
		slices.SortFunc(out, netip.Addr.Compare)
		return out
	}
	reals = slices.DeleteFunc(slices.Clone(reals), func(a netip.Addr) bool { return within(a, notForDomains) })
	for _, is6 := range []bool{false, true} {
		usable := family(reals, is6)
		if n.nat64 && len(usable) == 0 {
			usable = family(reals, !is6)
		}
		for i, p := range family(proxies, is6) {
			m := &modelMapping{domain: domain, resources: []string{resource}}
			if old := n.mappings[p]; old != nil {
				m.resources = old.resources
				if !slices.Contains(m.resources, resource) {
					m.resources = append(slices.Clone(m.resources), resource)
				}
			}
			if len(usable) > 0 {
				m.real = usable[i%len(usable)]
			}
			n.mappings[p] = m
		}
	}
	return true
}

// invalidate ends the sessions of a resource that is not granted any more.
func (n *modelNAT) invalidate(resource string) {
	for _, s := range slices.Clone(n.sessions) {
		if m := n.mappings[s.proxy]; m != nil && len(m.resources) == 1 && m.resources[0] == resource {
			n.end(s)
		}
	}
}

// fromClient is §2.1 from step 11 on for a packet that was admitted.
func (n *modelNAT) fromClient(c *modelClient, l *letter, now int64) (fate, *letter) {
	switch m := n.mapping(l.dst); {
	case !m.real.IsValid():
		return c.budget(unreachable, now), l
	case l.kind != kindTCP && l.kind != kindUDP && l.kind != kindEcho:
		return refused, nil
	}
	if s := n.insideOf(l); s != nil && !s.over(now) {
		if to := s.outwards(c, l, now); to != nil {
			return passed, to
		}
		return c.budget(unreachable, now), l
	}
	if len(n.waiting) == 512 {
		return refused, nil
	}
	n.waiting = append(n.waiting, modelWaiting{c, c.life, l})
	return waiting, nil
}

func (n *modelNAT) insideOf(l *letter) *modelSession {
	for _, s := range n.sessions {
		if s.outside.kind == l.kind && s.proxy == l.dst && s.port == l.sport {
			return s
		}
	}
	return nil
}

func (n *modelNAT) outsideOf(k modelOutside) *modelSession {
	for _, s := range n.sessions {
		if s.outside == k {
			return s
		}
	}
	return nil
}

// outwards is the packet as it leaves, nil if the client has no address to send it
// from.
func (s *modelSession) outwards(c *modelClient, l *letter, now int64) *letter {
	src := c.own[family(s.outside.real)]
	if s.crosses() && !src.IsValid() {
		return nil
	}
	s.out = now
	if l.kind == kindTCP {
		switch {
		case l.flags&4 != 0:
			s.reset = true
		case l.flags&1 != 0:
			s.finOut = true
		case l.flags&0x12 == 2: // a SYN that begins a connection on the same ports
			s.finOut, s.fin, s.reset = false, false, false
		}
	}
	to := *l
	to.dst, to.sport = s.outside.real, s.outside.port
	if l.kind == kindEcho {
		to.dport = to.sport
	}
	if s.crosses() {
		to.cross(src)
	}
	return &to
}

func (s *modelSession) crosses() bool { return s.proxy.Is4() != s.outside.real.Is4() }

// open lets the packets go on that wait, each with the session of its flow.
func (n *modelNAT) open(now int64) (passed []*letter, lost int) {
	for _, w := range n.waiting {
		if to := n.first(w, now); to != nil {
			passed = append(passed, to)
		} else {
			lost++
		}
	}
	n.waiting = nil
	return passed, lost
}

func (n *modelNAT) first(w modelWaiting, now int64) *letter {
	c, l := w.client, w.letter
	if !c.present || c.closing || c.life != w.life || c.judge(l, now) != passed || !n.mapping(l.dst).real.IsValid() {
		return nil
	}
	if s := n.insideOf(l); s != nil {
		if !s.over(now) {
			return s.outwards(c, l, now)
		}
		n.end(s)
	}
	if len(n.sessions) == n.maxSessions {
		return nil
	}
	k, ok := n.free(modelOutside{l.kind, l.sport, n.mapping(l.dst).real}, now)
	if !ok {
		return nil
	}
	delete(n.ended, k)
	s := &modelSession{outside: k, proxy: l.dst, port: l.sport, out: now}
	n.sessions = append(n.sessions, s)
	return s.outwards(c, l, now)
}

// free is §3.5: the source value of the client, or the next that is free.
func (n *modelNAT) free(k modelOutside, now int64) (modelOutside, bool) {
	if s := n.outsideOf(k); s != nil && s.over(now) {
		n.end(s)
	}
	for try := 0; try < 1<<16; try++ {
		if n.outsideOf(k) == nil {
			return k, true
		}
		if k.port++; k.port == 0 {
			k.port = 1
		}
	}
	return k, false
}

// fromNetwork is §4.1 step 6. What belongs to no session stays as it is.
func (n *modelNAT) fromNetwork(c *modelClient, l *letter, now int64) (fate, *letter) {
	if n == nil {
		return passed, l
	}
	var k modelOutside
	switch l.kind {
	case kindTCP, kindUDP, kindEcho:
		k = modelOutside{l.kind, l.dport, l.src}
	case kindError:
		k = modelOutside{l.quote.kind, l.quote.sport, l.quote.dst}
	default:
		return passed, l
	}
	s := n.outsideOf(k)
	_, ended := n.ended[k]
	switch {
	case s == nil && ended, s != nil && s.over(now):
		return refused, nil
	case s == nil:
		return passed, l
	}
	own := c.own[family(s.proxy)]
	typ, code, mtu, ok := l.typ, l.code, l.mtu, true
	if s.crosses() && l.kind == kindError {
		typ, code, mtu, ok = l.counterpart()
	}
	if s.crosses() && !own.IsValid() || !ok {
		return refused, nil
	}
	s.in = now
	if l.kind == kindTCP {
		s.reset = s.reset || l.flags&4 != 0
		s.fin = s.fin || l.flags&5 == 1
	}
	to := *l
	to.src = s.proxy
	if l.kind == kindError {
		quote := *l.quote
		quote.dst, quote.sport = s.proxy, s.port
		if quote.kind == kindEcho {
			quote.dport = s.port
		}
		to.quote, to.ttl, to.tos, to.identified = &quote, 20, 0, false
		if s.crosses() {
			to.quoted -= quote.head()
			unsummed := quote.unsummed && own.Is6()
			quote.cross(own)
			quote.unsummed = unsummed // nobody can tell what it would be
			to.quoted += quote.head()
			to.dst, to.crossed = own, true
			to.typ, to.code, to.mtu = typ, code, mtu
		}
		return passed, &to
	}
	to.dport = s.port
	if l.kind == kindEcho {
		to.sport = s.port
	}
	if s.crosses() {
		to.src = own
		to.cross(s.proxy)
		to.dst = own
	}
	return passed, &to
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
