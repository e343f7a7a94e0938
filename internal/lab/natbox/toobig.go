package natbox

import (
	"encoding/binary"
	"net/netip"
)

// TooBig returns the answer of a router to an IPv4 packet that is longer than
// mtu bytes and must not be fragmented (RFC 792 type 3 code 4, with the MTU as
// in RFC 1191 §4), from the router's address; nil to every other packet, ICMP
// errors among them (RFC 1122 §3.2.2). The router's kernel cannot give that
// answer for packets of which the source has been translated.
func TooBig(packet []byte, mtu int, from netip.Addr) []byte {
	const (
		dontFragment = 0x40
		quote        = minIPv4 + 8
	)
	if !from.Is4() || len(packet) <= mtu || len(packet) < quote || packet[0]>>4 != 4 || packet[6]&dontFragment == 0 {
		return nil
	}
	if v, verdict := parse(packet, false); verdict != Forward || v.icmpError != 0 {
		return nil
	}
	quoted := packet[:min(len(packet), int(packet[0]&0xf)*4+8)]
	b := make([]byte, minIPv4+lenICMP, minIPv4+lenICMP+len(quoted))
	b = append(b, quoted...)
	b[0], b[8], b[9] = 0x45, 64, protoICMP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	source := from.As4()
	copy(b[12:], source[:])
	copy(b[16:], packet[12:16])
	setSum(b[:minIPv4], 10)
	icmp := b[minIPv4:]
	icmp[0], icmp[1] = 3, 4
	binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	setSum(icmp, 2)
	return b
}
