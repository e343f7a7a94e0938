package relay

import (
	"net/netip"
	"sync"

	"github.com/pion/stun/v3"
)

const (
	// nonceUses is how many requests a nonce is good for (transport §4.4).
	nonceUses = 10_000
	// maxNonces bounds the memory for clients that come and go. When there are
	// more, all have to ask again.
	maxNonces = 1 << 16
)

// nonces are those that clients may use. pion makes them and accepts each from
// everybody for an hour; here each client's address has one, the latest.
type nonces struct {
	mu    sync.Mutex
	valid map[netip.AddrPort]*nonce // guarded by mu
}

type nonce struct {
	value string
	uses  int
}

// issued learns the nonce of a response to a client, if there is one in it.
func (n *nonces) issued(client netip.AddrPort, response *stun.Message) {
	var value stun.Nonce
	if value.GetFrom(response) != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.valid == nil || len(n.valid) >= maxNonces {
		n.valid = make(map[netip.AddrPort]*nonce)
	}
	n.valid[client] = &nonce{value: value.String()}
}

// use reports whether a request of the client may use the nonce it does.
func (n *nonces) use(client netip.AddrPort, request *stun.Message) bool {
	var value stun.Nonce
	if value.GetFrom(request) != nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	known := n.valid[client]
	if known == nil || known.value != value.String() || known.uses >= nonceUses {
		return false
	}
	known.uses++
	return true
}

// expire makes every nonce stale.
func (n *nonces) expire() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.valid = nil
}
