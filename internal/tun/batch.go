package tun

import (
	"errors"

	wgtun "github.com/tailscale/wireguard-go/tun"
)

// batch is the output of one Read: packets laid out in slab in ascending order,
// with spacing before, between and after them.
type batch struct {
	slab    []byte
	packets []wgtun.ReadPacket
	n       int // packets so far
	end     int // end of the last packet in slab
}

// room returns the slab from the end of the last packet.
func (b *batch) room() []byte { return b.slab[b.end:] }

// hasRoom reports whether reading on makes sense: nothing is there yet, or a
// packet of the device's MTU fits.
func (b *batch) hasRoom(mtu int) bool {
	return b.n == 0 || b.n < len(b.packets) && len(b.room()) >= spacing+mtu+spacing
}

// fits reports whether all of u fits.
func (b *batch) fits(u *unit) bool {
	return u.segments() <= len(b.packets)-b.n && u.space() <= len(b.room())
}

// add appends the packets of u. When only some fit, u becomes the remainder and
// done is false. u may lie in the slab only where the next packet belongs, and
// then has to fit. ok is false when u cannot be split; it is lost then.
func (b *batch) add(u *unit) (done, ok bool) {
	if u.isSuper() {
		return b.split(u)
	}
	if !b.fits(u) {
		return false, true
	}
	dst := b.room()[spacing:][:len(u.pkt)]
	if &dst[0] != &u.pkt[0] {
		copy(dst, u.pkt)
	}
	if u.opts.NeedsCsum {
		completeChecksum(dst, u.opts)
	}
	b.packets[b.n] = wgtun.ReadPacket{Offset: b.end + spacing, Size: len(dst)}
	b.n++
	b.end += spacing + len(dst)
	return true, true
}

func (b *batch) split(u *unit) (done, ok bool) {
	out := b.packets[b.n:]
	if len(out) == 0 {
		return false, true
	}
	n, err := wgtun.GSOSplit(u.pkt, u.opts, b.room(), out, spacing)
	if err != nil && !errors.Is(err, wgtun.ErrTooManySegments) {
		return false, false
	}
	base := b.end
	for i := range out[:n] {
		out[i].Offset += base
		b.end = out[i].Offset + out[i].Size
		if !u.isTCP() {
			avoidZeroChecksum(b.slab[out[i].Offset+int(u.opts.CsumStart)+udpChecksumAt:])
		}
	}
	b.n += n
	if err == nil {
		return true, true
	}
	if n > 0 {
		u.advance(n)
	}
	return false, true
}
