package tunnel

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"firezone-gateway/internal/policy"
)

// The tunnel ranges of both families leave 21 bits to the host.
const (
	hostBits  = 21
	blockBits = 6
)

// addresses finds clients by tunnel address: an array of blocks for each family,
// so that a look-up costs two cache lines however many clients there are. Readers
// take no lock; writers are serialised by the owner.
type addresses struct {
	v4, v6 [1 << (hostBits - blockBits)]atomic.Pointer[block]
}

// block holds neighbouring addresses. It exists while one of them is in use.
type block struct {
	clients [1 << blockBits]atomic.Pointer[Client]
	used    int // for writers
}

// get returns the client with address a, nil if there is none.
func (t *addresses) get(a netip.Addr) *Client {
	at, host := t.find(a)
	if at == nil {
		return nil
	}
	b := at.Load()
	if b == nil {
		return nil
	}
	return b.clients[host].Load()
}

// put stores c under a tunnel address that is free.
func (t *addresses) put(a netip.Addr, c *Client) {
	at, host := t.find(a)
	b := at.Load()
	if b == nil {
		b = new(block)
		at.Store(b)
	}
	b.used++
	b.clients[host].Store(c)
}

// delete frees a tunnel address that is in use.
func (t *addresses) delete(a netip.Addr) {
	at, host := t.find(a)
	b := at.Load()
	b.clients[host].Store(nil)
	if b.used--; b.used == 0 {
		at.Store(nil)
	}
}

// find returns where a belongs, nil if it is no tunnel address.
func (t *addresses) find(a netip.Addr) (at *atomic.Pointer[block], host uint32) {
	if !policy.IsTunnel(a) {
		return nil, 0
	}
	blocks := &t.v4
	if a.Is4() {
		b := a.As4()
		host = binary.BigEndian.Uint32(b[:])
	} else {
		b := a.As16()
		blocks, host = &t.v6, binary.BigEndian.Uint32(b[12:])
	}
	host &= 1<<hostBits - 1
	return &blocks[host>>blockBits], host & (1<<blockBits - 1)
}
