package turn

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

var (
	relay4   = netip.MustParseAddrPort("198.51.100.1:3478")
	relay6   = netip.MustParseAddrPort("[2001:db8:1::1]:3478")
	local4   = netip.MustParseAddrPort("10.0.0.2:52625")
	local6   = netip.MustParseAddrPort("[fd00::2]:52625")
	mapped4  = netip.MustParseAddrPort("203.0.113.7:40000")
	relayed4 = netip.MustParseAddrPort("198.51.100.1:50000")
	relayed6 = netip.MustParseAddrPort("[2001:db8:1::1]:50000")
	peer4    = netip.MustParseAddrPort("192.0.2.9:52625")
	peer6    = netip.MustParseAddrPort("[2001:db8:9::9]:52625")
)

const (
	username = "2145916800:c29tZQ"
	password = "correct horse"
)

// rig is a client with a scripted relay. Every request it takes off the client
// is checked for what all requests have in common.
type rig struct {
	*testing.T
	c    *Client
	now  time.Time
	seen map[stun.TransactionID]bool
}

func newRig(t *testing.T, v4, v6 netip.AddrPort) *rig {
	r := &rig{T: t, now: time.Unix(1_800_000_000, 0), seen: make(map[stun.TransactionID]bool)}
	r.c = New(testConfig(v4, v6), r.now)
	return r
}

func testConfig(v4, v6 netip.AddrPort) Config {
	n := uint32(0)
	return Config{
		ID: "relay-1", V4: v4, V6: v6, Username: username, Password: password, Software: "test",
		Random: func(b []byte) { n++; clear(b); binary.BigEndian.PutUint32(b, n) },
	}
}

// allocated returns a rig whose client holds an allocation of both families
// with nonce n2, all events and transmits consumed.
func allocated(t *testing.T) *rig {
	r := newRig(t, relay4, netip.AddrPort{})
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.fail(r.request(pion.MethodAllocate), 401, "n1")
	r.grant(r.request(pion.MethodAllocate), 600, relayed4, relayed6)
	r.drainEvents()
	return r
}

// bound returns an allocated rig and the number of a channel bound to peer4.
func bound(t *testing.T) (*rig, uint16) {
	r := allocated(t)
	r.c.BindChannel(peer4, r.now)
	r.succeed(r.request(pion.MethodChannelBind))
	ev := expect[ChannelBound](r)
	return r, ev.Number
}

type request struct {
	*pion.Message
	to netip.AddrPort
}

// request takes the next datagram, which must be a request of the given method.
func (r *rig) request(method pion.Method) request {
	r.Helper()
	tr, ok := r.c.PollTransmit()
	if !ok {
		r.Fatalf("nothing sent, want %s", method)
	}
	m := &pion.Message{Raw: tr.Data}
	if err := m.Decode(); err != nil {
		r.Fatal(err)
	}
	if m.Type != pion.NewType(method, pion.ClassRequest) {
		r.Fatalf("sent %s, want a %s request", m.Type, method)
	}
	if m.Contains(pion.AttrFingerprint) {
		r.Fatal("FINGERPRINT in a request to a relay")
	}
	if software, _ := m.Get(pion.AttrSoftware); string(software) != "test" {
		r.Fatalf("SOFTWARE %q", software)
	}
	if method == pion.MethodBinding {
		if len(m.Attributes) != 1 {
			r.Fatalf("BINDING has attributes besides SOFTWARE: %v", m.Attributes)
		}
		return request{m, tr.To}
	}
	if r.seen[m.TransactionID] {
		r.Fatal("an authenticated request repeats a transaction id")
	}
	r.seen[m.TransactionID] = true
	if u, _ := m.Get(pion.AttrUsername); string(u) != username {
		r.Fatalf("USERNAME %q", u)
	}
	if realm, _ := m.Get(pion.AttrRealm); string(realm) != "firezone" {
		r.Fatalf("REALM %q", realm)
	}
	if last := m.Attributes[len(m.Attributes)-1]; last.Type != pion.AttrMessageIntegrity {
		r.Fatalf("%s is the last attribute", last.Type)
	}
	if err := pion.NewLongTermIntegrity(username, "firezone", password).Check(m); err != nil {
		r.Fatal(err)
	}
	return request{m, tr.To}
}

func (r *rig) silent() {
	r.Helper()
	if tr, ok := r.c.PollTransmit(); ok {
		r.Fatalf("sent %x to %s, want nothing", tr.Data, tr.To)
	}
}

// advance moves the clock through every timeout on the way.
func (r *rig) advance(d time.Duration) {
	end := r.now.Add(d)
	for {
		at, ok := r.c.NextTimeout()
		if !ok || at.After(end) {
			break
		}
		r.now = at
		r.c.HandleTimeout(at)
		if again, ok := r.c.NextTimeout(); ok && !again.After(at) {
			r.Fatalf("the timeout at %s does not go away", at)
		}
	}
	r.now = end
}

func (r *rig) answerBinding(q request, mapped netip.AddrPort) {
	r.Helper()
	local := local4
	if q.to.Addr().Is6() {
		local = local6
	}
	m := answer(q, pion.ClassSuccessResponse)
	m.Add(pion.AttrXORMappedAddress, xorAddress(mapped, m.TransactionID))
	if !r.c.HandleDatagram(q.to, local.Addr(), local.Port(), m.Raw, r.now) {
		r.Fatal("a BINDING answer was ignored")
	}
}

func (r *rig) grant(q request, seconds uint32, relayed ...netip.AddrPort) {
	r.Helper()
	m := answer(q, pion.ClassSuccessResponse)
	for _, a := range relayed {
		m.Add(pion.AttrXORRelayedAddress, xorAddress(a, m.TransactionID))
	}
	m.Add(pion.AttrLifetime, binary.BigEndian.AppendUint32(nil, seconds))
	r.deliver(q, sign(m))
}

func (r *rig) succeed(q request) {
	r.Helper()
	r.deliver(q, sign(answer(q, pion.ClassSuccessResponse)))
}

func (r *rig) fail(q request, code int, nonce string) {
	r.Helper()
	r.deliver(q, failure(q, code, nonce))
}

func (r *rig) deliver(q request, b []byte) {
	r.Helper()
	if !r.offer(q, b) {
		r.Fatal("an answer was ignored")
	}
}

func (r *rig) offer(q request, b []byte) bool {
	before := bytes.Clone(b)
	handled := r.c.HandleDatagram(q.to, local4.Addr(), local4.Port(), b, r.now)
	if !bytes.Equal(b, before) {
		r.Fatal("the datagram was changed")
	}
	return handled
}

func (r *rig) drainEvents() (all []Event) {
	for {
		e, ok := r.c.PollEvent()
		if !ok {
			return all
		}
		all = append(all, e)
	}
}

func (r *rig) events(want ...Event) {
	r.Helper()
	if got := r.drainEvents(); !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
		r.Fatalf("events\n%+v, want\n%+v", got, want)
	}
}

func expect[E Event](r *rig) E {
	r.Helper()
	e, ok := r.c.PollEvent()
	if !ok {
		r.Fatalf("no event, want %T", *new(E))
	}
	typed, ok := e.(E)
	if !ok {
		r.Fatalf("event %T %+v, want %T", e, e, typed)
	}
	return typed
}

func answer(q request, class pion.MessageClass) *pion.Message {
	m := &pion.Message{Type: pion.NewType(q.Type.Method, class), TransactionID: q.TransactionID}
	m.WriteHeader()
	return m
}

func failure(q request, code int, nonce string) []byte {
	m := answer(q, pion.ClassErrorResponse)
	m.Add(pion.AttrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)})
	if nonce != "" {
		m.Add(pion.AttrRealm, []byte("firezone"))
		m.Add(pion.AttrNonce, []byte(nonce))
	}
	return sign(m)
}

func sign(m *pion.Message) []byte {
	if err := pion.NewLongTermIntegrity(username, "firezone", password).AddTo(m); err != nil {
		panic(err)
	}
	return m.Raw
}

func has(q request, typ pion.AttrType, want string) bool {
	v, err := q.Get(typ)
	return err == nil && string(v) == want
}
