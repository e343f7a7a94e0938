package tun

import (
	"errors"
	"io"
	"os"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
)

// spacing is the room before, between and behind packets: what the engine asks for
// and what a packet needs that changes its IP version in place.
const spacing = wgtun.ReadPacketSpacing + packet.MaxGrowth

// scratchSize holds the largest frame.
const scratchSize = vnetHdrLen + maxPacket

// waiter is the part of syscall.RawConn that reading needs: it calls f, and
// again each time the file becomes readable, until f reports true.
type waiter interface {
	Read(f func(fd uintptr) (done bool)) error
}

// reader turns the queue of one TUN file into batches. Each wake-up of the
// poller drains the queue until it is empty or the batch is full, because what
// costs on this path is the wake-up and the batch that is handed on, not the
// read. One goroutine at a time may use it.
type reader struct {
	file  waiter
	read  func(fd int, p []byte) (int, error)
	vnet  bool // packets are preceded by a virtio header
	mtu   int
	drops *drop.Counters
	stats *counters
	lost  func(cause error) // the kernel says that the device is gone

	drainFunc func(fd uintptr) bool // drain; a method value made per call would allocate
	scratch   []byte
	rest      unit // did not fit into the last batch; lies in scratch
	out       batch
	failure   error
}

func newReader(file waiter, vnet bool, mtu int, drops *drop.Counters, stats *counters, lost func(error)) *reader {
	r := &reader{
		file: file, read: unix.Read, vnet: vnet, mtu: mtu,
		drops: drops, stats: stats, lost: lost,
		scratch: make([]byte, scratchSize),
	}
	r.drainFunc = r.drain
	return r
}

// Read fills slab and packets as [wgtun.Reader] asks, with at least one packet
// unless it returns an error. It never returns ErrTooManySegments for a
// usable slab: what does not fit comes first in the next call.
func (r *reader) Read(slab []byte, packets []wgtun.ReadPacket) (int, error) {
	if len(packets) == 0 || len(slab) <= 2*spacing {
		return 0, wgtun.ErrTooManySegments
	}
	r.out = batch{slab: slab, packets: packets}
	r.failure = nil
	if r.rest.pkt != nil {
		r.deliver(r.rest)
	}
	var err error
	if r.rest.pkt == nil {
		err = r.file.Read(r.drainFunc)
	}
	n := r.out.n
	r.out = batch{}
	r.stats.add(n)
	if n > 0 {
		return n, nil // the file returns the error again in the next call
	}
	if r.failure != nil {
		r.lost(r.failure)
		return 0, os.ErrClosed
	}
	if err != nil {
		return 0, os.ErrClosed
	}
	return n, nil
}

// drain reads until the queue is empty, the batch is full, or the read fails.
// It reports false to be called again once the file is readable.
func (r *reader) drain(fd uintptr) bool {
	for r.rest.pkt == nil && r.out.hasRoom(r.mtu) {
		frame, inPlace := r.target()
		n, err := r.read(int(fd), frame)
		switch {
		case err == nil && n > 0:
			r.accept(frame[:n], inPlace)
		case err == nil:
			r.failure = io.EOF
			return true
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return r.out.n > 0
		default:
			r.failure = err
			return true
		}
	}
	return true
}

// target returns the memory for the next frame: the slab where the packet is to
// lie, with the virtio header in the spacing before it, if the largest frame
// fits there, else the scratch buffer. A read into less would cut the packet.
func (r *reader) target() (frame []byte, inPlace bool) {
	room := r.out.room()
	head := 0
	if r.vnet {
		head = vnetHdrLen
	}
	if len(room) < spacing+maxPacket+spacing {
		return r.scratch, false
	}
	return room[spacing-head : spacing+maxPacket], true
}

// accept takes one frame that target made room for.
func (r *reader) accept(frame []byte, inPlace bool) {
	u := unit{pkt: frame}
	if r.vnet {
		var ok bool
		if u, ok = parseVnet(frame); !ok {
			r.drops.Add(drop.Malformed, 1)
			return
		}
	}
	if u.isSuper() {
		r.stats.superPackets.Add(1)
	}
	if inPlace && !r.out.fits(&u) {
		// Splitting in place destroys what does not fit.
		u.pkt = r.scratch[:copy(r.scratch, u.pkt)]
	}
	r.deliver(u)
}

// deliver moves u, or as much of it as fits, to the batch and keeps the rest.
func (r *reader) deliver(u unit) {
	done, ok := r.out.add(&u)
	r.rest = unit{}
	switch {
	case !ok:
		r.drops.Add(drop.Malformed, 1)
	case done:
	case r.out.n == 0:
		// An empty slab cannot take it, so no later one will.
		r.drops.Add(drop.Oversize, 1)
	default:
		r.rest = u
	}
}
