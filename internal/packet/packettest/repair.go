package packettest

import (
	"encoding/binary"
	"net/netip"
)

// Repair makes the length and the checksums of p right, as far as its headers can
// be read, and no fragment of it. It is for packets that were damaged at random and have
// to get past the first checks. A UDP checksum of 0 over IPv4 stays.
func Repair(p []byte) {
	if len(p) < 20 || len(p) > 0xffff {
		return
	}
	switch p[0] >> 4 {
	case 4:
		header := int(p[0]&15) * 4
		if header < 20 || header > len(p) {
			return
		}
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[6], p[7] = p[6]&0x40, 0
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], Checksum(p[:header]))
		repairTransport(netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[9], p[header:])
	case 6:
		if len(p) < 40 {
			return
		}
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		protocol, at := p[6], 40
		for {
			switch protocol {
			case 0, 43, 44, 60, 135, 139, 140, 253, 254: // extension headers
			default:
				repairTransport(netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), protocol, p[at:])
				return
			}
			if len(p)-at < 8 {
				return
			}
			size := 8 + 8*int(p[at+1])
			if protocol == 44 { // a fragment header
				size, p[at+2], p[at+3] = 8, 0, 0
			}
			if size > len(p)-at {
				return
			}
			protocol, at = p[at], at+size
		}
	}
}

func repairTransport(src, dst netip.Addr, protocol byte, t []byte) {
	var at int // of the checksum
	switch {
	case protocol == protoTCP && len(t) >= 20:
		at = 16
	case protocol == protoUDP && len(t) >= 8:
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		if src.Is4() && t[6]|t[7] == 0 {
			return
		}
		at = 6
	case (protocol == protoICMP || protocol == protoICMPv6) && len(t) >= 8:
		at = 2
	default:
		return
	}
	t[at], t[at+1] = 0, 0
	sum := Checksum(t)
	if protocol != protoICMP {
		sum = pseudo(src, dst, protocol, t)
	}
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], sum)
}
