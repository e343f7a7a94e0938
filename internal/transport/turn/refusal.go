package turn

import (
	"time"

	pion "github.com/pion/stun/v3"
)

// Error codes with a reaction of their own (transport §4.5).
const (
	codeBadRequest   = 400
	codeUnauthorized = 401
	codeUnknown      = 420
	codeMismatch     = 437
	codeStaleNonce   = 438
)

const (
	minRetry = 5 * time.Second
	// doubtGap is the least wait between transmissions (RFC 8489 §6.2.1).
	doubtGap = 500 * time.Millisecond
)

// refused handles an error response (transport §4.5).
func (c *Client) refused(tx *transaction, m *pion.Message, now time.Time) bool {
	code, ok := errorCode(m)
	if !ok || tx.kind == binding {
		return false
	}
	if code == codeUnauthorized && tx.withNonce {
		c.fail(Rejected)
		return true
	}
	if code == codeUnauthorized || code == codeStaleNonce {
		realm, _ := m.Get(pion.AttrRealm)
		nonce, err := m.Get(pion.AttrNonce)
		if string(realm) != Realm || err != nil || len(nonce) == 0 {
			return false
		}
		c.nonce = nonce
		if tx.challenges < maxChallenges {
			c.remove(tx)
			c.challenged(tx, now)
			return true
		}
	}
	c.remove(tx)
	switch code {
	case codeUnknown:
		c.fail(Unsupported)
	case codeMismatch:
		c.mismatched(tx, now)
	default:
		c.failed(tx, code, now)
	}
	return true
}

// mismatched handles 437: on ALLOCATE the relay has an allocation that we know
// nothing of, on anything else it has none (T-46).
func (c *Client) mismatched(tx *transaction, now time.Time) {
	switch tx.kind {
	case allocate, deallocate:
		next := deallocate
		if tx.kind == deallocate {
			next = allocate
		}
		if !c.mayRecover() {
			c.pause(codeMismatch)
			return
		}
		c.begin(&transaction{kind: next, to: c.server}, now)
	case refresh:
		c.reallocate(now)
	case channelBind:
		c.reallocate(now)
		c.BindChannel(tx.channel.peer, now)
	}
}

// failed handles the errors without a reaction of their own.
func (c *Client) failed(tx *transaction, code int, now time.Time) {
	switch tx.kind {
	case allocate, deallocate:
		c.pause(code)
	case refresh:
		// The allocation lives on until it expires; ask again before that.
		c.refreshAt = now.Add(max(c.expires.Sub(now)/2, minRetry))
	case channelBind:
		c.channelRefused(tx.channel, now)
	}
}

// doubt handles an answer that our credentials do not verify. Relays sign
// refusals with the password that they expect, so that this is how a wrong
// password shows; or else somebody on the way made it up. The answer is
// discarded and transmissions go on (T-47, RFC 8489 §9.2.5), but there is no
// reason to wait for the loss of what obviously arrives: they follow one
// another at the least distance, and the verdict is reached after two seconds
// instead of eight. A true answer to any of them still counts.
func (c *Client) doubt(tx *transaction, m *pion.Message, now time.Time) {
	if code, ok := errorCode(m); !ok || code != codeUnauthorized && code != codeStaleNonce {
		return
	}
	tx.doubted = true
	if soon := tx.sent.Add(doubtGap); soon.Before(tx.next) {
		tx.next = soon
	}
}

// challengedOpenly handles the refusals that a relay of RFC 8489 leaves unsigned,
// and reports whether this is one. Such a relay answers our first request, with
// credentials but without NONCE, by 400 (§9.2.4): from then on it gets a request
// without credentials first, and its challenges need no integrity (§9.2.5). Its 437
// to an ALLOCATE comes before it looks at credentials. Whoever answers in the
// relay's place, with our transaction id, can keep us from allocating by this; he
// could drop our requests as well. What a refusal of credentials leads to still
// takes a signed one, or doubt.
func (c *Client) challengedOpenly(tx *transaction, m *pion.Message, now time.Time) bool {
	code, ok := errorCode(m)
	if !ok || m.Contains(pion.AttrMessageIntegrity) {
		return false
	}
	switch {
	case code == codeBadRequest && !c.open && !tx.withNonce:
		c.open = true
		c.remove(tx)
		c.challenged(tx, now)
		return true
	case code == codeMismatch && tx.kind == allocate:
		c.open = true
		return c.refused(tx, m, now)
	case c.open && (code == codeStaleNonce || code == codeUnauthorized && !tx.withNonce):
		return c.refused(tx, m, now)
	}
	return false
}

func errorCode(m *pion.Message) (int, bool) {
	v, err := m.Get(pion.AttrErrorCode)
	if err != nil || len(v) < 4 {
		return 0, false
	}
	return int(v[2]&7)*100 + int(v[3]), true
}
