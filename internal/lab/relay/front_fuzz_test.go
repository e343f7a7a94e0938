package relay

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// silent is a socket that swallows what is sent.
type silent struct{ net.PacketConn }

func (silent) WriteTo(p []byte, _ net.Addr) (int, error) { return len(p), nil }

// FuzzAdmit holds that whatever arrives, what pion gets to see is a STUN
// message that it decodes without reaching beyond an attribute, and that pion
// serves no request whose user or nonce is not valid.
func FuzzAdmit(f *testing.F) {
	username, password := Credentials("secret", "key", time.Unix(3600, 0))
	integrity := stun.NewLongTermIntegrity(username, Realm, password)
	peer := []byte{0, familyIPv4, 0, 0, 0, 0, 0, 0}
	for _, method := range []stun.Method{
		stun.MethodBinding, stun.MethodAllocate, stun.MethodRefresh, stun.MethodChannelBind, stun.MethodCreatePermission, stun.MethodConnect,
	} {
		plain := stun.MustBuild(stun.NewType(method, stun.ClassRequest), stun.NewUsername(username), stun.NewRealm(Realm), integrity, stun.Fingerprint)
		f.Add(plain.Raw)
		for _, nonce := range []string{"nonce", "stale"} {
			full := stun.MustBuild(stun.NewType(method, stun.ClassRequest), stun.NewUsername(username), stun.NewRealm(Realm), stun.NewNonce(nonce),
				stun.RawAttribute{Type: stun.AttrXORPeerAddress, Value: peer},
				stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{0x40, 0, 0, 0}},
				stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{protocolUDP, 0, 0, 0}},
				stun.RawAttribute{Type: attrAdditionalAddressFamily, Value: []byte{2, 0, 0, 0}}, integrity)
			f.Add(full.Raw)
		}
	}
	f.Add(stun.MustBuild(stun.NewType(stun.MethodSend, stun.ClassIndication), stun.RawAttribute{Type: stun.AttrXORPeerAddress, Value: peer}).Raw)
	address := netip.MustParseAddrPort("192.0.2.2:1")
	client := net.UDPAddrFromAddrPort(address)
	server := &Server{options: Options{
		Secret: "secret", IPv4: netip.MustParseAddr("192.0.2.1"),
		Now: func() time.Time { return time.Unix(0, 0) },
	}}
	front := newFront(server, silent{})
	front.allocations[address] = &allocation{front: front}
	f.Fuzz(func(t *testing.T, b []byte) {
		server.nonces.valid = map[netip.AddrPort]*nonce{address: {value: "nonce"}}
		kept := append([]byte(nil), b...)
		n := front.admit(kept, len(kept), client)
		if n == 0 {
			return
		}
		m := &stun.Message{Raw: kept[:n]}
		if err := m.Decode(); err != nil || !sound(m) {
			t.Fatalf("%x passes as %x: %v", b, kept[:n], err)
		}
		if m.Type.Class != stun.ClassRequest {
			t.Fatalf("%x passes, a %v", b, m.Type)
		}
		if m.Type.Method == stun.MethodBinding || !m.Contains(stun.AttrMessageIntegrity) {
			return
		}
		value, _ := m.Get(stun.AttrNonce)
		spoilt := len(bytes.Trim(value, "\x00")) == 0
		if !spoilt && (string(value) != "nonce" || !front.authenticated(m)) {
			t.Fatalf("%x passes without authentication", b)
		}
	})
}

// FuzzPayloadOf holds that a strict relay forwards exactly the bytes that
// belong together, and that a lenient one differs in padding only.
func FuzzPayloadOf(f *testing.F) {
	for _, b := range []string{"", "@", "@\x00\x00\x00", "@\x00\x00\x04data", "@\x00\x00\x03dat\x00", "@\x00\x00\x09x", "\x4f\xff\x00\x01x", "\x50\x00\x00\x01x"} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		number, payload, ok := payloadOf(b, false)
		lenientNumber, cut, lenient := payloadOf(b, true)
		switch {
		case ok && (number < minChannel || number > maxChannel || !bytes.Equal(payload, b[channelHeader:])):
			t.Fatalf("%x is channel %x, payload %x", b, number, payload)
		case ok && (!lenient || lenientNumber != number || !bytes.Equal(cut, payload)):
			t.Fatalf("%x is payload %x, leniently %x", b, payload, cut)
		case lenient && !bytes.HasPrefix(b[channelHeader:], cut):
			t.Fatalf("%x is leniently payload %x", b, cut)
		}
	})
}
