package turn

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

// Error codes with a reaction of their own (transport §4.5).
const (
	codeUnauthorized = 401
	codeUnknown      = 420
	codeMismatch     = 437
	codeStaleNonce   = 438
)

const (
	defaultLifetime = 600 * time.Second
	maxLifetime     = 3600 * time.Second
	minRetry        = 5 * time.Second
	maxRecoveries   = 5 // mismatches in a row before the relay is left alone
)

// HandleDatagram takes one datagram that arrived from an address of the relay.
// local and localPort are our address that it arrived on. b is not kept. It
// reports whether the datagram was an answer that the client waited for;
// everything else is ignored: strangers, unknown transactions, and responses
// other than BINDING without valid integrity (T-47).
func (c *Client) HandleDatagram(from netip.AddrPort, local netip.Addr, localPort uint16, b []byte, now time.Time) bool {
	h, err := stun.Check(b)
	if err != nil || h.Class == stun.Request {
		return false
	}
	tx := c.findID(h.TransactionID)
	if tx == nil || unmap(from) != tx.to || uint16(h.Method) != uint16(tx.kind.method()) {
		return false
	}
	if tx.kind != binding && !c.integrity.Verify(b) {
		return false
	}
	m := &pion.Message{Raw: slices.Clone(b)}
	if m.Decode() != nil {
		return false
	}
	if tx.kind != binding {
		m.Attributes = covered(m.Attributes)
	}
	if h.Class == stun.Success {
		return c.succeeded(tx, m, netip.AddrPortFrom(local.Unmap(), localPort), now)
	}
	return c.refused(tx, m, now)
}

func (c *Client) succeeded(tx *transaction, m *pion.Message, local netip.AddrPort, now time.Time) bool {
	switch tx.kind {
	case binding:
		mapped, ok := address(m, pion.AttrXORMappedAddress)
		if !ok {
			return false
		}
		c.remove(tx)
		c.answered(tx.to, mapped, local, now)
	case allocate:
		c.remove(tx)
		c.allocated(m, now)
	case refresh:
		c.remove(tx)
		c.recoveries = 0
		c.extend(lifetime(m), now)
	case deallocate:
		c.remove(tx)
		c.begin(&transaction{kind: allocate, to: c.server}, now)
	case channelBind:
		c.remove(tx)
		c.recoveries = 0
		c.channelBound(tx.channel, now)
	}
	return true
}

// answered handles a BINDING answer: candidates, and the choice of the family.
func (c *Client) answered(server, mapped, local netip.AddrPort, now time.Time) {
	family := 0
	if server.Addr().Is6() {
		family = 1
	}
	moved := c.hosts[family] != local
	if moved {
		c.hosts[family] = local
		c.emit(HostCandidate{Addr: local})
	}
	if moved || c.reflexive[family] != mapped {
		c.reflexive[family] = mapped
		c.emit(ServerReflexive{Addr: mapped, Base: local})
	}
	if c.state == StateProbing {
		c.server = server
		c.emit(ServerSelected{Addr: server})
		c.state = StateAllocating
		c.begin(&transaction{kind: allocate, to: server}, now)
	}
}

func (c *Client) allocated(m *pion.Message, now time.Time) {
	for _, a := range m.Attributes {
		if a.Type != pion.AttrXORRelayedAddress {
			continue
		}
		switch relayed, ok := parseXORAddress(a.Value, m.TransactionID); {
		case !ok:
		case relayed.Addr().Is4():
			c.v4 = relayed
		default:
			c.v6 = relayed
		}
	}
	life := lifetime(m)
	if !c.v4.IsValid() && !c.v6.IsValid() || life <= 0 {
		c.pause(0)
		return
	}
	c.state = StateAllocated
	c.keepaliveAt = now.Add(keepaliveInterval)
	c.extend(life, now)
	c.emit(Allocated{V4: c.v4, V6: c.v6, Lifetime: life})
	waiting := c.waiting
	c.waiting = nil
	for _, peer := range waiting {
		c.bind(peer, now)
	}
}

func (c *Client) extend(life time.Duration, now time.Time) {
	if life <= 0 {
		// The relay says that the allocation has ended.
		c.reallocate(now)
		return
	}
	c.expires, c.refreshAt = now.Add(life), now.Add(life/2)
}

// refused handles an error response (transport §4.5).
func (c *Client) refused(tx *transaction, m *pion.Message, now time.Time) bool {
	code, ok := errorCode(m)
	if !ok || tx.kind == binding {
		return false
	}
	if code == codeUnauthorized || code == codeStaleNonce {
		realm, _ := m.Get(pion.AttrRealm)
		nonce, err := m.Get(pion.AttrNonce)
		if string(realm) != Realm || err != nil || len(nonce) == 0 {
			return false
		}
		c.remove(tx)
		if code == codeUnauthorized && tx.withNonce {
			c.fail(Rejected)
			return true
		}
		c.nonce = nonce
		if tx.challenges < maxChallenges {
			c.challenged(tx, now)
			return true
		}
	}
	c.remove(tx)
	if code == codeUnknown {
		c.fail(Unsupported)
		return true
	}
	switch tx.kind {
	case allocate:
		if code == codeMismatch && c.mayRecover() {
			c.begin(&transaction{kind: deallocate, to: c.server}, now)
			return true
		}
		c.pause(code)
	case deallocate:
		if code == codeMismatch && c.mayRecover() {
			c.begin(&transaction{kind: allocate, to: c.server}, now)
			return true
		}
		c.pause(code)
	case refresh:
		if code == codeMismatch {
			c.reallocate(now)
			return true
		}
		// The allocation lives on until it expires; ask again before that.
		c.refreshAt = now.Add(max(c.expires.Sub(now)/2, minRetry))
	case channelBind:
		if code == codeMismatch {
			c.reallocate(now)
			c.BindChannel(tx.channel.peer, now)
			return true
		}
		c.channelRefused(tx.channel, now)
	}
	return true
}

// probe asks every address of the relay for a BINDING answer.
func (c *Client) probe(now time.Time) {
	c.state, c.server, c.pending = StateProbing, netip.AddrPort{}, nil
	for _, to := range []netip.AddrPort{unmap(c.cfg.V4), unmap(c.cfg.V6)} {
		if to.IsValid() {
			c.begin(&transaction{kind: binding, to: to}, now)
		}
	}
	if len(c.pending) == 0 {
		c.fail(Unreachable)
	}
}

// reallocate gives up an allocation that the relay does not know. Peers whose
// bind is under way wait for the new one.
func (c *Client) reallocate(now time.Time) {
	binds := slices.Clone(c.pending)
	c.lose(LossMismatch)
	if !c.mayRecover() {
		c.pause(codeMismatch)
		return
	}
	c.state = StateAllocating
	for _, tx := range binds {
		if tx.kind == channelBind {
			c.enqueue(tx.channel.peer)
		}
	}
	c.begin(&transaction{kind: allocate, to: c.server}, now)
}

func (c *Client) mayRecover() bool {
	c.recoveries++
	return c.recoveries <= maxRecoveries
}

// lose clears everything that belongs to the allocation.
func (c *Client) lose(reason LossReason) {
	if c.state == StateAllocated {
		c.emit(AllocationLost{Reason: reason, V4: c.v4, V6: c.v6})
	}
	c.v4, c.v6 = netip.AddrPort{}, netip.AddrPort{}
	c.expires, c.refreshAt, c.keepaliveAt = time.Time{}, time.Time{}, time.Time{}
	c.channels.clear()
	c.pending = slices.DeleteFunc(c.pending, func(tx *transaction) bool { return tx.kind != binding })
}

func (c *Client) pause(code int) {
	c.state, c.recoveries = StateSuspended, 0
	c.waiting, c.pending = nil, nil
	c.emit(Suspended{Code: code})
}

func (c *Client) fail(reason FailReason) {
	c.lose(LossFailed)
	c.state, c.server = StateFailed, netip.AddrPort{}
	c.waiting, c.pending = nil, nil
	c.emit(Failed{Reason: reason})
}

// covered returns the attributes that MESSAGE-INTEGRITY authenticates.
func covered(all pion.Attributes) pion.Attributes {
	for i, a := range all {
		if a.Type == pion.AttrMessageIntegrity {
			return all[:i]
		}
	}
	return nil
}

func address(m *pion.Message, typ pion.AttrType) (netip.AddrPort, bool) {
	v, err := m.Get(typ)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return parseXORAddress(v, m.TransactionID)
}

func errorCode(m *pion.Message) (int, bool) {
	v, err := m.Get(pion.AttrErrorCode)
	if err != nil || len(v) < 4 {
		return 0, false
	}
	return int(v[2]&7)*100 + int(v[3]), true
}

func lifetime(m *pion.Message) time.Duration {
	v, err := m.Get(pion.AttrLifetime)
	if err != nil || len(v) != 4 {
		return defaultLifetime
	}
	return min(time.Duration(binary.BigEndian.Uint32(v))*time.Second, maxLifetime)
}
