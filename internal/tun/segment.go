package tun

import (
	"encoding/binary"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

// vnetHdrLen is the size of struct virtio_net_hdr, which precedes every packet
// of a device with IFF_VNET_HDR, in native byte order.
const vnetHdrLen = 10

// maxPacket is the largest packet the kernel hands over: an IPv6 header and the
// most its length field can say.
const maxPacket = 40 + 65535

// Offsets of the checksum field in the transport header. The kernel's partial
// checksums carry them, which makes them a test of what the header claims.
const (
	tcpChecksumAt = 16
	udpChecksumAt = 6
)

// unit is what one read from the device yields: a packet, or a super packet
// that stands for several segments of one flow (opts.GSOType is not GSONone).
// The zero value is no packet.
type unit struct {
	pkt  []byte
	opts wgtun.GSOOptions
}

// parseVnet reads the virtio header of frame. It reports false for a frame
// whose header and packet contradict each other. The result aliases frame.
func parseVnet(frame []byte) (unit, bool) {
	if len(frame) <= vnetHdrLen {
		return unit{}, false
	}
	u := unit{
		pkt: frame[vnetHdrLen:],
		opts: wgtun.GSOOptions{
			GSOSize:    binary.NativeEndian.Uint16(frame[4:]),
			CsumStart:  binary.NativeEndian.Uint16(frame[6:]),
			CsumOffset: binary.NativeEndian.Uint16(frame[8:]),
			NeedsCsum:  frame[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0,
		},
	}
	if u.opts.NeedsCsum && int(u.opts.CsumStart)+int(u.opts.CsumOffset)+2 > len(u.pkt) {
		return unit{}, false
	}
	switch frame[1] {
	case unix.VIRTIO_NET_HDR_GSO_NONE:
		return u, true
	case unix.VIRTIO_NET_HDR_GSO_TCPV4:
		u.opts.GSOType = wgtun.GSOTCPv4
	case unix.VIRTIO_NET_HDR_GSO_TCPV6:
		u.opts.GSOType = wgtun.GSOTCPv6
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		u.opts.GSOType = wgtun.GSOUDPL4
	default:
		return unit{}, false
	}
	if !u.measureHeaders() {
		return unit{}, false
	}
	if u.payload() <= int(u.opts.GSOSize) {
		u.opts.GSOType = wgtun.GSONone
	}
	return u, true
}

// measureHeaders sets HdrLen of a super packet from the packet itself. The
// header length the kernel states is not usable: for forwarded packets it can
// cover the whole first segment.
func (u *unit) measureHeaders() bool {
	start := int(u.opts.CsumStart)
	switch u.pkt[0] >> 4 {
	case 4:
		if start < 20 || start != int(u.pkt[0]&0xf)*4 || u.opts.GSOType == wgtun.GSOTCPv6 {
			return false
		}
	case 6:
		if start < 40 || u.opts.GSOType == wgtun.GSOTCPv4 {
			return false
		}
	default:
		return false
	}

	hdrLen, csumAt := start+8, uint16(udpChecksumAt)
	if u.isTCP() {
		if start+20 > len(u.pkt) {
			return false
		}
		tcpLen := int(u.pkt[start+12]>>4) * 4
		if tcpLen < 20 {
			return false
		}
		hdrLen, csumAt = start+tcpLen, tcpChecksumAt
	}
	segment := hdrLen + int(u.opts.GSOSize)
	if hdrLen > len(u.pkt) || u.opts.CsumOffset != csumAt || u.opts.GSOSize == 0 || segment > 65535 {
		return false
	}
	u.opts.HdrLen = uint16(hdrLen)
	return true
}

func (u *unit) isTCP() bool {
	return u.opts.GSOType == wgtun.GSOTCPv4 || u.opts.GSOType == wgtun.GSOTCPv6
}
func (u *unit) isSuper() bool { return u.opts.GSOType != wgtun.GSONone }
func (u *unit) payload() int  { return len(u.pkt) - int(u.opts.HdrLen) }

// segments returns the number of packets that u stands for.
func (u *unit) segments() int {
	if !u.isSuper() {
		return 1
	}
	return (u.payload() + int(u.opts.GSOSize) - 1) / int(u.opts.GSOSize)
}

// space returns the bytes that all segments of u take in a slab, including the
// spacing before, between and after them.
func (u *unit) space() int {
	n := u.segments()
	return len(u.pkt) + (n-1)*int(u.opts.HdrLen) + (n+1)*spacing
}

// advance drops the first n segments of a super packet, n below segments(). It
// moves the headers up against the remaining payload and makes them those of
// the remainder, with a partial checksum, as if the kernel had sent it so.
func (u *unit) advance(n int) {
	gone := n * int(u.opts.GSOSize)
	hdr, start := int(u.opts.HdrLen), int(u.opts.CsumStart)
	copy(u.pkt[gone:gone+hdr], u.pkt[:hdr])
	u.pkt = u.pkt[gone:]

	proto, transportLen := uint8(unix.IPPROTO_UDP), uint16(len(u.pkt)-start)
	if u.isTCP() {
		proto = unix.IPPROTO_TCP
		seq := binary.BigEndian.Uint32(u.pkt[start+4:])
		binary.BigEndian.PutUint32(u.pkt[start+4:], seq+uint32(gone))
	} else {
		binary.BigEndian.PutUint16(u.pkt[start+4:], transportLen)
	}

	var src, dst []byte
	if u.pkt[0]>>4 == 4 {
		src, dst = u.pkt[12:16], u.pkt[16:20]
		id := binary.BigEndian.Uint16(u.pkt[4:])
		binary.BigEndian.PutUint16(u.pkt[4:], id+uint16(n))
		binary.BigEndian.PutUint16(u.pkt[2:], uint16(len(u.pkt)))
		u.pkt[10], u.pkt[11] = 0, 0
		binary.BigEndian.PutUint16(u.pkt[10:], ^wgtun.Checksum(u.pkt[:start], 0))
	} else {
		src, dst = u.pkt[8:24], u.pkt[24:40]
		binary.BigEndian.PutUint16(u.pkt[4:], uint16(len(u.pkt)-40))
	}

	sum := wgtun.PseudoHeaderChecksum(proto, src, dst, transportLen)
	binary.BigEndian.PutUint16(u.pkt[start+int(u.opts.CsumOffset):], sum)
	u.opts.NeedsCsum = true
	if u.payload() <= int(u.opts.GSOSize) {
		u.opts.GSOType = wgtun.GSONone
	}
}

// completeChecksum replaces the partial checksum in pkt by the full one. opts
// must have passed parseVnet for a packet of this length.
func completeChecksum(pkt []byte, opts wgtun.GSOOptions) {
	at := int(opts.CsumStart) + int(opts.CsumOffset)
	partial := binary.BigEndian.Uint16(pkt[at:])
	pkt[at], pkt[at+1] = 0, 0
	binary.BigEndian.PutUint16(pkt[at:], ^wgtun.Checksum(pkt[opts.CsumStart:], partial))
	if opts.CsumOffset == udpChecksumAt {
		avoidZeroChecksum(pkt[at:])
	}
}

// avoidZeroChecksum writes a UDP checksum of zero, which would mean that there
// is none (RFC 768) and is illegal in IPv6 (RFC 8200 §8.1), as all ones.
func avoidZeroChecksum(field []byte) {
	if field[0]|field[1] == 0 {
		field[0], field[1] = 0xff, 0xff
	}
}
