package turn

import (
	"encoding/binary"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"
)

// FuzzHandleDatagram lets a relay that knows the credentials answer whatever
// request is outstanding with attributes of the fuzzer's choice, several times
// in a row, with time passing in between.
func FuzzHandleDatagram(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add(step(0, 0, attribute(0x0020, "\x00\x01\x11\x11\x22\x22\x33\x33")), true)
	allocation := append(step(0, 0, attribute(0x0020, "\x00\x01\x11\x11\x22\x22\x33\x33")),
		step(0, 0, attribute(0x0016, "\x00\x01\x11\x11\x22\x22\x33\x33"), attribute(0x000d, "\x00\x00\x02\x58"))...)
	f.Add(allocation, true)
	f.Add(append(allocation, step(200, 1, attribute(0x0009, "\x00\x00\x04\x25"))...), true)
	f.Add(step(0, 1, attribute(0x0009, "\x00\x00\x04\x01"), attribute(0x0014, "firezone"), attribute(0x0015, "n")), true)
	f.Add([]byte("\x00\x00\x04\x01\x01\x00\x00"), false)

	f.Fuzz(func(t *testing.T, script []byte, signed bool) {
		now := time.Unix(1_800_000_000, 0)
		c := New(testConfig(relay4, relay6), now)
		c.BindChannel(peer4, now)
		for range 32 {
			if len(script) < 3 {
				break
			}
			delay, class, n := script[0], script[1], min(int(script[2]), len(script)-3)
			attributes := script[3 : 3+n]
			script = script[3+n:]

			now = now.Add(time.Duration(delay) * time.Second)
			c.HandleTimeout(now)
			b := append([]byte(nil), attributes...)
			if len(c.pending) > 0 {
				tx := c.pending[int(class>>1)%len(c.pending)]
				b = reply(tx, class&1, attributes, signed)
				c.HandleDatagram(tx.to, local4.Addr(), local4.Port(), b, now)
			} else {
				c.HandleDatagram(relay4, local4.Addr(), local4.Port(), b, now)
			}
			c.BindChannel(peer6, now)
			c.MarkReceived(MinChannel, now)
			check(t, c, now)
		}
	})
}

// check holds what is true of a client after every step.
func check(t *testing.T, c *Client, now time.Time) {
	t.Helper()
	c.HandleTimeout(now)
	for {
		tr, ok := c.PollTransmit()
		if !ok {
			break
		}
		if tr.To != relay4 && tr.To != relay6 {
			t.Fatalf("a datagram goes to %s", tr.To)
		}
		if m := (&pion.Message{Raw: tr.Data}); m.Decode() != nil || m.Type.Class != pion.ClassRequest {
			t.Fatalf("sent %x", tr.Data)
		}
	}
	for {
		if _, ok := c.PollEvent(); !ok {
			break
		}
	}
	if len(c.pending) > 8 || len(c.waiting) > MaxQueued {
		t.Fatalf("%d requests pending, %d peers waiting", len(c.pending), len(c.waiting))
	}
	at, ok := c.NextTimeout()
	if ok && !at.After(now) {
		t.Fatalf("the timeout does not go away: %s at %s", at, now)
	}
	switch s := c.State(); s.State {
	case StateAllocated:
		if !s.V4.IsValid() && !s.V6.IsValid() || !ok {
			t.Fatalf("allocated without address or timeout: %+v", s)
		}
	case StateSuspended, StateFailed:
		if ok || s.Pending > 0 || s.Channels > 0 {
			t.Fatalf("at rest with work to do: %+v", s)
		}
	default:
		if !ok || s.Pending == 0 || s.V4.IsValid() || s.V6.IsValid() {
			t.Fatalf("stuck: %+v", s)
		}
	}
}

func reply(tx *transaction, class byte, attributes []byte, signed bool) []byte {
	m := &pion.Message{Type: pion.NewType(tx.kind.method(), pion.ClassSuccessResponse)}
	if class == 1 {
		m.Type.Class = pion.ClassErrorResponse
	}
	if len(tx.ids) > 0 {
		m.TransactionID = tx.ids[0]
	}
	m.WriteHeader()
	for len(attributes) >= 4 {
		typ, n := binary.BigEndian.Uint16(attributes), int(binary.BigEndian.Uint16(attributes[2:]))
		n = min(n, len(attributes)-4)
		m.Add(pion.AttrType(typ), attributes[4:4+n])
		attributes = attributes[4+n:]
	}
	if signed {
		_ = pion.NewLongTermIntegrity(username, Realm, password).AddTo(m)
	}
	return m.Raw
}

func step(delay, class byte, attributes ...string) []byte {
	b := []byte{delay, class, 0}
	for _, a := range attributes {
		b = append(b, a...)
	}
	b[2] = byte(len(b) - 3)
	return b
}

func attribute(typ uint16, value string) string {
	b := binary.BigEndian.AppendUint16(nil, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return string(b) + value
}
