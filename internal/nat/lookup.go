package nat

import (
	"net/netip"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
)

// Lookup is what a Table knows of the flow of a packet of the client. With many
// sessions, waiting for memory is most of what a packet costs; so the look-ups
// for a batch of packets are begun one by one and finished together, while the
// processor waits for many of them at once.
//
// A Lookup holds for all packets of one flow. It tells what was so when it was
// finished; a session that ends later may still translate.
type Lookup struct {
	proxied bool // to a proxy address, else the rest is void
	proxy   uint64
	key     uint64
	mapping *Mapping
	found   sought
}

// Return is a Lookup for a packet from the network. It holds for all packets of
// one flow too, unless they are ICMP errors.
type Return struct {
	key   outsideKey
	found sought
}

// sought is where in an index a session is looked for, and what is found.
type sought struct {
	session *session // nil if there is none
	part    *part[session]
	hash    uint64
	at      uint64
}

// Begin makes l the look-up for v.
func (t *Table) Begin(l *Lookup, v *packet.View) {
	l.proxy, l.proxied = proxyKey(v.Dst)
	if !l.proxied {
		l.found = sought{}
		return
	}
	l.key = insideKey(v.Kind, l.proxy, v.SrcPort)
	l.found.begin(&t.inside, t.insideHash(l.key))
}

// Finish ends look-ups that were begun. Each loop is short, so that the
// processor sees the accesses of many look-ups ahead while it waits for the
// first: those for the slots in the first loop, those for the sessions in the
// second.
func (t *Table) Finish(ls []Lookup) {
	for i := range ls {
		ls[i].found.fetch()
	}
	for i := range ls {
		l := &ls[i]
		l.found.session = findInside(&l.found, l.key)
	}
	for i := range ls {
		if l := &ls[i]; l.proxied {
			l.mapping = t.mapping(l.proxy)
		}
	}
}

// BeginReturn makes r the look-up for v.
func (t *Table) BeginReturn(r *Return, v *packet.View) {
	switch v.Kind {
	case packet.KindTCP, packet.KindUDP, packet.KindEcho:
		r.key = makeOutsideKey(v.Kind, v.Src, v.DstPort)
	case packet.KindICMPError:
		quote, _ := v.Quote()
		r.key = makeOutsideKey(quote.Kind, quote.Dst, quote.SrcPort)
	default:
		r.found = sought{}
		return
	}
	r.found.begin(&t.outside, t.outsideHash(r.key))
}

// FinishReturns is Finish for packets from the network, which may have been
// begun by different Tables.
func FinishReturns(rs []Return) {
	for i := range rs {
		rs[i].found.fetch()
	}
	for i := range rs {
		r := &rs[i]
		r.found.session = findOutside(&r.found, r.key)
	}
}

// Proxies knows of the destination that was looked up what the Table knows of
// every proxy address.
func (l *Lookup) Proxies() policy.Proxies {
	if !l.proxied || l.mapping == nil {
		return policy.NoProxies
	}
	return destination{l.mapping}
}

// destination is the mapping of the one proxy address that is asked about.
type destination struct{ mapping *Mapping }

func (d destination) Resources(netip.Addr) []string { return d.mapping.Resources }

func (f *sought) begin(x *index[session], h uint64) {
	f.hash = h
	f.part, f.at = x.part(h)
}

func (f *sought) fetch() { f.part.fetch(f.at) }

// findInside returns the session whose inside is key, nil if there is none.
func findInside(f *sought, key uint64) *session {
	s, at := f.part.find(f.hash, f.at)
	for s != nil && s.inside != key {
		s, at = f.part.find(f.hash, at)
	}
	return s
}

// findOutside returns the session, live or remembered, whose outside is key, nil
// if there is none.
func findOutside(f *sought, key outsideKey) *session {
	s, at := f.part.find(f.hash, f.at)
	for s != nil && s.outsideKey() != key {
		s, at = f.part.find(f.hash, at)
	}
	return s
}
