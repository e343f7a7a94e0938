package tunnel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"firezone-gateway/internal/policy"
)

// What the model test chooses from. There are few of everything, so that things
// meet.

var (
	resourceIDs = []string{"c1", "c2", "c3", "d1", "d2", "d3", "i1"}
	domains     = []string{"a.example.com", "A.example.COM", "b.example.com", "x.a.example.com", "example.com", "other.test"}
	patterns    = []string{"*.example.com", "**.example.com", "?.example.com", "*.example.com", "**", "other.*", "*.other.test", "B.example.com"}
	networks    = []string{
		"10.1.0.0/24", "10.1.0.128/25", "10.1.0.200/32", "10.0.0.0/8", "0.0.0.0/0", "203.0.113.0/24", "100.64.0.0/10", "100.96.0.0/16",
		"224.0.0.0/8", "2001:db8:1::/64", "2001:db8::/32", "::/0", "fd00:2021:1111::/107", "fd00::/8",
	}
	modelPorts = []uint16{0, 1, 53, 443, 1000, 1999, 2000, 53535, 65534, 65535}
	hosts      = addrs("10.1.0.5", "10.1.0.130", "10.1.0.200", "10.9.9.9", "203.0.113.7", "8.8.8.8", "192.168.1.1", "127.0.0.1",
		"169.254.1.1", "240.0.0.1", "255.255.255.255", "224.0.0.5", "172.31.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.0",
		"2001:db8:1::5", "2001:db8:2::5", "2607::1", "fd12::1", "fe80::1", "::1", "::ffff:10.1.0.5", "ff02::1", "fd00:2021:1111:8000:20::1")
	modelReals = addrs("10.1.0.5", "10.77.0.5", "203.0.113.7", "8.8.8.8", "2001:db8:77::5", "2001:db8:1::5", "2607::1",
		"10.1.0.5", "10.77.0.5", "203.0.113.7", "8.8.8.8", "2001:db8:77::5", "2001:db8:1::5", "2607::1",
		"127.0.0.1", "0.0.0.0", "100.64.0.1", "100.96.0.1", "224.0.0.5", "255.255.255.255", "::1", "::", "::ffff:8.8.8.8", "ff02::1",
		"fd00:2021:1111::1")
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// modelProxies are the proxy addresses that a client makes up, six of a family.
// All clients begin with the same, as real ones do, but for the last two.
func modelProxies(client int, is6 bool) (out []netip.Addr) {
	for i := range 6 {
		if i > 3 {
			i += client * 16
		}
		if is6 {
			a := proxy6.As16()
			a[15] = byte(i)
			out = append(out, netip.AddrFrom16(a))
		} else {
			out = append(out, netip.AddrFrom4([4]byte{100, 96, 0, byte(i)}))
		}
	}
	return out
}

// proxiesOf are those of a domain, two of a family.
func proxiesOf(client int, domain string) []netip.Addr {
	first := 2 * (slices.Index([]string{"a.example.com", "b.example.com"}, strings.ToLower(domain)) + 1)
	return slices.Concat(modelProxies(client, false)[first:first+2], modelProxies(client, true)[first:first+2])
}

// domains are those that the client may set up, each with a resource.
func (c *modelClient) domains() (out [][2]string) {
	for _, id := range slices.Sorted(maps.Keys(c.grants)) {
		for _, d := range domains {
			if g := c.grants[id]; g.kind == "dns" && covers(g.pattern, d) {
				out = append(out, [2]string{id, d})
			}
		}
	}
	return out
}

// resource makes one up, in the words of the model and in those of the portal.
func (w *modelWorld) resource() (id string, m modelGrant, r policy.Resource) {
	id = one(w, resourceIDs...)
	if id == "i1" && w.chance(60) { // with everything allowed there is little to see
		id = one(w, "d1", "d2")
	}
	kind := id[0]
	if w.chance(3) {
		kind = one[byte](w, 'c', 'd', 'i')
	}
	r.ID = id
	switch kind {
	case 'c':
		m.kind, r.Kind = "cidr", policy.CIDR
		m.network = netip.MustParsePrefix(one(w, networks...))
		r.Network = m.network
	case 'd':
		m.kind, r.Kind = "dns", policy.DNS
		m.pattern = one(w, patterns...)
		r.Pattern = m.pattern
	case 'i':
		m.kind, r.Kind = "internet", policy.Internet
	}
	if w.chance(50) {
		return id, m, r
	}
	for range 1 + w.r.IntN(3) {
		f := modelFilter{one(w, "tcp", "udp", "icmp"), 0, 65535}
		switch w.r.IntN(4) {
		case 0:
			f.first = one(w, modelPorts...)
			f.last = f.first
		case 1:
			f.first, f.last = 1000, 1999
		case 2:
			f.first, f.last = one(w, modelPorts...), one(w, modelPorts...)
		}
		protocol := map[string]policy.FilterProtocol{"tcp": policy.FilterTCP, "udp": policy.FilterUDP, "icmp": policy.FilterICMP}[f.kind]
		m.filters = append(m.filters, f)
		r.Filters = append(r.Filters, policy.Filter{Protocol: protocol, Ports: policy.PortRange{First: f.first, Last: f.last}})
	}
	return id, m, r
}

// outbound is a packet of the client: a sensible one, or one of somebody who
// tries what he can get away with.
func (w *modelWorld) outbound(p *person) *letter {
	m := p.model
	dst := one(w, hosts...)
	switch n := w.r.IntN(100); {
	case n < 55:
		dst = one(w, modelProxies(p.number, w.chance(35))[:5]...)
	case n < 58:
		dst = one(w, modelProxies(1+p.number%4, w.chance(35))...) // somebody else's
	case n < 62:
		dst = one(w, m.gateway[:]...)
	case n < 65:
		dst = one(w, address4(p.number), address4(1+p.number%4), nobody4, address6(1+p.number%4))
	case n < 85 && m.nat != nil && len(m.nat.sessions) > 0:
		s := one(w, m.nat.sessions...)
		l := w.transport(s.outside.kind, m.own[family(s.proxy)], s.proxy)
		if l.src.IsValid() {
			l.sport = s.port
			if l.kind == kindEcho {
				l.dport = s.port
			}
			return l
		}
	}
	if !dst.IsValid() {
		dst = gateway4
	}
	src := m.own[family(dst)]
	if w.chance(4) {
		src = one(w, foreign4, address4(p.number), address4(1+p.number%4), gateway4, proxy4, netip.IPv4Unspecified())
		if dst.Is6() {
			src = one(w, foreign6, address6(p.number), address6(1+p.number%4), gateway6, proxy6, netip.IPv6Unspecified(), dst)
		}
	}
	if !src.IsValid() {
		src = address6(p.number)
	}
	if w.chance(3) { // real control packets, and what only looks like one
		l := &letter{kind: kindControl, protocol: 255, src: netip.IPv6Unspecified(), dst: netip.IPv6Unspecified(), size: w.r.IntN(60)}
		if w.chance(30) {
			l.dst = server6
		}
		return l
	}
	return w.letter(src, dst)
}

// inbound is a packet that the network has for a client: a reply of a session or
// anything.
func (w *modelWorld) inbound(p *person) *letter {
	m := p.model
	src := one(w, append(modelReals[:7], hosts...)...)
	switch w.r.IntN(20) {
	case 0:
		src = one(w, modelProxies(p.number, w.chance(50))...)
	case 1:
		src = one(w, gateway4, gateway6, address4(1+p.number%4), address6(1+p.number%4))
	}
	dst := m.own[family(src)]
	if w.chance(4) || !dst.IsValid() {
		dst = one(w, nobody4, foreign4, proxy4, address4(1+p.number%4))
		if src.Is6() {
			dst = one(w, foreign6, proxy6, address6(p.number), netip.IPv6Unspecified())
		}
	}
	if m.nat == nil || w.chance(40) {
		return w.letter(src, dst)
	}
	// About a session, one that has ended, or one that might have been.
	k := modelOutside{one(w, kindTCP, kindUDP, kindEcho), one(w, modelPorts...), src}
	if len(m.nat.sessions) > 0 && w.chance(85) {
		k = one(w, m.nat.sessions...).outside
		w.seen["in: over"] += w.over(m.nat, k)
	}
	dst = m.own[family(k.real)]
	if !dst.IsValid() {
		dst = address6(p.number)
	}
	if w.chance(20) {
		sent := w.transport(k.kind, dst, k.real)
		sent.reply, sent.fault = false, sound
		sent.sport = k.port
		if k.kind == kindEcho {
			sent.dport = k.port
		}
		router := one(w, k.real, foreign4, gateway4, proxy4)
		if k.real.Is6() {
			router = one(w, k.real, foreign6, gateway6, proxy6)
		}
		return w.failure(sent, router, dst)
	}
	l := w.transport(k.kind, k.real, dst)
	l.dport = k.port
	if k.kind == kindEcho {
		l.sport = k.port
	}
	return l
}

func (w *modelWorld) over(n *modelNAT, k modelOutside) int {
	if n.outsideOf(k).over(w.now) {
		return 1
	}
	return 0
}

// letter is a packet of any kind.
func (w *modelWorld) letter(src, dst netip.Addr) *letter {
	switch n := w.r.IntN(100); {
	case n < 86:
		return w.transport(one(w, kindTCP, kindUDP, kindEcho), src, dst)
	case n < 90:
		inner := w.transport(one(w, kindTCP, kindUDP, kindEcho), dst, src)
		inner.reply, inner.fault = false, sound
		return w.failure(inner, src, dst)
	case n < 95:
		l := w.transport(kindMessage, src, dst)
		l.typ, l.code = one[byte](w, 3, 4, 5, 8, 11, 12, 13), 1
		if src.Is6() {
			l.typ = one[byte](w, 1, 3, 4, 127, 128, 133, 137)
		}
		l.size = min(l.size, 12) // too short to quote a packet
		return l
	}
	l := w.transport(kindOpaque, src, dst)
	l.protocol = one[byte](w, 2, 47, 50, 132, 255)
	return l
}

// transport is a packet of the kind, with or without what is unusual.
func (w *modelWorld) transport(k kind, src, dst netip.Addr) *letter {
	l := &letter{kind: k, src: src, dst: dst, size: w.r.IntN(40), ttl: byte(1 + w.r.IntN(255)), tos: byte(w.r.IntN(64) << 2)}
	l.identified, l.extended, l.unsummed = w.chance(50), w.chance(10), w.chance(10)
	switch k {
	case kindTCP:
		l.flags = one[byte](w, 2, 0x12, 0x10, 0x10, 0x18, 0x11, 0x11, 0x14, 4, 3)
		fallthrough
	case kindUDP:
		l.sport, l.dport = one(w, modelPorts...), one(w, modelPorts...)
	case kindEcho:
		l.sport = one(w, modelPorts...)
		l.dport, l.reply = l.sport, w.chance(50)
	}
	if w.chance(3) {
		l.fault = fault(w.r.IntN(int(faults)))
	}
	if w.chance(2) {
		l.size = 1280 - 100
	}
	return l
}

// failure is the error of a router about a packet.
func (w *modelWorld) failure(l *letter, router, dst netip.Addr) *letter {
	typ := one[byte](w, 3, 11)
	if l.is6() {
		typ = one[byte](w, 1, 2, 3)
	}
	header := 20
	if l.is6() {
		header = 40
	}
	if l.extended {
		header += 4 << (header / 40)
	}
	return l.about(router, dst, typ, byte(w.r.IntN(5)), header+one(w, 8, 20, 1000))
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
