package tunnel

import (
	"net/netip"
	"sync"

	"github.com/tailscale/wireguard-go/device"
	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
)

// Packets of sessions that lead from a proxy address of one family to a resource
// of the other change their IP version (nat.Config.NAT64). Towards resources an
// IPv4 packet becomes longer than the engine leaves room for, so it is copied.
// Towards clients the TUN device leaves the room: packet.MaxGrowth bytes beyond
// enginetun.ReadPacketSpacing.

// largestAsIPv4 is how large an IPv4 packet may be that goes into a tunnel as
// IPv6.
const largestAsIPv4 = packet.MaxSize - packet.MaxGrowth/2

// grown are the packets of a batch that got longer.
type grown struct {
	used int
	bufs [batchSize][grownHeadroom + packet.MaxSize]byte
}

// grownHeadroom is where a packet begins in its buffer before it grows: behind
// what the engine leaves before each packet.
const grownHeadroom = device.MessageTransportHeaderSize + packet.MaxGrowth

var grownPool = sync.Pool{New: func() any { return new(grown) }}

// room returns a buffer for a packet that gets longer, valid until restGrown.
func (c *Client) room() []byte {
	if c.grown == nil {
		c.grown = grownPool.Get().(*grown)
	}
	g := c.grown
	if g.used == len(g.bufs) {
		return make([]byte, len(g.bufs[0])) // the engine's batches are not larger
	}
	g.used++
	return g.bufs[g.used-1][:]
}

// restGrown ends the use of the buffers of a batch, once that is written.
func (c *Client) restGrown() {
	if c.grown != nil {
		c.grown.used = 0
		grownPool.Put(c.grown)
		c.grown = nil
	}
}

// crossToResource translates the packet at (*b)[offset:], which v is of, and makes
// *b where it is afterwards. It returns what the table says.
func (c *Client) crossToResource(n *NAT, v *packet.View, b *[]byte, offset int, now int64) nat.Result {
	buf, at := *b, offset
	if !v.Is6() {
		buf, at = c.room(), offset+packet.MaxGrowth
		buf = buf[:at+copy(buf[at:], v.B)]
		v.B = buf[at:]
	}
	start, r := n.table.CrossToResource(v, nat.Crossing{Buf: buf, At: at, Client: c.otherAddress(v)}, now)
	if r == nat.Translated {
		*b = buf[start-offset:]
	}
	return r
}

// crossToClient translates the packet d in slab, which v is of, and makes d where
// it is afterwards. Of slab the first taken bytes hold other packets. It returns
// what the table says. The sender of an IPv4 packet that gets too large is told.
func (t *Tunnel) crossToClient(c *Client, n *NAT, v *packet.View, slab []byte, taken int, d *enginetun.ReadPacket, now int64) nat.Result {
	from := taken + enginetun.ReadPacketSpacing
	if !v.Is6() && d.Offset-from < packet.MaxGrowth {
		return nat.Unsupported // by this device
	}
	at := nat.Crossing{Buf: slab[from : d.Offset+d.Size], At: d.Offset - from, Client: c.otherAddress(v)}
	start, r := n.table.CrossToClient(v, at, now)
	switch r {
	case nat.Translated:
		d.Offset, d.Size = from+start, len(v.B)
	case nat.TooBig:
		t.tellTooBig(c, v, now)
	}
	return r
}

// tellTooBig tells the sender of v, a packet for c, how large its packets may be,
// unless v may be fragmented.
func (t *Tunnel) tellTooBig(c *Client, v *packet.View, now int64) {
	buf := firstBuffers.Get().(*firstBuffer)
	defer firstBuffers.Put(buf)
	pkt := packet.AppendFragmentationNeeded(buf[:firstHeadroom], v, largestAsIPv4)
	if len(pkt) > firstHeadroom && c.tooBig.take(now) {
		t.dev.write([][]byte{pkt}, firstHeadroom)
	}
}

// otherAddress returns the tunnel address of the client that is not of the
// packet's family.
func (c *Client) otherAddress(v *packet.View) netip.Addr {
	if v.Is6() {
		return c.cfg.TunnelV4
	}
	return c.cfg.TunnelV6
}

// unreturned is why a packet from the network has no translation.
func unreturned(r nat.Result) drop.Reason {
	switch r {
	case nat.Ended:
		return drop.NATEnded
	case nat.TooBig:
		return drop.Oversize
	}
	return drop.Unclassified
}
