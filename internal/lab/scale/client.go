package scale

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/stun/v3"
)

// Timers of a client.
const (
	idleAfter       = 20 * time.Second // without inner packets (transport §2.9)
	handshakeRetry  = 5 * time.Second  // (transport §5.3)
	handshakeLimit  = 20 * time.Second
	proactiveLimit  = 20 * time.Second // between handshakes for a better pair (transport §5.2)
	rekeyAfter      = 120 * time.Second
	rejectAfter     = 170 * time.Second // of the initiator
	keepaliveAfter  = 10 * time.Second  // of receiving without sending
	echoRetry       = time.Second
	sessionIndices  = 256 // of one client (transport §5.4)
	maxCandidates   = 64  // of the gateway that are kept until its authorization
	handshakeMemory = 2   // sessions that are still received on
)

// wire sends datagrams. b is the receiver's.
type wire interface {
	send(b []byte, local, remote netip.AddrPort)
}

// authorization is what the portal tells a client about its gateway.
type authorization struct {
	ResourceID       string         `json:"resource_id"`
	GatewayID        string         `json:"gateway_id"`
	GatewayPublicKey string         `json:"gateway_public_key"`
	PresharedKey     string         `json:"preshared_key"`
	ClientICE        iceCredentials `json:"client_ice_credentials"`
	GatewayICE       iceCredentials `json:"gateway_ice_credentials"`
}

// phase is how far a client got.
type phase uint8

const (
	phaseNone      phase = iota // not authorized
	phaseChecking               // no pair is nominated
	phaseHandshake              // handshake on a nominated pair
	phaseWaiting                // an echo request is on its way
	phaseConnected              // an echo was answered
	phaseFailed                 // no pair is left, or no handshake succeeded in time
)

var phaseNames = [...]string{"waiting for authorization", "checking", "in a handshake", "without inner answer", "connected", "failed"}

func (p phase) String() string { return phaseNames[p] }

// counters count what clients did.
type counters struct {
	ChecksSent     uint64 `json:"checks_sent"`
	ChecksAnswered uint64 `json:"checks_answered"` // by the gateway
	ChecksReceived uint64 `json:"checks_received"` // from the gateway
	Initiations    uint64 `json:"initiations"`
	Cookies        uint64 `json:"cookie_replies"`
	Echoes         uint64 `json:"echoes_sent"`
	Unknown        uint64 `json:"unknown_datagrams"`
}

// client is one simulated client: a state machine that is told datagrams, what
// the portal says, and the time. It is not safe for concurrent use.
type client struct {
	number    uint32 // upper 24 bits of its session indices
	addresses []netip.AddrPort
	relayOnly bool // pairs with relayed candidates only
	identity  identity
	inner     netip.Addr // tunnel address
	target    netip.Addr // what is pinged
	wire      wire
	counters  *counters

	phase     phase
	creds     credentials
	list      checklist
	early     []candidate // before the authorization
	data      time.Time   // of the last inner packet
	index     uint8
	handshake *handshake
	began     time.Time // of the current attempts at a handshake
	retry     time.Time // of the handshake, zero for none
	proactive time.Time
	cookie    []byte
	sessions  []*session // newest last
	keepalive time.Time  // due, zero for none
	sequence  uint16     // of the echo that is waited for
	echoAgain time.Time  // zero when none is waited for
	answered  time.Time  // of the last echo that was
}

// authorize starts to connect.
func (c *client) authorize(a authorization, now time.Time) error {
	var errs []error
	for _, k := range []struct {
		into *[32]byte
		text string
	}{{&c.identity.gateway, a.GatewayPublicKey}, {&c.identity.psk, a.PresharedKey}} {
		b, err := base64.StdEncoding.DecodeString(k.text)
		if err != nil || len(b) != len(k.into) {
			errs = append(errs, errors.New("key is not 32 bytes of base64"))
			continue
		}
		copy(k.into[:], b)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	c.creds = credentials{ours: a.ClientICE, theirs: a.GatewayICE}
	binary.BigEndian.PutUint32(c.creds.tie[:], c.number)
	c.list = checklist{profile: activeProfile}
	c.phase, c.data = phaseChecking, now
	for _, r := range c.early {
		c.pairWith(r, now)
	}
	c.early = nil
	c.advance(now)
	return nil
}

// addRemote takes candidates of the gateway, those that do not parse excepted.
func (c *client) addRemote(lines []string, now time.Time) {
	for _, line := range lines {
		r, ok := parseCandidate(line)
		switch {
		case !ok, c.relayOnly && !r.relayed:
		case c.phase != phaseNone:
			c.pairWith(r, now)
		case len(c.early) < maxCandidates:
			c.early = append(c.early, r)
		}
	}
	c.advance(now)
}

func (c *client) pairWith(r candidate, now time.Time) {
	for _, local := range c.addresses {
		if local.Addr().Is4() == r.addr.Addr().Is4() {
			c.list.add(local, r.addr, r.priority, now)
		}
	}
}

// receive takes one datagram.
func (c *client) receive(b []byte, local, remote netip.AddrPort, now time.Time) {
	if c.phase == phaseNone {
		c.counters.Unknown++
		return
	}
	ok := false
	switch {
	case isSTUN(b):
		ok = c.receiveCheck(b, local, remote, now)
	case len(b) == 0:
	case b[0] == typeResponse:
		ok = c.receiveResponse(b, now)
	case b[0] == typeCookie:
		ok = c.receiveCookie(b)
	case b[0] == typeData:
		ok = c.receiveData(b, now)
	}
	if !ok {
		c.counters.Unknown++
	}
	c.advance(now)
}

func (c *client) receiveCheck(b []byte, local, remote netip.AddrPort, now time.Time) bool {
	m, priority, ok := c.creds.parseCheck(b)
	if !ok {
		return false
	}
	if m.Type == stun.BindingSuccess {
		p := c.list.answer(m.TransactionID, now)
		if p != nil {
			c.counters.ChecksAnswered++
		}
		return p != nil
	}
	c.counters.ChecksReceived++
	c.wire.send(c.creds.success(m.TransactionID, remote), local, remote)
	p := c.list.find(local, remote)
	if p == nil {
		p = c.list.add(local, remote, priority, now) // peer-reflexive
	}
	if p != nil && !p.answered {
		p.next = now // a triggered check
	}
	return true
}

func (c *client) receiveResponse(b []byte, now time.Time) bool {
	if c.handshake == nil {
		return false
	}
	s, err := c.handshake.finish(b, now)
	if err != nil {
		return false
	}
	c.handshake, c.retry, c.began, c.cookie = nil, time.Time{}, time.Time{}, nil
	c.sessions = append(c.sessions, s)
	if len(c.sessions) > handshakeMemory {
		c.sessions = slices.Delete(c.sessions, 0, 1)
	}
	switch {
	case c.phase == phaseHandshake:
		c.phase = phaseWaiting
		c.echo(now)
	case !c.echoAgain.IsZero():
		c.echoAgain = now // at once, with the new session
	default:
		c.sendInner(nil) // the first message confirms the keys
	}
	return true
}

func (c *client) receiveCookie(b []byte) bool {
	if c.handshake == nil {
		return false
	}
	cookie, err := c.handshake.cookie(b)
	if err != nil {
		return false
	}
	// As the original does, it waits for the next attempt.
	c.cookie = cookie
	c.counters.Cookies++
	return true
}

func (c *client) receiveData(b []byte, now time.Time) bool {
	for _, s := range c.sessions {
		inner, err := s.open(b)
		if err != nil {
			continue
		}
		if len(inner) == 0 {
			return true // a keepalive wakes nobody
		}
		c.data = now
		if c.keepalive.IsZero() {
			c.keepalive = now.Add(keepaliveAfter)
		}
		if id, sequence, ok := parseEchoReply(inner, c.target, c.inner); ok && id == uint16(c.number) && sequence == c.sequence && !c.echoAgain.IsZero() {
			c.phase, c.answered, c.echoAgain = phaseConnected, now, time.Time{}
		}
		return true
	}
	return false
}

// ping sends an inner packet, which wakes an idle client, and waits for the
// answer: answered tells when it came.
func (c *client) ping(now time.Time) {
	if c.phase == phaseConnected {
		c.echo(now)
		c.advance(now)
	}
}

// leave says goodbye and forgets the gateway.
func (c *client) leave() {
	if len(c.sessions) > 0 {
		c.sendInner(goodbye())
	}
	c.phase, c.list, c.sessions, c.handshake = phaseNone, checklist{}, nil, nil
	c.retry, c.keepalive, c.echoAgain = time.Time{}, time.Time{}, time.Time{}
}

// next returns when advance has something to do, zero for never.
func (c *client) next() time.Time {
	if c.phase == phaseNone || c.phase == phaseFailed {
		return time.Time{}
	}
	at := c.list.next()
	for _, t := range []time.Time{c.retry, c.keepalive, c.echoAgain} {
		at = earliest(at, t)
	}
	if c.phase == phaseConnected && c.list.profile != idleProfile {
		at = earliest(at, c.data.Add(idleAfter))
	}
	return at
}

// advance does what is due.
func (c *client) advance(now time.Time) {
	if c.phase == phaseNone || c.phase == phaseFailed {
		return
	}
	if now.Sub(c.data) < idleAfter || c.phase != phaseConnected {
		c.list.change(activeProfile, now)
	} else {
		c.list.change(idleProfile, now)
	}
	had := len(c.list.pairs) > 0
	for _, p := range c.list.due(now) {
		c.check(p, now)
	}
	if had && len(c.list.pairs) == 0 {
		c.phase = phaseFailed
		return
	}
	if p := c.list.toNominate(); p != nil {
		c.nominate(p, now)
	}
	if isDue(c.retry, now) {
		if now.Sub(c.began) >= handshakeLimit {
			c.phase = phaseFailed
			return
		}
		c.initiate(now)
	}
	if isDue(c.echoAgain, now) {
		c.echo(now)
	}
	if isDue(c.keepalive, now) {
		c.sendInner(nil)
	}
}

func (c *client) check(p *pair, now time.Time) {
	b, id := c.creds.request(p.local.Addr(), p.nominated)
	c.list.sent(p, id, now)
	c.counters.ChecksSent++
	c.wire.send(b, p.local, p.remote)
}

// nominate moves the data to a pair: its next check goes out at once with
// USE-CANDIDATE, and an initiation with it (transport §2.8).
func (c *client) nominate(p *pair, now time.Time) {
	p.nominated = true
	c.check(p, now)
	if !c.proactive.IsZero() && now.Sub(c.proactive) < proactiveLimit {
		return
	}
	c.proactive = now
	if c.phase == phaseChecking {
		c.phase = phaseHandshake
	}
	c.initiate(now)
}

func (c *client) initiate(now time.Time) {
	p := c.list.selected()
	if p == nil {
		return
	}
	if c.began.IsZero() {
		c.began = now
	}
	c.retry = now.Add(handshakeRetry + jitter())
	c.index++
	h, b, err := initiate(&c.identity, c.number*sessionIndices+uint32(c.index), now, c.cookie)
	if err != nil {
		c.phase = phaseFailed // the gateway's key is none
		return
	}
	c.handshake = h
	c.counters.Initiations++
	c.wire.send(b, p.local, p.remote)
}

func (c *client) echo(now time.Time) {
	if c.handshake == nil && now.Sub(c.sessions[len(c.sessions)-1].began) >= rekeyAfter {
		c.initiate(now)
	}
	c.sequence++
	c.counters.Echoes++
	c.echoAgain = now.Add(echoRetry)
	c.data = now
	if now.Sub(c.sessions[len(c.sessions)-1].began) >= rejectAfter {
		return // what comes after the handshake is the next one
	}
	c.sendInner(appendEcho(nil, c.inner, c.target, uint16(c.number), c.sequence))
}

func (c *client) sendInner(inner []byte) {
	c.keepalive = time.Time{}
	p := c.list.selected()
	if p == nil || len(c.sessions) == 0 {
		return
	}
	c.wire.send(c.sessions[len(c.sessions)-1].seal(inner), p.local, p.remote)
}

func isDue(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }
