package natbox

import (
	"encoding/binary"
	"net/netip"
)

// end is one of the two ends of a packet.
type end uint8

const (
	source end = iota
	destination
)

// rewrite4 gives the packet another IPv4 endpoint at one end and brings the
// checksums along. The bytes of a quoted packet may stop short of its checksum.
func (v *view) rewrite4(e end, to netip.AddrPort) {
	address := v.b[12+4*int(e):][:4]
	var fresh [6]byte
	a4 := to.Addr().As4()
	copy(fresh[:], a4[:])
	binary.BigEndian.PutUint16(fresh[4:], to.Port())

	port := v.port(e)
	var old [6]byte
	copy(old[:], address)
	copy(old[4:], port)

	adjust(v.b[10:12], old[:4], fresh[:4])
	switch sum := v.checksum(); {
	case sum == nil:
	case v.protocol == protoICMP: // no pseudo header (RFC 792)
		adjust(sum, old[4:], fresh[4:])
	case v.protocol == protoUDP && sum[0]|sum[1] == 0: // none was computed (RFC 768)
	default:
		adjust(sum, old[:], fresh[:])
		if v.protocol == protoUDP && sum[0]|sum[1] == 0 {
			sum[0], sum[1] = 0xff, 0xff
		}
	}
	copy(address, fresh[:4])
	copy(port, fresh[4:])
}

// readdress gives a packet that carries no port another IPv4 address at one end.
func (v *view) readdress(e end, to netip.Addr) {
	a4 := to.As4()
	address := v.b[12+4*int(e):][:4]
	adjust(v.b[10:12], address, a4[:])
	copy(address, a4[:])
}

// port returns the bytes of the port, or of the identifier, at one end.
func (v *view) port(e end) []byte {
	t := v.b[v.l4:]
	if v.protocol == protoICMP {
		return t[4:6]
	}
	return t[2*int(e):][:2]
}

// checksum returns the bytes of the transport checksum, nil where the packet
// ends before.
func (v *view) checksum() []byte {
	offset := v.l4
	switch v.protocol {
	case protoTCP:
		offset += 16
	case protoUDP:
		offset += 6
	default:
		offset += 2
	}
	if offset+2 > len(v.b) {
		return nil
	}
	return v.b[offset : offset+2]
}

// adjust brings a checksum along with a change of what it covers (RFC 1624 §3,
// equation 3). The lengths are equal and even.
func adjust(sum, old, fresh []byte) {
	s := uint32(^binary.BigEndian.Uint16(sum))
	for i := 0; i < len(old); i += 2 {
		s += uint32(^binary.BigEndian.Uint16(old[i:])) + uint32(binary.BigEndian.Uint16(fresh[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}

// checksum returns the Internet checksum of b (RFC 1071).
func checksum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// setSum computes a checksum over all of b, in which it lies at offset.
func setSum(b []byte, offset int) {
	b[offset], b[offset+1] = 0, 0
	binary.BigEndian.PutUint16(b[offset:], checksum(b))
}
