package turn

import (
	"encoding/binary"
	"net/netip"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

// Values that the STUN library has no names for (RFC 8656 §18).
const (
	attrAdditionalFamily = pion.AttrType(0x8000)
	protocolUDP          = 17
	familyIPv4           = 1
	familyIPv6           = 2
)

const magicCookie = 0x2112A442

// xorAddress encodes an address as in RFC 8489 §14.2.
func xorAddress(a netip.AddrPort, id stun.TransactionID) []byte {
	family, ip := byte(familyIPv6), a.Addr().AsSlice()
	if a.Addr().Is4() {
		family = familyIPv4
	}
	b := binary.BigEndian.AppendUint16([]byte{0, family}, a.Port()^magicCookie>>16)
	mask := addressMask(id)
	for i := range ip {
		b = append(b, ip[i]^mask[i])
	}
	return b
}

// parseXORAddress decodes what xorAddress encodes. It reports false for wrong
// lengths and families, and for addresses nobody can send to.
func parseXORAddress(v []byte, id stun.TransactionID) (netip.AddrPort, bool) {
	if len(v) != 8 && len(v) != 20 || len(v) == 8 && v[1] != familyIPv4 || len(v) == 20 && v[1] != familyIPv6 {
		return netip.AddrPort{}, false
	}
	mask := addressMask(id)
	var raw [16]byte
	for i, x := range v[4:] {
		raw[i] = x ^ mask[i]
	}
	ip := netip.AddrFrom16(raw)
	if v[1] == familyIPv4 {
		ip = netip.AddrFrom4([4]byte(raw[:4]))
	}
	a := netip.AddrPortFrom(ip, binary.BigEndian.Uint16(v[2:])^magicCookie>>16)
	return a, sendable(a)
}

// sendable reports whether a relay can send to a, or be sent to at a.
func sendable(a netip.AddrPort) bool {
	ip := a.Addr()
	return ip.IsValid() && ip.Zone() == "" && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.Is4In6()
}

// candidate reports whether clients are told of a: what cannot be sent to is
// left out, and so are IPv4 link-local and broadcast addresses (transport §2.3).
func candidate(a netip.AddrPort) bool {
	ip := a.Addr()
	return sendable(a) && (!ip.Is4() || !ip.IsLinkLocalUnicast() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}

func addressMask(id stun.TransactionID) [16]byte {
	var mask [16]byte
	binary.BigEndian.PutUint32(mask[:], magicCookie)
	copy(mask[4:], id[:])
	return mask
}
