package packet

import (
	"encoding/binary"
	"errors"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// gVisor's Internet checksum is the second opinion: packettest was written by
// the same people as this package.
func init() { verifiers = append(verifiers, verifyLikeGVisor) }

// verifyLikeGVisor sums what each checksum covers, the field included; all ones
// is right. It takes no checksum at all for right where the caller may.
func verifyLikeGVisor(p []byte, protocol byte, transport int) error {
	var addresses []byte
	if p[0]>>4 == 6 {
		addresses = p[8:40]
	} else {
		addresses = p[12:20]
		if checksum.Checksum(p[:int(p[0]&15)*4], 0) != 0xffff {
			return errors.New("IPv4 header")
		}
	}
	t := p[transport:]
	var sum uint16
	switch Protocol(protocol) {
	case UDP:
		if t[6]|t[7] == 0 {
			return nil
		}
		fallthrough
	case TCP, ICMPv6:
		rest := []byte{0, protocol, 0, 0}
		binary.BigEndian.PutUint16(rest[2:], uint16(len(t)))
		sum = checksum.Checksum(rest, checksum.Checksum(addresses, 0))
	case ICMP:
	default:
		return nil
	}
	if checksum.Checksum(t, sum) != 0xffff {
		return errors.New("transport")
	}
	return nil
}
