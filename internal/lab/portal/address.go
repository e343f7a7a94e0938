package portal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
)

// addressBits is the number of host bits of both tunnel ranges,
// 100.64.0.0/11 and fd00:2021:1111::/107 (portal-protocol §6.5).
const addressBits = 21

var errAddressesExhausted = errors.New("no free tunnel address")

// addressPool hands out pairs of tunnel addresses. Both addresses of a pair
// have the same host part. The zero value is ready to use.
type addressPool struct {
	used map[uint32]bool
}

// assign returns a free pair that depends on the identity alone as long as no
// two identities collide.
func (p *addressPool) assign(identity string) (v4, v6 netip.Addr, err error) {
	const size = 1 << addressBits
	if p.used == nil {
		p.used = make(map[uint32]bool)
	}
	// The first host of a range is its network and the last its broadcast address.
	if len(p.used) >= size-2 {
		return v4, v6, errAddressesExhausted
	}
	sum := sha256.Sum256([]byte(identity))
	host := binary.BigEndian.Uint32(sum[:]) % size
	for host == 0 || host == size-1 || p.used[host] {
		host = (host + 1) % size
	}
	p.used[host] = true

	a := [4]byte{100, 64}
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|host)
	b := [16]byte{0xfd, 0x00, 0x20, 0x21, 0x11, 0x11}
	binary.BigEndian.PutUint32(b[12:], host)
	return netip.AddrFrom4(a), netip.AddrFrom16(b), nil
}
