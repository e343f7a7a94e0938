package scale

import (
	"encoding/binary"
	"net/netip"
)

const (
	ipv4Header   = 20
	echoSize     = ipv4Header + 8 + 8
	protocolICMP = 1
	echoReply    = 0
	echoRequest  = 8
)

// appendEcho appends an IPv4 packet with an ICMP echo request (RFC 792).
func appendEcho(b []byte, from, to netip.Addr, id, sequence uint16) []byte {
	begin := len(b)
	b = append(b, 0x45, 0, 0, echoSize, 0, 0, 0, 0, 64, protocolICMP, 0, 0)
	b = append(b, from.AsSlice()...)
	b = append(b, to.AsSlice()...)
	binary.BigEndian.PutUint16(b[begin+10:], checksum(b[begin:]))
	icmp := len(b)
	b = append(b, echoRequest, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, sequence)
	b = append(b, "firezone"...)
	binary.BigEndian.PutUint16(b[icmp+2:], checksum(b[icmp:]))
	return b
}

// parseEchoReply returns the identifiers of an ICMP echo reply to us. Padding
// behind it is fine.
func parseEchoReply(b []byte, from, to netip.Addr) (id, sequence uint16, ok bool) {
	if len(b) < echoSize || b[0] != 0x45 || b[9] != protocolICMP || b[ipv4Header] != echoReply ||
		netip.AddrFrom4([4]byte(b[12:16])) != from || netip.AddrFrom4([4]byte(b[16:20])) != to {
		return 0, 0, false
	}
	icmp := b[ipv4Header:echoSize]
	return binary.BigEndian.Uint16(icmp[4:]), binary.BigEndian.Uint16(icmp[6:]), checksum(icmp) == 0
}

// goodbye is the in-tunnel packet with which a client leaves (transport §5.6).
func goodbye() []byte {
	b := make([]byte, 48)
	b[0], b[5], b[6], b[40] = 0x60, 8, 255, 2
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
