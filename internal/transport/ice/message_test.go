package ice

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	stunlib "github.com/pion/stun/v3"

	"firezone-gateway/internal/transport/stun"
)

func TestChecksAreWhatClientsParse(t *testing.T) {
	id := stun.TransactionID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	for _, tt := range []struct {
		name, username string
		six            bool
		priority       uint32
	}{
		{"IPv4", "clnt:gate", false, 0x6ebffeff},
		{"IPv6", "clnt:gate", true, 0x6ebfffff},
		{"a name that needs padding", "abcdef:gate", false, 0x6ebffeff},
		{"a name that needs more padding", "abcde:gatesx", false, 0x6ebffeff},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newSigner(clientPwd).appendCheck(nil, id, tt.username, 0x0102030405060708, tt.six)
			m := decode(t, b, clientPwd)
			name, _ := m.Get(stunlib.AttrUsername)
			tie, _ := m.Get(stunlib.AttrICEControlled)
			prio, _ := m.Get(stunlib.AttrPriority)
			if m.Type != stunlib.BindingRequest || m.TransactionID != id || string(name) != tt.username ||
				!bytes.Equal(tie, []byte{1, 2, 3, 4, 5, 6, 7, 8}) || binary.BigEndian.Uint32(prio) != tt.priority ||
				len(m.Attributes) != 5 {
				t.Errorf("%s", m)
			}
		})
	}
}

func TestAnswersAreWhatClientsParse(t *testing.T) {
	id := stun.TransactionID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	for _, to := range []netip.AddrPort{remote, ap("[2001:db8::17]:65535"), ap("[::ffff:192.0.2.1]:1")} {
		m := decode(t, newSigner(gatewayPwd).appendAnswer(nil, id, to), gatewayPwd)
		var mapped stunlib.XORMappedAddress
		if err := mapped.GetFrom(m); err != nil || m.Type != stunlib.BindingSuccess || m.TransactionID != id || mapped.String() != unmap(to).String() {
			t.Errorf("%s: %s, %v", to, mapped, err)
		}
	}
}

func TestWishesOfARequest(t *testing.T) {
	name := gatewayUfrag + ":" + clientUfrag
	prio := stunlib.RawAttribute{Type: stunlib.AttrPriority, Value: []byte{1, 2, 3, 4}}
	use := stunlib.RawAttribute{Type: stunlib.AttrUseCandidate}
	cost := stunlib.RawAttribute{Type: 0xc057, Value: []byte{0, 1, 2}}
	for _, tt := range []struct {
		name     string
		b        []byte
		priority uint32
		use      bool
	}{
		{"both", request(name, gatewayPwd, prio, use), 0x01020304, true},
		{"the other way round, behind padding", request(name, gatewayPwd, cost, use, prio), 0x01020304, true},
		{"no USE-CANDIDATE", request(name, gatewayPwd, prio), 0x01020304, false},
		{"no PRIORITY", request(name, gatewayPwd, use), prflxPriority, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if p, u := wishes(tt.b); p != tt.priority || u != tt.use {
				t.Errorf("%#x, %v", p, u)
			}
		})
	}
}

func TestMessagesAreBuiltInTheirBuffer(t *testing.T) {
	s, b := newSigner(clientPwd), make([]byte, 0, 128)
	if n := testing.AllocsPerRun(100, func() {
		b = s.appendCheck(b[:0], stun.TransactionID{}, "clnt:gate", 1, false)
		b = s.appendAnswer(b[:0], stun.TransactionID{}, remote)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func decode(t *testing.T, b []byte, pwd string) *stunlib.Message {
	t.Helper()
	if _, err := stun.Check(b); err != nil {
		t.Fatal(err)
	}
	m := &stunlib.Message{Raw: bytes.Clone(b)}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	if err := stunlib.NewShortTermIntegrity(pwd).Check(m); err != nil {
		t.Fatal(err)
	}
	if err := stunlib.Fingerprint.Check(m); err != nil {
		t.Fatal(err)
	}
	return m
}
