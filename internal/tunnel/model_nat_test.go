package tunnel

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

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
