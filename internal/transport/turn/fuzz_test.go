package turn

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"

	"firezone-gateway/internal/hammer"
)

// FuzzClient plays a script of operations on a client: datagrams of anybody,
// answers of a relay to what is outstanding, time, and calls of the owner, in
// any order. After each operation it checks what is always true of a client.
//
// An operation is three bytes, code, argument and length, and that many bytes
// more.
func FuzzClient(f *testing.F) { fuzzClient(f) }

func TestHammerClient(t *testing.T) { hammer.Test(t, "FuzzClient", fuzzClient) }

func fuzzClient(f hammer.F) {
	mapped := op(opAnswer, 0, attribute(0x0020, "\x00\x01\x11\x11\x22\x22\x33\x33"))
	granted := op(opAnswer, 0, attribute(0x0016, "\x00\x01\x11\x11\x22\x22\x33\x33"), attribute(0x000d, "\x00\x00\x02\x58"))
	challenge := []string{attribute(0x0009, "\x00\x00\x04\x26"), attribute(0x0014, "firezone"), attribute(0x0015, "n")}
	allocation := mapped + granted
	f.Add("")
	f.Add("\xff\xff")
	f.Add(op(opDatagram, 0, "\x00\x01\x00\x00\x21\x12\xa4\x42abcdefghijkl"))
	f.Add(mapped + op(opTime, 4))
	f.Add(allocation + op(opBind, 1) + op(opAnswer, 0) + op(opBind, 2) + op(opTime, 6) + op(opReceived, 0) + op(opTime, 7))
	f.Add(allocation + op(opBindMany, 0) + op(opAnswer, 1, attribute(0x0009, "\x00\x00\x04\x25")) + granted + op(opTime, 5))
	f.Add(allocation + op(opBindMany, 0) + op(opAnswer, 1, challenge...) + op(opAnswer, 3, challenge...) + op(opTime, 3))
	f.Add(mapped + op(opWrongKey, 1, challenge...) + op(opTime, 3) + op(opWrongKey, 1, challenge...) + op(opTime, 3))
	f.Add(mapped + op(opUnsigned, 1, challenge...) + op(opAnswer, 1, challenge...) + granted)
	f.Add(mapped + op(opAnswer, 1, attribute(0x0009, "\x00\x00\x04\x25")) + op(opAnswer, 0, attribute(0x000d, "\x00\x00\x00\x00")) + granted)
	f.Add(mapped + op(opAnswer, 1, attribute(0x0009, "\x00\x00\x05\x08")) + op(opProbe, 0) + mapped + granted + op(opProbe, 0) + op(opTime, 4))
	f.Add(allocation + op(opBind, 0) + op(opAnswer, 1, challenge...) + op(opUnsigned, 0) + op(opAnswer, 0) + op(opTime, 7) + op(opBind, 0) + op(opAnswer, 1, attribute(0x0009, "\x00\x00\x04\x00")) + op(opBind, 0))
	f.Add(allocation + op(opTime, 9) + mapped + granted)
	f.Add(op(opBindMany, 0) + allocation + op(opAnswer, 0) + op(opTime, 8))
	code := func(code string) string { return attribute(0x0009, "\x00\x00"+code) }
	served := op(opServe, 0)
	f.Add(served + op(opProbe, 0) + op(opAnswer, 1, code("\x04\x25")) + served + op(opProbe, 0) + op(opAnswer, 1, code("\x05\x00")) + op(opServe, 7))
	f.Add(served + op(opProbe, 0) + op(opAnswer, 0, attribute(0x000d, "\x00\x00\x00\x00")) + granted + op(opProbe, 0) + op(opAnswer, 1, challenge...) + op(opAnswer, 1, code("\x04\x01")))
	f.Add(served + op(opBind, 0) + op(opAnswer, 1, code("\x04\x00")) + op(opBind, 0) + op(opServe, 5) + op(opBind, 0) + op(opServe, 6) + op(opReceived, 1) + op(opAnswer, 1, code("\x04\x00")) + op(opServe, 7) + op(opBind, 0) + served)
	f.Add(op(opServe, 0) + op(opBind, 0) + op(opServe, 5) + op(opReceived, 0) + op(opServe, 6) + op(opServe, 7) + op(opServe, 7) + op(opBind, 1) + op(opServe, 0))
	f.Add(op(opServe, 0) + op(opBindMany, 0) + op(opServe, 6) + op(opReceived, 7) + op(opServe, 6) + op(opBindMany, 0) + op(opServe, 8))

	f.Fuzz(func(t *testing.T, script string) {
		w := newWitness(t)
		for range 64 {
			if len(script) < 3 {
				break
			}
			n := min(int(script[2]), len(script)-3)
			w.step(script[0]%opCount, script[1], []byte(script[3:3+n]))
			script = script[3+n:]
		}
	})
}

// The operations of a script.
const (
	opTime     = iota // time passes, through all timeouts on the way
	opServe           // the same, and the relay answers whatever it is asked
	opAnswer          // the relay answers a request, 0 the latest; the lowest bit makes it an error
	opWrongKey        // the same, signed with another password
	opUnsigned        // the same, not signed
	opDatagram        // a datagram of the script's own
	opBind
	opBindMany
	opReceived
	opProbe
	opCount
)

// jumps are what opTime chooses from.
var jumps = [...]time.Duration{0, time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, 10 * time.Second,
	time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 30 * 24 * time.Hour}

// maxPending is the number of requests that a client has out at most: binds, one
// BINDING to each family, and one of ALLOCATE and REFRESH.
const maxPending = maxBinds + 3

// witness is the owner of a client, with a memory.
type witness struct {
	*testing.T
	c      *Client
	now    time.Time
	number map[netip.AddrPort]uint16 // channels that were reported and not lost
	peer   map[uint16]netip.AddrPort
	bound  map[uint16]time.Time // last report
	last   map[uint16]netip.AddrPort
	out    []Transmit // what the latest settle took
	failed bool
}

func newWitness(t *testing.T) *witness {
	now := time.Unix(1_800_000_000, 0)
	w := &witness{
		T: t, c: New(testConfig(relay4, relay6), now), now: now,
		number: make(map[netip.AddrPort]uint16), peer: make(map[uint16]netip.AddrPort),
		bound: make(map[uint16]time.Time), last: make(map[uint16]netip.AddrPort),
	}
	w.settle(2)
	return w
}

func (w *witness) step(code, argument byte, data []byte) {
	switch code {
	case opTime:
		w.advance(jumps[int(argument)%len(jumps)], false)
	case opServe:
		w.serve()
		w.advance(jumps[int(argument)%len(jumps)], true)
	case opAnswer, opWrongKey, opUnsigned:
		if len(w.c.pending) == 0 {
			return
		}
		n := len(w.c.pending)
		tx := w.c.pending[n-1-int(argument>>1)%n]
		w.offer(tx.to, reply(tx, argument&1, data, code))
	case opDatagram:
		w.offer([]netip.AddrPort{relay4, relay6, peer4}[argument%3], data)
	case opBind:
		w.c.BindChannel([]netip.AddrPort{peer4, peer6, peer(int(argument)), none}[argument%4], w.now)
		w.settle(1)
	case opBindMany:
		for i := range 100 {
			w.c.BindChannel(peer(100*int(argument)+i), w.now)
		}
		w.settle(maxBinds)
	case opReceived:
		w.c.MarkReceived(MinChannel+uint16(argument), w.now)
		w.settle(1)
	case opProbe:
		w.c.Probe(w.now)
		w.settle(2)
	}
}

// offer hands over one datagram. What is ignored has no effect but an earlier
// timeout; what is not brings about as many requests as there may be at a time.
func (w *witness) offer(from netip.AddrPort, b []byte) {
	pending, events := len(w.c.pending), len(w.c.events)
	if w.c.HandleDatagram(from, local4.Addr(), local4.Port(), b, w.now) {
		w.settle(maxPending)
		return
	}
	if len(w.c.pending) != pending || len(w.c.events) != events {
		w.Fatal("a datagram that was ignored has an effect")
	}
	w.settle(0)
}

// advance lets time pass, with each timeout at its time unless that takes too
// many steps. Without any input a request goes out twice a second at most.
func (w *witness) advance(d time.Duration, served bool) {
	end := w.now.Add(d)
	window, sent := w.now, 0
	for range 1000 {
		at, ok := w.c.NextTimeout()
		if !ok || at.After(end) {
			break
		}
		w.now = at
		if at.Sub(window) >= time.Second {
			window, sent = at, 0
		}
		w.c.HandleTimeout(at)
		if sent += w.settle(maxPending); sent > 4*maxPending {
			w.Fatalf("%d requests in a second", sent)
		}
		if served {
			w.serve()
		}
		if next, ok := w.c.NextTimeout(); ok && !next.After(at) {
			w.Fatalf("the timeout does not go away: %s at %s", next, at)
		}
	}
	w.now = end
	w.c.HandleTimeout(end)
	w.settle(2 * maxPending)
	if next, ok := w.c.NextTimeout(); ok && !next.After(end) {
		w.Fatalf("the timeout does not go away: %s at %s", next, end)
	}
}

// serve answers what the latest settle took, and what follows from the answers,
// as a relay does that grants everything, in a number of rounds that is more than
// any client needs: it may have one bind under way at a time, because nobody
// answers the others.
func (w *witness) serve() {
	for range 100 + len(w.c.unsent) {
		out := w.out
		if len(out) == 0 {
			return
		}
		w.out = nil
		for _, tr := range out {
			q := &pion.Message{Raw: tr.Data}
			if err := q.Decode(); err != nil {
				w.Fatal(err)
			}
			answered := w.out
			w.offer(tr.To, consent(request{q, tr.To}))
			w.out = append(answered, w.out...)
		}
	}
	w.Fatal("the requests do not end")
}

// settle takes everything off the client, at most so many requests, and checks
// it. It returns the number of requests.
func (w *witness) settle(most int) (sent int) {
	w.Helper()
	w.out = nil
	another := false
	for ; ; sent++ {
		tr, ok := w.c.PollTransmit()
		if !ok {
			break
		}
		w.out = append(w.out, tr)
		m := &pion.Message{Raw: tr.Data}
		if tr.To != relay4 && tr.To != relay6 || m.Decode() != nil || m.Type.Class != pion.ClassRequest {
			w.Fatalf("sent %x to %s", tr.Data, tr.To)
		}
		another = another || m.Type.Method == pion.MethodAllocate
	}
	if sent > most {
		w.Fatalf("%d requests at once, %d are the most", sent, most)
	}
	for {
		e, ok := w.c.PollEvent()
		if !ok {
			break
		}
		w.heard(e)
	}
	s := w.c.State()
	if another && s.State == StateAllocated {
		w.Fatal("a second allocation was asked for") // T-38
	}
	if s.Pending > maxPending || len(w.c.waiting) > MaxQueued || s.Channels != len(w.peer) {
		w.Fatalf("%+v, %d channels reported", s, len(w.peer))
	}
	_, timed := w.c.NextTimeout()
	switch s.State {
	case StateAllocated:
		if !s.V4.IsValid() && !s.V6.IsValid() || !timed {
			w.Fatalf("allocated without address or timeout: %+v", s)
		}
	case StateSuspended, StateFailed:
		if timed || s.Pending > 0 || s.Queued > 0 || s.Channels > 0 {
			w.Fatalf("at rest with work to do: %+v", s)
		}
	default:
		if !timed || s.Pending == 0 || s.Channels > 0 || s.V4.IsValid() || s.V6.IsValid() {
			w.Fatalf("stuck: %+v", s)
		}
	}
	return sent
}

// heard keeps the books of channels: each number and each peer occurs once at a
// time, and they are not paired differently for 15 minutes (T-41, T-42).
func (w *witness) heard(e Event) {
	w.Helper()
	if w.failed {
		w.Fatalf("%T after the end", e)
	}
	switch e := e.(type) {
	case ChannelBound:
		_, taken := w.peer[e.Number]
		_, has := w.number[e.Peer]
		switch {
		case e.Number < MinChannel || e.Number > MaxChannel || taken || has:
			w.Fatalf("%+v, taken %t, has another %t", e, taken, has)
		case w.last[e.Number] != none && w.last[e.Number] != e.Peer && w.now.Sub(w.bound[e.Number]) < quarantine:
			w.Fatalf("%+v, which belonged to %s", e, w.last[e.Number])
		}
		w.peer[e.Number], w.number[e.Peer] = e.Peer, e.Number
		w.last[e.Number], w.bound[e.Number] = e.Peer, w.now
	case ChannelLost:
		if w.peer[e.Number] != e.Peer {
			w.Fatalf("%+v was never bound", e)
		}
		delete(w.peer, e.Number)
		delete(w.number, e.Peer)
	case AllocationLost:
		// The next allocation is another one, where no pairing is known.
		clear(w.peer)
		clear(w.number)
		clear(w.last)
	case Failed:
		w.failed = true
	}
}

// consent grants what q asks for.
func consent(q request) []byte {
	m := answer(q, pion.ClassSuccessResponse)
	switch q.Type.Method {
	case pion.MethodBinding:
		m.Add(pion.AttrXORMappedAddress, xorAddress(mapped4, m.TransactionID))
		return m.Raw
	case pion.MethodAllocate:
		m.Add(pion.AttrXORRelayedAddress, xorAddress(relayed4, m.TransactionID))
		m.Add(pion.AttrXORRelayedAddress, xorAddress(relayed6, m.TransactionID))
	case pion.MethodRefresh:
		if life, err := q.Get(pion.AttrLifetime); err == nil {
			m.Add(pion.AttrLifetime, life)
		}
	}
	return sign(m)
}

// reply is what a relay answers to tx, with the attributes of the script.
func reply(tx *transaction, class byte, attributes []byte, code byte) []byte {
	m := &pion.Message{Type: pion.NewType(tx.kind.method(), pion.ClassSuccessResponse)}
	if class == 1 {
		m.Type.Class = pion.ClassErrorResponse
	}
	if len(tx.ids) > 0 {
		m.TransactionID = tx.ids[len(tx.ids)-1]
	}
	m.WriteHeader()
	for len(attributes) >= 4 {
		typ, n := binary.BigEndian.Uint16(attributes), int(binary.BigEndian.Uint16(attributes[2:]))
		n = min(n, len(attributes)-4)
		m.Add(pion.AttrType(typ), attributes[4:4+n])
		attributes = attributes[4+n:]
	}
	switch code {
	case opAnswer:
		_ = pion.NewLongTermIntegrity(username, Realm, password).AddTo(m)
	case opWrongKey:
		_ = pion.NewLongTermIntegrity(username, Realm, "another").AddTo(m)
	}
	return m.Raw
}

func op(code, argument byte, data ...string) string {
	s := string([]byte{code, argument, 0})
	for _, d := range data {
		s += d
	}
	return s[:2] + string([]byte{byte(len(s) - 3)}) + s[3:]
}

func attribute(typ uint16, value string) string {
	b := binary.BigEndian.AppendUint16(nil, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return string(b) + value
}
