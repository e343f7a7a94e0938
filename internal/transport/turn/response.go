package turn

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

const (
	defaultLifetime = 600 * time.Second
	maxLifetime     = 3600 * time.Second
	maxRecoveries   = 5 // mismatches in a row before the relay is left alone
)

// HandleDatagram takes one datagram that arrived from an address of the relay.
// local and localPort are our address that it arrived on. b is not kept. It
// reports whether the datagram was an answer that the client waited for;
// everything else is ignored: strangers, unknown transactions, and responses
// other than BINDING without valid integrity (T-47). Of the latter those that
// are about credentials shorten the wait, see doubt.
func (c *Client) HandleDatagram(from netip.AddrPort, local netip.Addr, localPort uint16, b []byte, now time.Time) bool {
	h, err := stun.Check(b)
	if err != nil || h.Class == stun.Request {
		return false
	}
	tx := c.findID(h.TransactionID)
	if tx == nil || unmap(from) != tx.to || uint16(h.Method) != uint16(tx.kind.method()) {
		return false
	}
	defer c.sendBinds(now) // whatever this is an answer to, there may be room
	m := &pion.Message{Raw: slices.Clone(b)}
	if m.Decode() != nil {
		return false
	}
	if tx.kind != binding {
		if !c.integrity.Verify(b) {
			if c.challengedOpenly(tx, m, now) {
				return true
			}
			c.doubt(tx, m, now)
			return false
		}
		m.Attributes = covered(m.Attributes)
	}
	if h.Class == stun.Error {
		return c.refused(tx, m, now)
	}
	return c.succeeded(tx, m, netip.AddrPortFrom(local.Unmap(), localPort), now)
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
		life := lifetime(m)
		if life <= 0 {
			c.reallocate(now) // the relay says that the allocation has ended
			break
		}
		c.recoveries = 0
		c.extend(life, now)
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
// When our side of the path to the relay changes under an allocation, the relay
// very likely files it under the old one: a REFRESH finds out at once instead
// of at half the lifetime.
func (c *Client) answered(server, mapped, local netip.AddrPort, now time.Time) {
	family := 0
	if server.Addr().Is6() {
		family = 1
	}
	if c.report(family, mapped, local) && c.state == StateAllocated && server == c.server && c.find(refresh) == nil {
		c.begin(&transaction{kind: refresh, to: server}, now)
	}
	if c.state == StateProbing {
		c.server = server
		c.emit(ServerSelected{Addr: server})
		c.state = StateAllocating
		c.begin(&transaction{kind: allocate, to: server}, now)
	}
}

// report emits the candidates of a BINDING answer if they are news, and says
// whether they are. Addresses that are never signalled are left out (transport
// §2.3).
func (c *Client) report(family int, mapped, local netip.AddrPort) (changed bool) {
	moved := c.hosts[family] != local
	if !moved && c.reflexive[family] == mapped {
		return false
	}
	c.hosts[family], c.reflexive[family] = local, mapped
	if moved && candidate(local) {
		c.emit(HostCandidate{Addr: local})
	}
	if candidate(mapped) {
		c.emit(ServerReflexive{Addr: mapped, Base: local})
	}
	return true
}

func (c *Client) allocated(m *pion.Message, now time.Time) {
	var v4, v6 netip.AddrPort
	for _, a := range m.Attributes {
		if a.Type != pion.AttrXORRelayedAddress {
			continue
		}
		switch relayed, ok := parseXORAddress(a.Value, m.TransactionID); {
		case !ok || !candidate(relayed):
		case relayed.Addr().Is4() && !v4.IsValid():
			v4 = relayed
		case relayed.Addr().Is6() && !v6.IsValid():
			v6 = relayed
		}
	}
	life := lifetime(m)
	if !v4.IsValid() && !v6.IsValid() || life <= 0 {
		c.pause(0)
		return
	}
	c.state, c.v4, c.v6 = StateAllocated, v4, v6
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
	c.expires, c.refreshAt = now.Add(life), now.Add(life/2)
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
	var peers []netip.AddrPort
	for _, tx := range c.pending {
		if tx.kind == channelBind {
			peers = append(peers, tx.channel.peer)
		}
	}
	for _, ch := range c.unsent {
		peers = append(peers, ch.peer)
	}
	c.lose(LossMismatch)
	if !c.mayRecover() {
		c.pause(codeMismatch)
		return
	}
	c.state = StateAllocating
	for _, peer := range peers {
		c.enqueue(peer)
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
	c.unsent = nil
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

func lifetime(m *pion.Message) time.Duration {
	v, err := m.Get(pion.AttrLifetime)
	if err != nil || len(v) != 4 {
		return defaultLifetime
	}
	return min(time.Duration(binary.BigEndian.Uint32(v))*time.Second, maxLifetime)
}
