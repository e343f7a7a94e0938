package relay

import (
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
// message that it decodes without reaching beyond an attribute.
func FuzzAdmit(f *testing.F) {
	server := &Server{options: Options{
		Secret: "secret", IPv4: netip.MustParseAddr("192.0.2.1"),
		Now: func() time.Time { return time.Unix(0, 0) },
	}}
	username, password := Credentials("secret", "key", time.Unix(3600, 0))
	integrity := stun.NewLongTermIntegrity(username, Realm, password)
	for _, method := range []stun.Method{stun.MethodBinding, stun.MethodAllocate, stun.MethodRefresh, stun.MethodChannelBind} {
		plain := stun.MustBuild(stun.NewType(method, stun.ClassRequest), stun.NewUsername(username), stun.NewRealm(Realm), integrity, stun.Fingerprint)
		f.Add(plain.Raw)
		full := stun.MustBuild(stun.NewType(method, stun.ClassRequest), stun.NewUsername(username), stun.NewRealm(Realm), stun.NewNonce("nonce"),
			stun.RawAttribute{Type: stun.AttrXORPeerAddress, Value: make([]byte, 8)},
			stun.RawAttribute{Type: attrAdditionalAddressFamily, Value: []byte{2, 0, 0, 0}}, integrity)
		f.Add(full.Raw)
	}
	front := newFront(server, silent{})
	client := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1}
	f.Fuzz(func(t *testing.T, b []byte) {
		kept := append([]byte(nil), b...)
		n := front.admit(kept, len(kept), client)
		if n == 0 {
			return
		}
		m := &stun.Message{Raw: kept[:n]}
		if err := m.Decode(); err != nil || !sound(m) {
			t.Fatalf("%x passes as %x: %v", b, kept[:n], err)
		}
		if m.Type.Class == stun.ClassRequest && m.Type.Method != stun.MethodBinding && m.Contains(stun.AttrMessageIntegrity) && !front.authenticated(m) {
			t.Fatalf("%x passes without authentication", b)
		}
	})
}
