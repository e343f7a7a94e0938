package ice

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport/stun"
)

// Bounds of one agent.
const (
	maxRemotes      = 128  // addresses that requests came from
	maxBlocked      = 128  // addresses that were invalidated
	maxPairs        = 1024 // pairs with a rate limit
	maxTransactions = 512  // outstanding requests
)

// checkRate is how many checks go out per pair and second. The library answers
// every inbound check with one of its own; against a peer with the same habit
// that would be a storm at one per round trip (dependencies D.1). Fast enough
// for its check interval of 200 ms four times over.
const checkRate = 20

// view is the part of the Mux that one agent sees. It implements the UDPMux of
// the ICE library with exactly the agent's local addresses.
type view struct {
	mux    *Mux
	name   string // USERNAME of inbound requests: ours:theirs
	onFull func() // called when remotes is full; must not block

	// settled is set while the library has a selected pair.
	settled atomic.Bool

	mu        sync.Mutex
	requests  *stun.Integrity // keyed with our password
	responses *stun.Integrity // keyed with the client's password
	locals    []netip.AddrPort
	conns     map[netip.AddrPort]*conn
	remotes   map[netip.AddrPort]struct{}
	blocked   map[netip.AddrPort]struct{}
	buckets   map[pair]bucket
	sent      []sentID // oldest first
	closed    bool
}

type pair struct{ local, remote netip.AddrPort }

// bucket limits the checks on one pair.
type bucket struct {
	tokens   float64
	at       time.Time // of the last check
	prompted bool      // the client has checked since
}

type sentID struct {
	id stun.TransactionID
	at time.Time
}

var errClosed = errors.New("ice: agent is closed")

func newView(m *Mux, name, localPwd, remotePwd string, locals []netip.AddrPort, onFull func()) *view {
	v := &view{
		mux: m, name: name, onFull: onFull,
		requests: stun.NewIntegrity([]byte(localPwd)), responses: stun.NewIntegrity([]byte(remotePwd)),
		conns: make(map[netip.AddrPort]*conn), remotes: make(map[netip.AddrPort]struct{}),
		blocked: make(map[netip.AddrPort]struct{}), buckets: make(map[pair]bucket),
		locals: locals,
	}
	m.register(v)
	return v
}

// GetListenAddresses returns the agent's local addresses; the library makes a
// host candidate of each, also of relayed ones.
func (v *view) GetListenAddresses() []net.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []net.Addr
	for _, a := range v.locals {
		all = append(all, net.UDPAddrFromAddrPort(a))
	}
	return all
}

// GetConn returns the connection of one local address.
func (v *view) GetConn(_ string, addr net.Addr) (net.PacketConn, error) {
	local, ok := addrPort(addr)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || !ok || !slices.Contains(v.locals, local) {
		return nil, errClosed
	}
	c := v.conns[local]
	if c == nil {
		c = newConn(v, local)
		v.conns[local] = c
	}
	return c, nil
}

// RemoveConnByUfrag closes all connections. The view stays, so that the agent
// can gather again after a restart.
func (v *view) RemoveConnByUfrag(string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for local, c := range v.conns {
		delete(v.conns, local)
		c.shut()
	}
	clear(v.remotes)
	clear(v.buckets)
}

// Close ends the view and its part in the Mux.
func (v *view) Close() error {
	v.mux.unregister(v)
	v.RemoveConnByUfrag("")
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	v.expire(time.Time{}, 0)
	return nil
}

// setLocals replaces the local addresses; they take effect when the agent
// gathers again.
func (v *view) setLocals(locals []netip.AddrPort) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.locals = locals
}

// block makes the view deaf for requests of a removed candidate's address
// (transport §2.7). When the list is full it starts over.
func (v *view) block(remote netip.AddrPort) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.blocked) == maxBlocked {
		clear(v.blocked)
	}
	v.blocked[remote] = struct{}{}
}

func (v *view) unblock(remote netip.AddrPort) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.blocked, remote)
}

// request takes an inbound Binding request with our USERNAME.
func (v *view) request(b []byte, local, remote netip.AddrPort) drop.Reason {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.conns[local]
	if c == nil || !v.requests.Verify(b) {
		return drop.STUNUnknown
	}
	if _, ok := v.blocked[remote]; ok {
		return drop.STUNUnknown
	}
	if _, ok := v.remotes[remote]; !ok {
		// The library keeps every address for ever; a restart clears them.
		if len(v.remotes) == maxRemotes {
			v.onFull()
			return drop.STUNOverflow
		}
		v.remotes[remote] = struct{}{}
	}
	p := pair{local, remote}
	if k, ok := v.buckets[p]; ok {
		k.prompted = true
		v.buckets[p] = k
	}
	return c.push(b, remote)
}

// response takes the answer to a request that c sent. Error responses end
// here, because the library has no use for them.
func (v *view) response(b []byte, h stun.Header, c *conn, remote netip.AddrPort) drop.Reason {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.responses.Verify(b) {
		return drop.STUNUnknown
	}
	v.mux.forget(h.TransactionID)
	if c == nil || h.Class == stun.Error {
		return drop.None
	}
	return c.push(b, remote)
}

// write sends a message of the agent, unless it is none that this protocol knows:
// a Binding indication would crash some clients (T-14). c is the connection that
// wants the answer.
func (v *view) write(b []byte, local, remote netip.AddrPort, c *conn) {
	h, err := stun.Check(b)
	if err != nil {
		v.mux.drops.Add(drop.STUNMalformed, 1)
		return
	}
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	if h.Class == stun.Request {
		p := pair{local, remote}
		if c != nil && v.settled.Load() && !v.due(p, now) {
			return
		}
		if !v.admit(p, now) {
			v.mux.drops.Add(drop.STUNOverflow, 1)
			return
		}
		v.expire(now, maxTransactions-1)
		v.sent = append(v.sent, sentID{h.TransactionID, now})
		v.mux.remember(h.TransactionID, origin{v, c})
	}
	v.mux.enqueue(b, local, remote)
}

// due reports whether the library has reason to check a pair: the client did, or
// not for a while. Once a client has been silent for keepaliveInterval the library
// would check every two seconds, until it gives up ten minutes later; a phone that
// is asleep must not be woken by that (T-35).
func (v *view) due(p pair, now time.Time) bool {
	k, ok := v.buckets[p]
	return !ok || k.prompted || now.Sub(k.at) >= keepaliveInterval
}

// admit takes a token from the pair's bucket.
func (v *view) admit(p pair, now time.Time) bool {
	k, ok := v.buckets[p]
	if !ok {
		if len(v.buckets) >= maxPairs {
			// A bucket that was left alone for a second is full again.
			for other, o := range v.buckets {
				if now.Sub(o.at) > time.Second {
					delete(v.buckets, other)
				}
			}
			if len(v.buckets) >= maxPairs {
				return false
			}
		}
		k = bucket{tokens: checkRate, at: now}
	}
	k.tokens = min(checkRate, k.tokens+checkRate*now.Sub(k.at).Seconds())
	k.at, k.prompted = now, false
	if ok = k.tokens >= 1; ok {
		k.tokens--
	}
	v.buckets[p] = k
	return ok
}

// expire forgets transactions that are too old, and the oldest ones beyond keep.
func (v *view) expire(now time.Time, keep int) {
	n := 0
	var ids []stun.TransactionID
	for n < len(v.sent) && (len(v.sent)-n > keep || now.Sub(v.sent[n].at) > transactionMemory) {
		ids = append(ids, v.sent[n].id)
		n++
	}
	v.sent = slices.Delete(v.sent, 0, n)
	v.mux.forget(ids...)
}
