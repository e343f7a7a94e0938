// Package packettest builds IP packets for tests and checks checksums with a
// deliberately plain implementation that shares no code with package packet.
//
// Builders trust their arguments and panic on mixed address families.
package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// IP returns a packet with the given transport bytes and TTL 64. The family is
// that of the addresses. The IPv4 header checksum is right; payload is taken as
// it is.
func IP(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	if src.Is4() != dst.Is4() {
		panic("packettest: mixed address families")
	}
	if src.Is4() {
		p := make([]byte, 20, 20+len(payload))
		p[0], p[8], p[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(p[10:], Checksum(p))
		return append(p, payload...)
	}
	p := make([]byte, 40, 40+len(payload))
	p[0], p[6], p[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return append(p, payload...)
}

// UDP returns a UDP packet with a checksum.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	t := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(t[0:], src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint16(t[4:], uint16(8+len(payload)))
	t = append(t, payload...)
	sum := pseudo(src.Addr(), dst.Addr(), protoUDP, t)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(t[6:], sum)
	return IP(src.Addr(), dst.Addr(), protoUDP, t)
}

// TCP returns a TCP packet without options, with the given flags byte.
func TCP(src, dst netip.AddrPort, flags byte, payload []byte) []byte {
	t := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(t[0:], src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	t[12], t[13] = 0x50, flags
	t = append(t, payload...)
	binary.BigEndian.PutUint16(t[16:], pseudo(src.Addr(), dst.Addr(), protoTCP, t))
	return IP(src.Addr(), dst.Addr(), protoTCP, t)
}

// ICMP returns an ICMP or ICMPv6 message, after the family of the addresses.
// rest is the second half of the eight-byte header.
func ICMP(src, dst netip.Addr, typ, code byte, rest uint32, payload []byte) []byte {
	t := make([]byte, 8, 8+len(payload))
	t[0], t[1] = typ, code
	binary.BigEndian.PutUint32(t[4:], rest)
	t = append(t, payload...)
	if src.Is4() {
		binary.BigEndian.PutUint16(t[2:], Checksum(t))
		return IP(src, dst, protoICMP, t)
	}
	binary.BigEndian.PutUint16(t[2:], pseudo(src, dst, protoICMPv6, t))
	return IP(src, dst, protoICMPv6, t)
}

// Ping returns an echo request with the given identifier.
func Ping(src, dst netip.Addr, id uint16, payload []byte) []byte {
	if src.Is4() {
		return ICMP(src, dst, 8, 0, uint32(id)<<16|1, payload)
	}
	return ICMP(src, dst, 128, 0, uint32(id)<<16|1, payload)
}

// Pong returns an echo reply with the given identifier.
func Pong(src, dst netip.Addr, id uint16, payload []byte) []byte {
	if src.Is4() {
		return ICMP(src, dst, 0, 0, uint32(id)<<16|1, payload)
	}
	return ICMP(src, dst, 129, 0, uint32(id)<<16|1, payload)
}

// Unreachable returns a port-unreachable error that quotes the given packet.
func Unreachable(src, dst netip.Addr, quote []byte) []byte {
	if src.Is4() {
		return ICMP(src, dst, 3, 3, 0, quote)
	}
	return ICMP(src, dst, 1, 4, 0, quote)
}

// Extend6 inserts IPv6 extension headers, given as raw bytes, after the fixed
// header. first is the number of the first of them; the last one must name the
// original transport protocol itself.
func Extend6(p []byte, first byte, headers []byte) []byte {
	out := append([]byte(nil), p[:40]...)
	out[6] = first
	out = append(out, headers...)
	out = append(out, p[40:]...)
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-40))
	return out
}

// Options4 inserts IPv4 options, a multiple of four bytes, and repairs the
// header.
func Options4(p, options []byte) []byte {
	out := append([]byte(nil), p[:20]...)
	out = append(out, options...)
	out = append(out, p[20:]...)
	header := 20 + len(options)
	out[0] = 0x40 | byte(header/4)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	out[10], out[11] = 0, 0
	binary.BigEndian.PutUint16(out[10:], Checksum(out[:header]))
	return out
}

// Checksum is the Internet checksum of b, two bytes at a time.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := range b {
		word := uint32(b[i])
		if i%2 == 0 {
			word <<= 8
		}
		sum += word
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return ^uint16(sum)
}

// Verify returns an error if the IPv4 header checksum of p or the checksum of
// its TCP, UDP or ICMP header, found at the offset transport, is wrong. 0x0000
// and 0xffff count as equal.
func Verify(p []byte, protocol byte, transport int) error {
	is4 := p[0]>>4 == 4
	if is4 && wrong(Checksum(p[:int(p[0]&15)*4])) {
		return errors.New("IPv4 header checksum is wrong")
	}
	t := p[transport:]
	var sum uint16
	switch protocol {
	case protoICMP:
		sum = Checksum(t)
	case protoUDP, protoTCP, protoICMPv6:
		if protocol == protoUDP && t[6] == 0 && t[7] == 0 {
			return nil
		}
		if is4 {
			sum = pseudo(netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), protocol, t)
		} else {
			sum = pseudo(netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), protocol, t)
		}
	}
	if wrong(sum) {
		return fmt.Errorf("checksum of protocol %d is wrong", protocol)
	}
	return nil
}

func wrong(sum uint16) bool { return sum != 0 && sum != 0xffff }

// pseudo is the checksum of t with its pseudo header.
func pseudo(src, dst netip.Addr, protocol byte, t []byte) uint16 {
	h := append(src.AsSlice(), dst.AsSlice()...)
	h = binary.BigEndian.AppendUint32(h, uint32(len(t)))
	h = append(h, 0, 0, 0, protocol)
	return Checksum(append(h, t...))
}
