package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tailscale/wireguard-go/device"
)

// goodbyeBudget bounds the wait for goodbyes (dataplane rule 79).
const goodbyeBudget = time.Second

// Goodbye tells the client that the gateway is done with it (transport §5.6) and
// waits until the datagram was handed to the socket, ctx ends or a second has
// passed; only the first is no error. From the call on nothing else passes in
// either direction but what the engine holds already. A client that has no
// session is not told, which is no error. The client stays known to the engine
// until Remove.
func (t *Tunnel) Goodbye(ctx context.Context, c *Client) error {
	ctx, cancel := context.WithTimeout(ctx, goodbyeBudget)
	defer cancel()
	if t.part(c) && !c.awaitGoodbye(ctx) {
		return fmt.Errorf("goodbye: %w", context.Cause(ctx))
	}
	return nil
}

// GoodbyeAll says goodbye to every client at once and waits like Goodbye.
func (t *Tunnel) GoodbyeAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, goodbyeBudget)
	defer cancel()
	var parting []*Client
	t.Each(func(c *Client) {
		if t.part(c) {
			parting = append(parting, c)
		}
	})
	missed := 0
	for _, c := range parting {
		if !c.awaitGoodbye(ctx) {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("goodbye: %d of %d clients: %w", missed, len(parting), context.Cause(ctx))
	}
	return nil
}

// part closes the client's tunnel and queues the goodbye, once. It reports false
// when there is no session to send it through.
func (t *Tunnel) part(c *Client) bool {
	if !c.connected() {
		c.closing.Store(true)
		return false
	}
	if c.mark.CompareAndSwap(0, newMark()) {
		c.closing.Store(true)
		t.inject.part(c)
	}
	return true
}

func (c *Client) awaitGoodbye(ctx context.Context) bool {
	select {
	case <-c.goodbye:
		return true
	case <-ctx.Done():
	}
	select {
	case <-c.goodbye: // both were ready
		return true
	default:
		return false
	}
}

// The engine encrypts in place and leaves alone what precedes a message, for the
// bind to use as headroom. The injector writes the client's mark there, so that
// the goodbye is recognised on its way out, among messages that look the same.
const (
	headroom   = device.MessageEncapsulatingTransportSize
	markBefore = device.MessageTransportHeaderSize + headroom // bytes from the mark to the packet
)

// The mark must fit, and begins where the bind finds the ECN field.
const (
	_ = uint(headroom - 8)
	_ = uint(markBefore - ecnBefore)
	_ = uint(ecnBefore - markBefore)
)

// newMark returns a mark whose first byte is that of a packet without ECN.
func newMark() uint64 { return rand.Uint64()<<8 | 1<<8 }

func putMark(slab []byte, packetAt int, mark uint64) {
	binary.LittleEndian.PutUint64(slab[packetAt-markBefore:], mark)
}

// holdsGoodbye reports whether one of the messages is the client's goodbye. It
// has to be asked before the bind uses the headroom.
func (c *Client) holdsGoodbye(bufs [][]byte, offset int) bool {
	mark := c.mark.Load()
	if mark == 0 || offset < headroom {
		return false
	}
	for _, b := range bufs {
		if len(b) >= offset && binary.LittleEndian.Uint64(b[offset-headroom:]) == mark {
			return true
		}
	}
	return false
}

func (c *Client) goodbyeSent() { c.goodbyeOnce.Do(func() { close(c.goodbye) }) }
