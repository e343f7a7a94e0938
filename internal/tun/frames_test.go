package tun

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// flow describes frames that the kernel could hand over, and independently of
// the code under test the packets they stand for.
type flow struct {
	src, dst netip.AddrPort
	tcp      bool
	options  int    // bytes of TCP options, a multiple of four
	id       uint16 // IPv4 identification of the first segment
	seq      uint32
	flags    byte // of the last segment
}

const (
	flagFIN = 1
	flagPSH = 8
	flagACK = 16
)

func (f flow) headers() (network, transport int) {
	network, transport = 20, 8
	if f.src.Addr().Is6() {
		network = 40
	}
	if f.tcp {
		transport = 20 + f.options
	}
	return network, transport
}

// packet returns the n-th segment with the given payload. partial leaves the
// pseudo-header sum in the checksum field.
func (f flow) packet(n int, payload []byte, seqOffset int, flags byte, partial bool) []byte {
	network, transport := f.headers()
	p := make([]byte, network+transport+len(payload))
	pseudo := append(f.src.Addr().AsSlice(), f.dst.Addr().AsSlice()...)
	proto := byte(unix.IPPROTO_UDP)
	if f.tcp {
		proto = unix.IPPROTO_TCP
	}
	if network == 20 {
		p[0], p[8], p[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], f.id+uint16(n))
		copy(p[12:], pseudo)
		binary.BigEndian.PutUint16(p[10:], ^onesSum(p[:20]))
	} else {
		p[0], p[6], p[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		copy(p[8:], pseudo)
	}

	t, csumAt := p[network:], udpChecksumAt
	binary.BigEndian.PutUint16(t, f.src.Port())
	binary.BigEndian.PutUint16(t[2:], f.dst.Port())
	if f.tcp {
		csumAt = tcpChecksumAt
		binary.BigEndian.PutUint32(t[4:], f.seq+uint32(seqOffset))
		t[12], t[13], t[14] = byte(transport/4)<<4, flags, 0xff
		for i := range f.options {
			t[20+i] = 1
		}
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	}
	copy(t[transport:], payload)

	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(t)))
	sum := onesSum(pseudo)
	if !partial {
		sum = ^onesSum(append(pseudo, t...))
		if sum == 0 && !f.tcp {
			sum = 0xffff
		}
	}
	binary.BigEndian.PutUint16(t[csumAt:], sum)
	return p
}

// super returns a frame for payload in segments of gsoSize, zero for a plain
// packet, and the packets that a reader has to make of it.
func (f flow) super(payload []byte, gsoSize int) (frame []byte, want [][]byte) {
	network, transport := f.headers()
	pkt := f.packet(0, payload, 0, f.flags, true)
	var gso byte
	csumAt := udpChecksumAt
	switch {
	case f.tcp && network == 20:
		gso = unix.VIRTIO_NET_HDR_GSO_TCPV4
	case f.tcp:
		gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
	default:
		gso = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	}
	if f.tcp {
		csumAt = tcpChecksumAt
	}
	if gsoSize == 0 {
		gso = unix.VIRTIO_NET_HDR_GSO_NONE
		want = append(want, f.packet(0, payload, 0, f.flags, false))
	}
	for n := 0; gsoSize > 0 && n*gsoSize < len(payload); n++ {
		from, to := n*gsoSize, min((n+1)*gsoSize, len(payload))
		flags := f.flags
		if to < len(payload) {
			flags &^= flagFIN | flagPSH
		}
		want = append(want, f.packet(n, payload[from:to], from, flags, false))
	}
	// A header length that covers the first segment, as for forwarded packets.
	return vnetFrame(unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso, network+transport+gsoSize, gsoSize, network, csumAt, pkt), want
}

func vnetFrame(flags, gso byte, hdrLen, gsoSize, csumStart, csumOffset int, pkt []byte) []byte {
	frame := []byte{flags, gso}
	for _, v := range []int{hdrLen, gsoSize, csumStart, csumOffset} {
		frame = binary.NativeEndian.AppendUint16(frame, uint16(v))
	}
	return append(frame, pkt...)
}
