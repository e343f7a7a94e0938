package tunnel

import (
	"errors"
	"net"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"

	"firezone-gateway/internal/transport"
)

// clientEndpoint is the pinned endpoint of one client in the engine.
type clientEndpoint struct {
	*transport.Endpoint
	client *Client
}

// clientBind notices what is sent to whom.
type clientBind struct {
	conn.Bind
	tunnel *Tunnel
}

// Send implements the engine's Bind. It empties bufs: see letGo.
func (b *clientBind) Send(bufs [][]byte, ep conn.Endpoint, offset int) error {
	defer letGo(bufs)
	ce, ok := ep.(*clientEndpoint)
	if !ok {
		return b.Bind.Send(bufs, ep, offset) // a cookie reply
	}
	c := ce.client
	if c.removed.Load() {
		b.tunnel.reap(c)
		return nil
	}
	if len(bufs) == 1 && len(bufs[0])-offset == device.MessageInitiationSize && bufs[0][offset] == device.MessageInitiationType && c.yields() {
		return nil
	}
	if len(bufs) == 1 && len(bufs[0])-offset == device.MessageResponseSize && bufs[0][offset] == device.MessageResponseType {
		c.counters.LastHandshake.Store(time.Now().UnixNano())
		c.counters.Handshakes.Add(1)
	}
	goodbye := c.holdsGoodbye(bufs, offset)
	switch err := b.Bind.Send(bufs, ce.Endpoint, offset); {
	case errors.Is(err, net.ErrClosed):
		// Counted by the bind, while its sockets are being replaced. The engine would
		// log it for every batch.
		return nil
	case err != nil:
		return err
	}
	if goodbye {
		c.goodbyeSent()
	}
	return nil
}

// letGo forgets the buffers of a batch. The engine keeps the slice that it hands
// over for the next batch of the same client, and whatever a shorter one does not
// overwrite holds on to a slab of 128 KiB that its pool has long replaced. What
// the engine counts in it afterwards, the bytes sent, is for nobody.
func letGo(bufs [][]byte) { clear(bufs) }
