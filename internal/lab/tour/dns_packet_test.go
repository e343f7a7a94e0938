package tour

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of protocols and ICMP types in packets that tests make.
const (
	protocolICMP = 1
	protocolUDP  = 17

	icmpUnreachable = 3
	icmpEchoRequest = 8
	icmpExceeded    = 11
)

// packet4 returns an IPv4 packet.
func packet4(protocol byte, from, to netip.Addr, payload []byte) []byte {
	const header = 20
	p := make([]byte, header, header+len(payload))
	p[0], p[8], p[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(header+len(payload)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], internetChecksum(p))
	return append(p, payload...)
}

// packet6 returns an IPv6 packet.
func packet6(protocol byte, from, to netip.Addr, payload []byte) []byte {
	const header = 40
	p := make([]byte, header, header+len(payload))
	p[0], p[6], p[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], from.AsSlice())
	copy(p[24:], to.AsSlice())
	return append(p, payload...)
}

// datagram4 returns a UDP packet without checksum, which IPv4 permits.
func datagram4(from, to netip.AddrPort, payload string) []byte {
	u := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(u, from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(payload)))
	return packet4(protocolUDP, from.Addr(), to.Addr(), append(u, payload...))
}

// icmp4 returns an ICMP packet with a checksum. rest are the four bytes after it.
func icmp4(kind, code byte, rest uint32, from, to netip.Addr, payload []byte) []byte {
	m := make([]byte, 8, 8+len(payload))
	m[0], m[1] = kind, code
	binary.BigEndian.PutUint32(m[4:], rest)
	m = append(m, payload...)
	binary.BigEndian.PutUint16(m[2:], internetChecksum(m))
	return packet4(protocolICMP, from, to, m)
}

// internetChecksum returns the checksum of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
