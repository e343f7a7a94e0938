package tunnel

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
)

const batchSize = conn.IdealBatchSize

// engineDevice is what the engine takes for its TUN device: the real device
// behind the policy pipelines, plus the queue of packets made by the gateway.
// The real device may be lost and replaced at any time; the engine only sees
// that no packets arrive in between.
type engineDevice struct {
	tunnel *Tunnel
	events chan enginetun.Event

	mu      sync.Mutex
	changed sync.Cond // real or closed changed
	real    enginetun.Device
	closed  bool

	// owners and next describe the packets of the last Read. Only the engine's
	// reader goroutine of this queue touches them.
	owners [batchSize]addressee
	count  int
	next   int
}

var _ enginetun.MultiQueueDevice = (*engineDevice)(nil)

func newEngineDevice(t *Tunnel) *engineDevice {
	d := &engineDevice{tunnel: t, events: make(chan enginetun.Event)}
	d.changed.L = &d.mu
	return d
}

// attach makes dev the real device; nil detaches. The previous one is returned
// and belongs to the caller.
func (d *engineDevice) attach(dev enginetun.Device) enginetun.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.real
	d.real = dev
	d.changed.Broadcast()
	return old
}

// current waits for a real device. It returns nil once closed.
func (d *engineDevice) current() enginetun.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.real == nil && !d.closed {
		d.changed.Wait()
	}
	if d.closed {
		return nil
	}
	return d.real
}

// lost detaches dev if it is still the real device and tells the owner.
func (d *engineDevice) lost(dev enginetun.Device, err error) {
	d.mu.Lock()
	mine := d.real == dev && !d.closed
	if mine {
		d.real = nil
	}
	d.mu.Unlock()
	if mine {
		d.tunnel.cfg.OnDeviceLost(err)
	}
}

// Read implements the engine's Reader: the way from the TUN device to clients.
// It returns once at least one packet is left after the policy.
func (d *engineDevice) Read(slab []byte, packets []enginetun.ReadPacket) (int, error) {
	for {
		dev := d.current()
		if dev == nil {
			return 0, os.ErrClosed
		}
		n, err := dev.Read(slab, packets[:batchSize])
		if n > 0 {
			d.count = d.tunnel.toClient(slab, packets[:n], d.owners[:], time.Now().UnixNano())
			d.next = 0
		}
		switch {
		case errors.Is(err, enginetun.ErrTooManySegments):
			d.tunnel.drops.Add(drop.Oversize, 1)
		case err != nil:
			d.lost(dev, err)
		}
		if n > 0 && d.count > 0 {
			return d.count, nil
		}
	}
}

// claim names the client that the next packet of the last Read was let through
// for. A packet that the engine did not ask about is passed over; nil means that
// dst is none of those that are left.
func (d *engineDevice) claim(dst netip.Addr) *Client {
	for d.next < d.count {
		o := &d.owners[d.next]
		d.next++
		if o.dst == dst {
			return o.client
		}
	}
	return nil
}

// WriteTo implements the engine's MultiQueueDevice: one batch of one client on
// its way to the TUN device. It empties bufs: see letGo.
func (d *engineDevice) WriteTo(flow int, bufs [][]byte, offset int) (int, error) {
	defer letGo(bufs)
	t := d.tunnel
	c, ok := t.byFlow.get(uint32(flow))
	if !ok {
		t.drops.Add(drop.NoPeerState, uint64(len(bufs)))
		return 0, nil
	}
	if c.endpoint.Congested() { // true of this call alone, and some packets have to wait
		markCongested(bufs, offset)
	}
	if kept := t.toResource(c, bufs, offset, time.Now().UnixNano()); len(kept) > 0 {
		d.write(kept, offset)
	}
	c.restGrown()
	return len(bufs), nil
}

// write hands packets to the real device, each at offset in its buffer.
func (d *engineDevice) write(bufs [][]byte, offset int) {
	d.mu.Lock()
	dev := d.real
	d.mu.Unlock()
	if dev == nil {
		d.tunnel.drops.Add(drop.TUNWrite, uint64(len(bufs)))
		return
	}
	if n, err := dev.Write(bufs, offset); err != nil {
		// Losing the device is the reader's to report, and the engine would only
		// log the error, once per batch.
		d.tunnel.drops.Add(drop.TUNWrite, uint64(len(bufs)-n))
		d.tunnel.cfg.Logger.Debug("write to TUN device", "error", err)
	}
}

// Write implements the engine's Device; the engine uses WriteTo.
func (d *engineDevice) Write([][]byte, int) (int, error) {
	return 0, errors.New("tunnel: write without flow")
}

// Queues implements the engine's MultiQueueDevice.
func (d *engineDevice) Queues() []enginetun.Queue {
	return []enginetun.Queue{d, d.tunnel.inject}
}

// File implements the engine's Queue; the descriptor stays with the real device.
func (*engineDevice) File() *os.File { return nil }

// MTU implements the engine's Device.
func (*engineDevice) MTU() (int, error) { return packet.MaxSize, nil }

// Name implements the engine's Device.
func (*engineDevice) Name() (string, error) { return "firezone", nil }

// Events implements the engine's Device. There are none: whether the bind is
// open is not for a TUN device to decide.
func (d *engineDevice) Events() <-chan enginetun.Event { return d.events }

// BatchSize implements the engine's Device.
func (*engineDevice) BatchSize() int { return batchSize }

// Close implements the engine's Device. It closes the real device, which the
// reader may be waiting on.
func (d *engineDevice) Close() error {
	d.mu.Lock()
	already := d.closed
	d.closed = true
	dev := d.real
	d.real = nil
	d.changed.Broadcast()
	d.mu.Unlock()
	if already {
		return nil
	}
	close(d.events)
	d.tunnel.inject.close()
	if dev != nil {
		return dev.Close()
	}
	return nil
}
