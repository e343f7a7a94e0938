package natbox

import (
	"net/netip"
	"time"
)

// pieces remembers what became of first fragments, because later ones do not say
// whose they are.
type pieces map[packetID]passage

// packetID identifies a packet that was cut to pieces, as its destination tells
// it from others (RFC 791 §3.2, RFC 8200 §4.5).
type packetID struct {
	src, dst netip.Addr
	protocol byte
	id       uint32
}

type passage struct {
	to      netip.Addr // the address that translation gave the packet
	expires time.Time
}

const (
	maxPieces     = 1024
	pieceLifetime = 15 * time.Second // of a datagram in pieces, RFC 791 §3.2
)

func (v *view) packetID() packetID {
	return packetID{v.src.Addr(), v.dst.Addr(), v.protocol, v.id}
}

// lead notes that a first fragment passes with another address; it has not been
// rewritten yet. When there is no room, the later ones will be dropped.
func (p pieces) lead(v *view, to netip.Addr, now time.Time) {
	if len(p) >= maxPieces {
		for id, passage := range p {
			if now.After(passage.expires) {
				delete(p, id)
			}
		}
	}
	if len(p) < maxPieces {
		p[v.packetID()] = passage{to, now.Add(pieceLifetime)}
	}
}

// follow rewrites a later fragment as the first one was.
func (p pieces) follow(v *view, e end, now time.Time) Verdict {
	passage, ok := p[v.packetID()]
	if !ok || now.After(passage.expires) {
		return Unsupported
	}
	if v.is4() {
		v.readdress(e, passage.to)
	}
	return Forward
}
