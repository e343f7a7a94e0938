package turn

import (
	"net/netip"
	"slices"
	"time"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

// Times of requests (transport §4.2).
const (
	oneShotTimeout    = time.Second
	keepaliveInterval = 25 * time.Second
	challengeDelay    = time.Second
)

// sendGaps are the waits after each transmission: 0, 1, 2.5 and 4.75 s after the
// first, and the verdict at 8.125 s.
var sendGaps = [...]time.Duration{time.Second, 1500 * time.Millisecond, 2250 * time.Millisecond, 3375 * time.Millisecond}

// maxChallenges bounds the nonces that one request adopts, so that a relay that
// never accepts its own nonces does not get a request per round trip for ever.
const maxChallenges = 8

type kind uint8

const (
	binding kind = iota
	allocate
	refresh
	deallocate // REFRESH with lifetime 0
	channelBind
)

func (k kind) method() pion.Method {
	return [...]pion.Method{pion.MethodBinding, pion.MethodAllocate, pion.MethodRefresh, pion.MethodRefresh, pion.MethodChannelBind}[k]
}

// transaction is a request that waits for its answer. Authenticated requests
// get a new transaction id with each transmission; an answer to any of them
// counts, so that round trips above the first gap still work.
type transaction struct {
	kind       kind
	to         netip.AddrPort
	channel    *channel // for channelBind
	oneShot    bool
	ids        []stun.TransactionID
	sent       time.Time // last transmission
	next       time.Time // next transmission, or the verdict after the last
	withNonce  bool
	doubted    bool // an answer came that the credentials do not verify
	challenges int
	datagram   []byte // for binding, which repeats its bytes
}

func (c *Client) begin(tx *transaction, now time.Time) {
	c.pending = append(c.pending, tx)
	c.transmit(tx, now)
}

// retransmit sends a due transaction again or gives it up.
func (c *Client) retransmit(tx *transaction, now time.Time) {
	if n := len(tx.ids); n == 0 || n < len(sendGaps) && !tx.oneShot {
		c.transmit(tx, now)
		return
	}
	c.remove(tx)
	if tx.kind == binding && tx.to != c.server && (c.server.IsValid() || c.find(binding) != nil) {
		return // the other family answered or may still do so
	}
	if tx.doubted {
		c.fail(Rejected)
	} else {
		c.fail(Unreachable)
	}
}

func (c *Client) transmit(tx *transaction, now time.Time) {
	id := stun.ID(tx.datagram)
	if tx.datagram == nil || tx.kind != binding {
		c.cfg.Random(id[:])
		tx.datagram, tx.withNonce = c.build(tx, id), len(c.nonce) > 0
	}
	tx.ids = append(tx.ids, id)
	tx.sent, tx.next = now, now.Add(sendGaps[len(tx.ids)-1])
	if tx.oneShot {
		tx.next = now.Add(oneShotTimeout)
	}
	if tx.kind == channelBind {
		tx.channel.lastBind = now
	}
	c.transmits = append(c.transmits, Transmit{To: tx.to, Data: slices.Clone(tx.datagram)})
}

// challenged takes a new nonce into use for tx. When several requests meet the
// same stale nonce only one is repeated at once, because the relay keeps one
// live nonce per socket and each 438 may replace it; the others follow when
// that one had time to be answered.
func (c *Client) challenged(tx *transaction, now time.Time) {
	another := slices.ContainsFunc(c.pending, func(o *transaction) bool { return o.challenges > 0 })
	tx.challenges++
	tx.ids, tx.doubted = nil, false
	c.pending = append(c.pending, tx)
	if another {
		tx.next = now.Add(challengeDelay)
		return
	}
	c.transmit(tx, now)
}

func (c *Client) find(k kind) *transaction {
	for _, tx := range c.pending {
		if tx.kind == k {
			return tx
		}
	}
	return nil
}

func (c *Client) findID(id stun.TransactionID) *transaction {
	for _, tx := range c.pending {
		if slices.Contains(tx.ids, id) {
			return tx
		}
	}
	return nil
}

func (c *Client) holds(tx *transaction) bool { return slices.Contains(c.pending, tx) }

func (c *Client) remove(tx *transaction) {
	if i := slices.Index(c.pending, tx); i >= 0 {
		c.pending = slices.Delete(c.pending, i, i+1)
	}
}

// build writes a request, attributes in the order of transport §4.2 and §4.3.
// BINDING carries no credentials and nothing carries FINGERPRINT.
func (c *Client) build(tx *transaction, id stun.TransactionID) []byte {
	m := &pion.Message{Type: pion.NewType(tx.kind.method(), pion.ClassRequest), TransactionID: id}
	m.WriteHeader()
	switch tx.kind {
	case allocate, refresh:
		// A REFRESH with these is one that RFC 8656 does not know (§7.2, §18.6).
		if tx.kind == refresh && c.open {
			break
		}
		m.Add(pion.AttrRequestedTransport, []byte{protocolUDP, 0, 0, 0})
		m.Add(attrAdditionalFamily, []byte{familyIPv6, 0, 0, 0})
	case deallocate:
		m.Add(pion.AttrLifetime, []byte{0, 0, 0, 0})
	case channelBind:
		m.Add(pion.AttrXORPeerAddress, xorAddress(tx.channel.peer, id))
		m.Add(pion.AttrChannelNumber, []byte{byte(tx.channel.number >> 8), byte(tx.channel.number), 0, 0})
	}
	if c.cfg.Software != "" {
		m.Add(pion.AttrSoftware, []byte(c.cfg.Software))
	}
	if tx.kind == binding || c.open && len(c.nonce) == 0 {
		return m.Raw
	}
	m.Add(pion.AttrUsername, []byte(c.cfg.Username))
	m.Add(pion.AttrRealm, []byte(Realm))
	if len(c.nonce) > 0 {
		m.Add(pion.AttrNonce, c.nonce)
	}
	// The only error is a FINGERPRINT before the integrity, and there is none.
	_ = c.key.AddTo(m)
	return m.Raw
}
