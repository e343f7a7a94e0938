package scale

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

var (
	testBegin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	testLocal = addressesOf(1)[0]
	host4     = netip.MustParseAddrPort("203.0.113.99:52625")
	relayed4  = netip.MustParseAddrPort("203.0.113.1:60000")
)

const (
	hostLine  = "candidate:1 1 udp 2130706175 203.0.113.99 52625 typ host ufrag gate"
	relayLine = "candidate:2 1 udp 37748479 203.0.113.1 60000 typ relay raddr 0.0.0.0 rport 0 ufrag gate"
)

var testICE = struct{ client, gateway iceCredentials }{
	iceCredentials{"clnt", "clientclientclientclie"}, iceCredentials{"gate", "gatewaygatewaygatewayg"},
}

// sentDatagram is one that a client sent.
type sentDatagram struct {
	b             []byte
	local, remote netip.AddrPort
}

// record is a wire that remembers.
type record []sentDatagram

func (r *record) send(b []byte, local, remote netip.AddrPort) {
	*r = append(*r, sentDatagram{b, local, remote})
}

// take returns what was sent and forgets it.
func (r *record) take() []sentDatagram {
	all := *r
	*r = nil
	return all
}

func newTestClient(t testing.TB, out wire) *client {
	t.Helper()
	id := newIdentity(t, newKey(t))
	return &client{
		number: 1, addresses: addressesOf(1), identity: *id, inner: innerOfClient, target: innerOfTarget,
		wire: out, counters: new(counters),
	}
}

func testAuthorization(c *client) authorization {
	return authorization{
		GatewayPublicKey: base64.StdEncoding.EncodeToString(c.identity.gateway[:]),
		PresharedKey:     base64.StdEncoding.EncodeToString(c.identity.psk[:]),
		ClientICE:        testICE.client, GatewayICE: testICE.gateway,
	}
}

func authorized(t testing.TB, out wire, lines ...string) *client {
	t.Helper()
	c := newTestClient(t, out)
	if err := c.authorize(testAuthorization(c), testBegin); err != nil {
		t.Fatal(err)
	}
	c.addRemote(lines, testBegin)
	return c
}

// asGateway is the other side's credentials.
func asGateway() *credentials {
	return &credentials{ours: testICE.gateway, theirs: testICE.client}
}

// answer is the gateway's success to a check.
func answer(t *testing.T, check []byte) []byte {
	t.Helper()
	m, _, ok := asGateway().parseCheck(check)
	if !ok || m.Type != stun.BindingRequest {
		t.Fatalf("no check that the gateway would answer: %x", check)
	}
	return asGateway().success(m.TransactionID, testLocal)
}

func TestChecksFollowTheSchedule(t *testing.T) {
	var out record
	c := authorized(t, &out, hostLine)
	var at []time.Duration
	for now := testBegin; c.phase == phaseChecking; {
		for range out.take() {
			at = append(at, now.Sub(testBegin))
		}
		now = c.next()
		c.advance(now)
	}
	var want []time.Duration
	for _, ms := range []int{0, 250, 750, 1750, 3250, 4750, 6250, 7750, 9250, 10750, 12250, 13750} {
		want = append(want, time.Duration(ms)*time.Millisecond)
	}
	if !slices.Equal(at, want) {
		t.Errorf("checks at %v, want %v", at, want)
	}
	if c.phase != phaseFailed || !c.next().IsZero() {
		t.Errorf("without a pair the client is %v", c.phase)
	}
}

func TestFirstAnswerIsNominatedWithAnInitiation(t *testing.T) {
	var out record
	c := authorized(t, &out, relayLine)
	checks := out.take()
	c.addRemote([]string{hostLine}, testBegin)
	checks = append(checks, out.take()...)
	if len(checks) != 2 {
		t.Fatalf("%d checks", len(checks))
	}
	now := testBegin.Add(time.Millisecond)
	c.receive(answer(t, checks[0].b), testLocal, relayed4, now)
	sent := out.take()
	if len(sent) != 2 || sent[0].remote != relayed4 || sent[1].remote != relayed4 || !nominates(t, sent[0].b) || sent[1].b[0] != typeInitiation {
		t.Fatalf("after the first answer: %v", sent)
	}
	if c.phase != phaseHandshake {
		t.Errorf("the client is %v", c.phase)
	}
	// A better pair takes over; the handshake is not begun again.
	c.receive(answer(t, checks[1].b), testLocal, host4, now)
	sent = out.take()
	if len(sent) != 1 || sent[0].remote != host4 || !nominates(t, sent[0].b) || c.list.selected().remote != host4 {
		t.Fatalf("after the better answer: %v", sent)
	}
	// Both stay nominated; an answer that came already counts for nothing.
	c.receive(answer(t, checks[1].b), testLocal, host4, now)
	if c.counters.Unknown != 1 {
		t.Errorf("%d unknown datagrams", c.counters.Unknown)
	}
}

func nominates(t *testing.T, b []byte) bool {
	t.Helper()
	m := &stun.Message{Raw: b}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	return m.Contains(stun.AttrUseCandidate) && m.Contains(stun.AttrICEControlling) && m.Contains(stun.AttrFingerprint)
}

func TestWorseAnswerIsNotNominated(t *testing.T) {
	var out record
	c := authorized(t, &out, hostLine, relayLine)
	checks := out.take()
	c.receive(answer(t, checks[0].b), testLocal, host4, testBegin)
	out.take()
	c.receive(answer(t, checks[1].b), testLocal, relayed4, testBegin)
	if sent := out.take(); len(sent) != 0 {
		t.Errorf("sent %v", sent)
	}
}

func TestGatewaysCheckIsAnsweredAndTriggersOne(t *testing.T) {
	var out record
	c := authorized(t, &out)
	from := netip.MustParseAddrPort("203.0.113.77:1024")
	check, id := asGateway().request(from.Addr(), false)
	c.receive(check, testLocal, from, testBegin)
	sent := out.take()
	if len(sent) != 2 || sent[0].remote != from || sent[1].remote != from {
		t.Fatalf("sent %v", sent)
	}
	m, _, ok := asGateway().parseCheck(sent[0].b)
	if !ok || m.Type != stun.BindingSuccess || m.TransactionID != id {
		t.Error("the answer is none")
	}
	if m, _, ok := asGateway().parseCheck(sent[1].b); !ok || m.Type != stun.BindingRequest {
		t.Error("no triggered check")
	}
}

func TestForgeriesAreIgnored(t *testing.T) {
	var out record
	c := authorized(t, &out)
	stranger := &credentials{ours: testICE.gateway, theirs: iceCredentials{testICE.client.Username, "wrong"}}
	check, _ := stranger.request(host4.Addr(), false)
	for _, b := range [][]byte{check, {}, {typeResponse}, {typeCookie}, {typeData}, make([]byte, responseSize)} {
		c.receive(b, testLocal, host4, testBegin)
	}
	if sent := out.take(); len(sent) != 0 || c.counters.Unknown != 6 {
		t.Errorf("sent %v, %d unknown", sent, c.counters.Unknown)
	}
}

func TestRelayOnlyClientPairsWithRelayedCandidates(t *testing.T) {
	var out record
	c := newTestClient(t, &out)
	c.relayOnly = true
	c.addRemote([]string{hostLine, relayLine, "rubbish"}, testBegin) // before the authorization
	if err := c.authorize(testAuthorization(c), testBegin); err != nil {
		t.Fatal(err)
	}
	if sent := out.take(); len(sent) != 1 || sent[0].remote != relayed4 {
		t.Errorf("checks %v", sent)
	}
}

func TestHandshakeIsRepeatedAndGivenUp(t *testing.T) {
	var out record
	c := authorized(t, &out, hostLine)
	c.receive(answer(t, out.take()[0].b), testLocal, host4, testBegin)
	initiations := 0
	var last time.Time
	for now := testBegin; c.phase == phaseHandshake; now = c.next() {
		if !now.After(last) {
			t.Fatalf("time stands still at %v", now.Sub(testBegin))
		}
		last = now
		c.advance(now)
		for _, d := range out.take() {
			if d.b[0] == typeInitiation {
				initiations++
			} else {
				c.receive(answer(t, d.b), testLocal, host4, now)
			}
		}
	}
	if initiations < 3 || initiations > 4 || c.phase != phaseFailed {
		t.Errorf("%d initiations, then %v", initiations, c.phase)
	}
}

// connected returns a client with a session and a nominated pair. Whoever holds
// the session's other end is not there.
func connected(t testing.TB, out *record) *client {
	t.Helper()
	c := authorized(t, out, hostLine)
	m, _, ok := asGateway().parseCheck(out.take()[0].b)
	if !ok {
		t.Fatal("no check")
	}
	c.receive(asGateway().success(m.TransactionID, testLocal), testLocal, host4, testBegin)
	c.handshake, c.retry, c.began = nil, time.Time{}, time.Time{}
	c.sessions = []*session{{local: 1, remote: 2, send: aead([32]byte{1}), receive: aead([32]byte{2}), began: testBegin}}
	c.phase = phaseConnected
	out.take()
	return c
}

func TestIdleClientChecksRarelyAndWakesUp(t *testing.T) {
	var out record
	c := connected(t, &out)
	now := testBegin
	answerAll := func() {
		for _, d := range out.take() {
			if isSTUN(d.b) {
				c.receive(answer(t, d.b), testLocal, host4, now)
			}
		}
	}
	for now.Sub(testBegin) < 21*time.Second {
		if now = c.next(); now.IsZero() {
			t.Fatal("the client has nothing to do any more")
		}
		c.advance(now)
		answerAll()
	}
	if c.list.profile != idleProfile {
		t.Fatal("the client is not idle")
	}
	sent := c.counters.ChecksSent
	for until := now.Add(time.Minute); now.Before(until); now = c.next() {
		c.advance(now)
		answerAll()
	}
	if n := c.counters.ChecksSent - sent; n < 2 || n > 4 {
		t.Errorf("%d checks in a minute", n)
	}
	c.ping(now)
	if c.list.profile != activeProfile {
		t.Error("an inner packet does not wake the client")
	}
}

func TestEchoIsAnsweredOnce(t *testing.T) {
	var out record
	c := connected(t, &out)
	c.ping(testBegin)
	echo := appendEcho(nil, innerOfClient, innerOfTarget, 1, c.sequence)
	gateway := &session{local: 2, remote: 1, send: aead([32]byte{2}), receive: aead([32]byte{1})}
	now := testBegin.Add(time.Second / 2)
	c.receive(gateway.seal(append(asReply(echo), 0, 0, 0)), testLocal, host4, now)
	if c.phase != phaseConnected || !c.answered.Equal(now) {
		t.Errorf("%v, answered at %v", c.phase, c.answered)
	}
	c.receive(gateway.seal(asReply(echo)), testLocal, host4, now.Add(time.Second))
	if !c.answered.Equal(now) {
		t.Error("the second answer counts")
	}
	// Nothing was sent since: a keepalive is due.
	out.take()
	c.advance(now.Add(keepaliveAfter))
	if !slices.ContainsFunc(out.take(), func(d sentDatagram) bool { return len(d.b) == 32 && d.b[0] == typeData }) {
		t.Error("no keepalive")
	}
}

func TestOldSessionIsRenewedBeforeItIsUsed(t *testing.T) {
	var out record
	c := connected(t, &out)
	c.ping(testBegin.Add(rejectAfter))
	types := map[byte]int{}
	for _, d := range out.take() {
		if !isSTUN(d.b) {
			types[d.b[0]]++
		}
	}
	if types[typeInitiation] != 1 || types[typeData] != 0 {
		t.Errorf("sent messages by type: %v", types)
	}
}

func TestLeavingSaysGoodbye(t *testing.T) {
	var out record
	c := connected(t, &out)
	gateway := &session{local: 2, receive: aead([32]byte{1})}
	c.leave()
	sent := out.take()
	if len(sent) != 1 {
		t.Fatalf("sent %v", sent)
	}
	inner, err := gateway.open(sent[0].b)
	if err != nil || len(inner) != 48 || inner[6] != 255 || inner[40] != 2 {
		t.Errorf("sent %x, %v", inner, err)
	}
	if c.phase != phaseNone || !c.next().IsZero() {
		t.Error("something is left")
	}
}

func TestAuthorizationWithABadKeyIsAnError(t *testing.T) {
	for _, key := range []string{"", "AA==", "?"} {
		c := newTestClient(t, new(record))
		a := testAuthorization(c)
		a.PresharedKey = key
		if err := c.authorize(a, testBegin); err == nil || c.phase != phaseNone {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

func FuzzReceive(f *testing.F) {
	check, _ := asGateway().request(host4.Addr(), false)
	f.Add(check)
	f.Add(append([]byte{typeData, 0, 0, 0, 1}, make([]byte, 40)...))
	f.Add(append([]byte{typeResponse}, make([]byte, responseSize-1)...))
	f.Add(append([]byte{typeCookie}, make([]byte, cookieSize-1)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out record
		c := connected(t, &out)
		c.initiate(testBegin)
		c.receive(slices.Clone(b), testLocal, host4, testBegin)
		if c.phase != phaseConnected || !c.answered.IsZero() || len(c.sessions) != 1 {
			t.Errorf("a datagram of nobody made the client %v with %d sessions", c.phase, len(c.sessions))
		}
	})
}

func FuzzParseCandidate(f *testing.F) {
	f.Add(hostLine)
	f.Add(relayLine)
	f.Add("candidate:1 1 udp 1 ::ffff:192.0.2.1 9 typ srflx")
	f.Fuzz(func(t *testing.T, line string) {
		c, ok := parseCandidate(line)
		if ok && (!c.addr.IsValid() || c.addr.Addr().Is4In6() || c.addr.Addr().Zone() != "") {
			t.Errorf("candidate %v", c)
		}
	})
}
