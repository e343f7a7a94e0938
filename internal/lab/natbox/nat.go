package natbox

import (
	"net/netip"
	"time"
)

// NAT is one router's translation. It is not safe for concurrent use.
type NAT struct {
	external netip.Addr
	table    table
	pieces   pieces
}

// New returns a NAT that hides IPv4 behind the external address. The seed
// decides which ports are chosen where the behaviour leaves it to chance.
func New(external netip.Addr, b Behaviour, seed uint64) *NAT {
	return &NAT{external: external, table: newTable(b, seed), pieces: pieces{}}
}

// Mappings returns how many mappings there are, expired ones included that have
// not been swept away.
func (n *NAT) Mappings() int { return len(n.table.byPrivate) }

// Outbound rewrites a packet from the private side in place and says what
// becomes of it: anything but Local.
func (n *NAT) Outbound(packet []byte, now time.Time) Verdict {
	v, verdict := parse(packet, false)
	switch {
	case verdict != Forward:
		return verdict
	case v.piece == later:
		return n.pieces.follow(&v, source, now)
	case v.icmpError != 0:
		return n.errorOutbound(&v, now)
	case v.isQuery() && v.b[v.l4] == v.echo(reply):
		return Filtered // no request got there
	}
	m := n.table.outbound(v.protocol, v.src, v.dst, n.external, now)
	if m == nil {
		return Exhausted
	}
	if v.piece == first {
		n.pieces.lead(&v, m.outside.Addr(), now)
	}
	if v.is4() {
		v.rewrite4(source, m.outside)
	}
	return Forward
}

// Inbound rewrites a packet from outside in place and says what becomes of it.
// TCP and ICMP that no mapping claims is for the router itself, which answers as
// hosts do; UDP is dropped without a word.
func (n *NAT) Inbound(packet []byte, now time.Time) Verdict {
	v, verdict := parse(packet, false)
	if verdict != Forward {
		return verdict
	}
	if v.is4() && v.dst.Addr() != n.external {
		return Filtered
	}
	switch {
	case v.piece == later:
		return n.pieces.follow(&v, destination, now)
	case v.icmpError != 0:
		return n.errorInbound(&v, now)
	case v.isQuery() && v.b[v.l4] == v.echo(request):
		return n.unclaimed(&v) // mappings of ICMP carry answers only
	}
	m, admitted := n.table.inbound(v.protocol, v.dst, v.src, now)
	switch {
	case m == nil:
		return n.unclaimed(&v)
	case !admitted:
		return Filtered
	}
	if v.piece == first {
		n.pieces.lead(&v, m.inside.Addr(), now)
	}
	if v.is4() {
		v.rewrite4(destination, m.inside)
	}
	return Forward
}

func (n *NAT) unclaimed(v *view) Verdict {
	if v.is4() && v.protocol != protoUDP {
		return Local
	}
	return Filtered
}

// errorInbound passes an ICMP error on when it is about a packet that a mapping
// carried (RFC 5508 REQ-4): from there its destination, and the source of the
// packet quoted, are those of the private side.
func (n *NAT) errorInbound(v *view, now time.Time) Verdict {
	quoted, verdict := parse(v.b[v.icmpError:], true)
	if verdict != Forward {
		return verdict
	}
	m, admitted := n.table.inbound(quoted.protocol, quoted.src, quoted.dst, now)
	if m == nil || !admitted {
		return n.unclaimed(v)
	}
	if v.is4() {
		quoted.rewrite4(source, m.inside)
		v.readdress(destination, m.inside.Addr())
		setSum(v.b[v.l4:], 2)
	}
	return Forward
}

// errorOutbound passes an ICMP error of the private side on, about a packet that
// came in through a mapping, as one from the public address.
func (n *NAT) errorOutbound(v *view, now time.Time) Verdict {
	quoted, verdict := parse(v.b[v.icmpError:], true)
	if verdict != Forward || !v.is4() {
		return verdict
	}
	key := private{quoted.protocol, quoted.dst, n.table.Mapping.of(quoted.src)}
	m := n.table.byPrivate[key]
	if m == nil || now.After(m.expires) {
		return Filtered
	}
	quoted.rewrite4(destination, m.outside)
	v.readdress(source, n.external)
	setSum(v.b[v.l4:], 2)
	return Forward
}
