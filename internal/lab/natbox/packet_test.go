package natbox

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

var (
	inside   = netip.MustParseAddrPort("192.168.7.2:5000")
	external = netip.MustParseAddr("203.0.113.7")
	alice    = netip.MustParseAddrPort("198.51.100.1:3478")
	alice2   = netip.MustParseAddrPort("198.51.100.1:3479")
	bob      = netip.MustParseAddrPort("198.51.100.2:3478")
	inside6  = netip.MustParseAddrPort("[2001:db8:7::2]:5000")
	alice6   = netip.MustParseAddrPort("[2001:db8::1]:3478")
)

// build returns a packet with valid checksums. For ICMP the kind is the type of
// the message and the identifier is the port that is not 0.
func build(protocol, kind byte, src, dst netip.AddrPort, payload string) []byte {
	var l4 []byte
	switch protocol {
	case protoUDP:
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	case protoTCP:
		l4 = make([]byte, 20)
		l4[12], l4[13] = 5<<4, 2
	default:
		l4 = make([]byte, 8)
		l4[0] = kind
		binary.BigEndian.PutUint16(l4[4:], max(src.Port(), dst.Port()))
	}
	if protocol == protoUDP || protocol == protoTCP {
		binary.BigEndian.PutUint16(l4, src.Port())
		binary.BigEndian.PutUint16(l4[2:], dst.Port())
	}
	b := append(header(protocol, src.Addr(), dst.Addr(), len(l4)+len(payload)), l4...)
	b = append(b, payload...)
	seal(b)
	return b
}

// quoting returns an ICMP error about a packet.
func quoting(kind byte, src, dst netip.Addr, about []byte) []byte {
	protocol := byte(protoICMP)
	if src.Is6() {
		protocol = protoICMPv6
	}
	b := header(protocol, src, dst, 8+len(about))
	b = append(b, kind, 4, 0, 0, 0, 0, 0, 0)
	b = append(b, about...)
	seal(b)
	return b
}

func header(protocol byte, src, dst netip.Addr, payload int) []byte {
	if src.Is4() {
		b := make([]byte, minIPv4)
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(minIPv4+payload))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		return b
	}
	b := make([]byte, lenIPv6)
	b[0], b[6], b[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(b[4:], uint16(payload))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return b
}

// seal computes the checksums of a well-formed packet anew.
func seal(b []byte) {
	v, _ := parse(b, false)
	if v.is4() {
		setSum(b[:v.l4], 10)
	}
	sum := b[v.l4+map[byte]int{protoTCP: 16, protoUDP: 6, protoICMP: 2, protoICMPv6: 2}[v.protocol]:]
	sum[0], sum[1] = 0, 0
	binary.BigEndian.PutUint16(sum, checksum(covered(b)))
}

// covered returns what the transport checksum covers, pseudo header included
// (its fields may stand in any order of 16-bit words).
func covered(b []byte) []byte {
	v, _ := parse(b, false)
	l4 := v.b[v.l4:]
	if v.protocol == protoICMP {
		return l4
	}
	pseudo := append(v.src.Addr().AsSlice(), v.dst.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(v.protocol))
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
	return append(pseudo, l4...)
}

// expectSound fails when a packet cannot be read or a checksum is wrong.
func expectSound(t *testing.T, b []byte) {
	t.Helper()
	v, verdict := parse(b, false)
	if verdict != Forward {
		t.Fatalf("packet is %v", verdict)
	}
	if v.is4() && checksum(b[:v.l4]) != 0 {
		t.Error("the header's checksum is wrong")
	}
	if v.protocol == protoUDP && v.b[v.l4+6]|v.b[v.l4+7] == 0 {
		return
	}
	if got := checksum(covered(b)); got != 0 {
		t.Errorf("the checksum of protocol %d is off by %#x", v.protocol, got)
	}
}

func ends(t *testing.T, b []byte) (src, dst netip.AddrPort) {
	t.Helper()
	v, verdict := parse(b, false)
	if verdict != Forward {
		t.Fatalf("packet is %v", verdict)
	}
	return v.src, v.dst
}
