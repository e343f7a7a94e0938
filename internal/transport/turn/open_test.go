package turn

import (
	"testing"

	pion "github.com/pion/stun/v3"
)

// bare takes the next datagram, which must be a request without credentials.
func (r *rig) bare(method pion.Method) request {
	r.Helper()
	tr, ok := r.c.PollTransmit()
	if !ok {
		r.Fatalf("nothing sent, want %s", method)
	}
	m := &pion.Message{Raw: tr.Data}
	if err := m.Decode(); err != nil || m.Type != pion.NewType(method, pion.ClassRequest) {
		r.Fatalf("sent %s (%v), want a %s request", m.Type, err, method)
	}
	for _, typ := range []pion.AttrType{pion.AttrUsername, pion.AttrRealm, pion.AttrNonce, pion.AttrMessageIntegrity} {
		if m.Contains(typ) {
			r.Fatalf("%s in a request without credentials", typ)
		}
	}
	return request{m, tr.To}
}

// unsigned is a refusal without integrity, as a relay of RFC 8489 sends it.
func unsigned(q request, code int, nonce string) []byte {
	m := answer(q, pion.ClassErrorResponse)
	m.Add(pion.AttrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)})
	if nonce != "" {
		m.Add(pion.AttrRealm, []byte(Realm))
		m.Add(pion.AttrNonce, []byte(nonce))
	}
	return m.Raw
}

func probed(t *testing.T) *rig {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.drainEvents()
	return r
}

func TestARelayThatWantsANonceFirst(t *testing.T) {
	r := probed(t)
	q := r.request(pion.MethodAllocate)
	r.deliver(q, unsigned(q, 400, ""))
	q = r.bare(pion.MethodAllocate)
	r.deliver(q, unsigned(q, 401, "n1"))
	q = r.request(pion.MethodAllocate)
	if !has(q, pion.AttrNonce, "n1") {
		t.Error("the nonce was not adopted")
	}
	r.grant(q, 600, relayed4)
	r.events(Allocated{V4: relayed4, Lifetime: defaultLifetime})

	r.c.BindChannel(peer4, r.now)
	q = r.request(pion.MethodChannelBind)
	r.deliver(q, unsigned(q, 438, "n2"))
	if q = r.request(pion.MethodChannelBind); !has(q, pion.AttrNonce, "n2") {
		t.Error("the new nonce was not adopted")
	}
	if r.offer(q, unsigned(q, 401, "n3")) {
		t.Error("an unsigned answer refused the credentials")
	}
	r.succeed(q)
	expect[ChannelBound](r)

	r.c.Probe(r.now)
	q = r.request(pion.MethodRefresh)
	if q.Contains(pion.AttrRequestedTransport) || q.Contains(attrAdditionalFamily) {
		t.Error("REFRESH with attributes that are ALLOCATE's")
	}
	r.succeed(q)
}

func TestARelayThatStillHasAnAllocationAndDoesNotSign(t *testing.T) {
	r := probed(t)
	q := r.request(pion.MethodAllocate)
	r.deliver(q, unsigned(q, 437, ""))
	q = r.bare(pion.MethodRefresh)
	r.deliver(q, unsigned(q, 401, "n1"))
	q = r.request(pion.MethodRefresh)
	if !has(q, pion.AttrLifetime, "\x00\x00\x00\x00") {
		t.Error("the old allocation is not ended")
	}
	r.succeed(q)
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	r.events(Allocated{V4: relayed4, Lifetime: defaultLifetime})
}

func TestUnsignedRefusalsChangeNothingWhereRelaysSign(t *testing.T) {
	r, _ := bound(t)
	r.c.Probe(r.now)
	q := r.request(pion.MethodRefresh)
	for _, code := range []int{400, 401, 420, 437, 438} {
		if r.offer(q, unsigned(q, code, "forged")) {
			t.Errorf("an unsigned %d was accepted", code)
		}
	}
	r.silent()
	r.events()
}
