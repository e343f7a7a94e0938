package stun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"

	pion "github.com/pion/stun"

	"firezone-gateway/internal/hammer"
)

const password = "0123456789abcdefghijkl"

// judged is a message and what Check says to it.
type judged struct {
	name string
	in   []byte
	want error
}

func judgements(tb testing.TB) []judged {
	tb.Helper()
	request := checkRequest(tb)
	return []judged{
		{"a connectivity check is accepted", request, nil},
		{"a Binding success with an IPv6 address is accepted", build(tb, pion.BindingSuccess,
			&pion.XORMappedAddress{IP: net.ParseIP("2001:db8::1"), Port: 1}, pion.Fingerprint), nil},
		{"a Binding error with code 487 is accepted", build(tb, pion.BindingError, pion.CodeRoleConflict), nil},
		{"an Allocate success is accepted", message(0x0103, attr(0x16, address4), attr(0x0d, make([]byte, 4))), nil},
		{"a Refresh error is accepted", message(0x0114, attr(0x09, []byte{0, 0, 4, 38})), nil},
		{"a ChannelBind success is accepted", message(0x0109), nil},
		{"an unknown attribute is accepted", message(0x0001, attr(0xc057, []byte{0, 1, 0, 10})), nil},

		{"an empty datagram is refused", nil, ErrSize},
		{"a message cut short is refused", request[:len(request)-1], ErrSize},
		{"bytes behind the message are refused", append(bytes.Clone(request), 0, 0, 0, 0), ErrSize},
		{"a length that is no multiple of four is refused", unaligned(), ErrSize},
		{"a message above the datagram limit is refused", message(0x0001, attr(0xc057, make([]byte, MaxSize))), ErrSize},
		{"a wrong cookie is refused", flip(request, 4), ErrCookie},
		{"type bits above 3 are refused", flip(request, 0), ErrCookie},
		{"a Binding indication is refused", message(0x0011), ErrType},
		{"a Data indication is refused", message(0x0017, attr(0x12, nil)), ErrType},
		{"an Allocate request is refused", message(0x0003), ErrType},
		{"a CreatePermission success is refused", message(0x0108), ErrType},
		{"an empty XOR-MAPPED-ADDRESS is refused", message(0x0101, attr(0x20, nil)), ErrAttribute},
		{"an IPv6 family in eight bytes is refused", message(0x0101, attr(0x20, []byte{0, 2, 0, 0, 0, 0, 0, 0})), ErrAttribute},
		{"an IPv4 family in twenty bytes is refused", message(0x0101, attr(0x01, append([]byte{0, 1}, make([]byte, 18)...))), ErrAttribute},
		{"an ERROR-CODE of three bytes is refused", message(0x0111, attr(0x09, make([]byte, 3))), ErrAttribute},
		{"a short MESSAGE-INTEGRITY is refused", message(0x0001, attr(0x08, make([]byte, 16))), ErrAttribute},
		{"a long FINGERPRINT is refused", message(0x0001, attr(0x8028, make([]byte, 8))), ErrAttribute},
		{"an attribute reaching beyond the message is refused", message(0x0001, []byte{0, 6, 0, 5, 1, 2, 3, 4}), ErrAttribute},
		{"half an attribute header cannot pass the alignment", message(0x0001, []byte{0, 6, 0, 0, 0, 6, 0, 1}), ErrAttribute},
		{"too many attributes are refused", message(0x0001, bytes.Repeat(attr(0xc057, nil), MaxAttributes+1)), ErrCount},
		{"USE-CANDIDATE appended behind the integrity is refused",
			message(0x0001, attr(0x08, make([]byte, 20)), attr(0x25, nil)), ErrOrder},
		{"USE-CANDIDATE appended behind the fingerprint is refused",
			message(0x0001, attr(0x08, make([]byte, 20)), attr(0x8028, make([]byte, 4)), attr(0x25, nil)), ErrOrder},
	}
}

func TestCheckJudgesMessages(t *testing.T) {
	for _, c := range judgements(t) {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Check(c.in); !errors.Is(err, c.want) {
				t.Fatalf("Check = %v, want %v", err, c.want)
			}
		})
	}
}

func TestCheckReadsTheHeader(t *testing.T) {
	for typ, want := range map[uint16]Header{
		0x0001: {Method: Binding, Class: Request},
		0x0101: {Method: Binding, Class: Success},
		0x0111: {Method: Binding, Class: Error},
		0x0103: {Method: Allocate, Class: Success},
		0x0113: {Method: Allocate, Class: Error},
		0x0104: {Method: Refresh, Class: Success},
		0x0119: {Method: ChannelBind, Class: Error},
	} {
		want.TransactionID = TransactionID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
		got, err := Check(message(typ))
		if err != nil || got != want {
			t.Errorf("%#04x: got %+v, %v", typ, got, err)
		}
		if id := ID(message(typ)); id != want.TransactionID {
			t.Errorf("%#04x: ID = %v", typ, id)
		}
	}
}

func TestUsernameSplitsAtTheFirstColon(t *testing.T) {
	for _, c := range []struct {
		name, in      string
		local, remote string
		ok            bool
	}{
		{"both halves", "gate:clnt", "gate", "clnt", true},
		{"a second colon belongs to the sender", "gate:cl:nt", "gate", "cl:nt", true},
		{"no colon", "gate", "", "", false},
		{"no receiver", ":clnt", "", "", false},
		{"no sender", "gate:", "", "", false},
		{"nothing", "", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			local, remote, ok := Username(message(0x0001, attr(0x06, []byte(c.in))))
			if ok != c.ok || ok && (string(local) != c.local || string(remote) != c.remote) {
				t.Fatalf("got %q, %q, %v", local, remote, ok)
			}
		})
	}
	if _, _, ok := Username(message(0x0001)); ok {
		t.Fatal("a message without USERNAME has one")
	}
}

func TestVerifyAgreesWithTheSender(t *testing.T) {
	request := checkRequest(t)
	if !NewIntegrity([]byte(password)).Verify(request) {
		t.Error("a valid message is refused")
	}
	if NewIntegrity([]byte("another password, other")).Verify(request) {
		t.Error("a wrong key is accepted")
	}
	for i := range request[:len(request)-8-24] {
		if NewIntegrity([]byte(password)).Verify(flip(request, i)) && i != 2 && i != 3 {
			t.Fatalf("a change of byte %d is accepted", i)
		}
	}
	if NewIntegrity([]byte(password)).Verify(message(0x0001)) {
		t.Error("a message without MESSAGE-INTEGRITY is accepted")
	}
	if s := fmt.Sprintf("%v %+v", NewIntegrity([]byte(password)), NewIntegrity([]byte(password))); bytes.Contains([]byte(s), []byte("0123")) {
		t.Errorf("the key shows: %s", s)
	}
}

func TestNothingAllocates(t *testing.T) {
	request, verifier := checkRequest(t), NewIntegrity([]byte(password))
	if n := testing.AllocsPerRun(100, func() {
		_, _ = Check(request)
		_, _, _ = Username(request)
		_ = verifier.Verify(request)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzCheck(f *testing.F) { fuzzCheck(f) }

// TestHammerCheck has messages say how long they are.
func TestHammerCheck(t *testing.T) {
	hammer.Test(t, "FuzzCheck", fuzzCheck, func(args []any) {
		if b := args[0].([]byte); len(b) >= HeaderSize {
			b = b[:len(b)&^3]
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-HeaderSize))
			binary.BigEndian.PutUint32(b[4:], 0x2112a442)
			args[0] = b
		}
	})
}

func fuzzCheck(f hammer.F) {
	for _, c := range judgements(f) {
		f.Add(c.in)
	}
	f.Add(message(0x0001, attr(0x06, []byte("no colon"))))
	f.Add(message(0x0113, attr(0x14, []byte("realm")), attr(0x15, []byte("nonce")), attr(0x1c, make([]byte, 32))))
	f.Add(message(0x0103, attr(0x16, address4), attr(0x0d, make([]byte, 4)), attr(0x08, make([]byte, 20))))
	f.Add(message(0x0111, attr(0x09, []byte{0, 0, 4, 87, 'x'}), attr(0x0a, make([]byte, 4))))
	f.Add(message(0x0101, attr(0x20, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		_, _, _ = Username(b)
		NewIntegrity([]byte(password)).Verify(b)
		h, err := Check(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			return
		}
		if !Is(b) {
			t.Fatal("Check accepts what Is does not recognise")
		}
		m := &pion.Message{Raw: bytes.Clone(b)}
		if err := m.Decode(); err != nil {
			t.Fatalf("accepted, but does not decode: %v", err)
		}
		if m.TransactionID != [12]byte(h.TransactionID) || uint16(m.Type.Method) != uint16(h.Method) {
			t.Fatalf("header %+v, library %v", h, m)
		}
		exercise(m)
		if got, want := NewIntegrity([]byte(password)).Verify(b), pion.NewShortTermIntegrity(password).Check(m) == nil; got != want {
			t.Fatalf("Verify = %v, library %v", got, want)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	request := checkRequest(b)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = Check(request)
	}
}

func BenchmarkVerify(b *testing.B) {
	request, verifier := checkRequest(b), NewIntegrity([]byte(password))
	b.ReportAllocs()
	for b.Loop() {
		_ = verifier.Verify(request)
	}
}

// exercise calls every getter of the library that could meet the message.
func exercise(m *pion.Message) {
	for _, g := range []pion.Getter{
		&pion.MappedAddress{}, &pion.XORMappedAddress{}, &pion.AlternateServer{}, &pion.ResponseOrigin{}, &pion.OtherAddress{},
		&pion.ErrorCodeAttribute{}, &pion.UnknownAttributes{}, new(pion.Username), new(pion.Realm), new(pion.Nonce), new(pion.Software),
	} {
		_ = g.GetFrom(m)
	}
	for _, a := range []pion.AttrType{pion.AttrXORPeerAddress, pion.AttrXORRelayedAddress, pion.AttrXORMappedAddress} {
		_ = new(pion.XORMappedAddress).GetFromAs(m, a)
	}
	_ = pion.Fingerprint.Check(m)
	_ = m.String()
}

var address4 = []byte{0, 1, 0x11, 0x22, 1, 2, 3, 4}

func checkRequest(tb testing.TB) []byte {
	tb.Helper()
	return build(tb, pion.BindingRequest, pion.TransactionID, pion.NewUsername("gate:clnt"),
		raw{pion.AttrICEControlling, make([]byte, 8)}, raw{pion.AttrPriority, []byte{1, 2, 3, 4}}, raw{pion.AttrUseCandidate, nil},
		pion.NewShortTermIntegrity(password), pion.Fingerprint)
}

func build(tb testing.TB, setters ...pion.Setter) []byte {
	tb.Helper()
	m, err := pion.Build(setters...)
	if err != nil {
		tb.Fatal(err)
	}
	return m.Raw
}

type raw struct {
	typ   pion.AttrType
	value []byte
}

func (r raw) AddTo(m *pion.Message) error { m.Add(r.typ, r.value); return nil }

func message(typ uint16, attrs ...[]byte) []byte {
	body := bytes.Join(attrs, nil)
	b := binary.BigEndian.AppendUint16(nil, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = binary.BigEndian.AppendUint32(b, magicCookie)
	b = append(b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
	return append(b, body...)
}

func attr(typ uint16, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func flip(b []byte, i int) []byte {
	out := bytes.Clone(b)
	out[i] ^= 0x80
	return out
}

func unaligned() []byte {
	b := message(0x0001, attr(0x06, nil), []byte{1})
	return b
}
