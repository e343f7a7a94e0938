package relay

import (
	"net"

	"github.com/pion/stun/v3"
)

// admit looks at a STUN message of n bytes at the beginning of p and returns
// the length of what pion shall see of it, 0 for nothing. It answers itself
// where pion would not.
func (f *front) admit(p []byte, n int, client net.Addr) int {
	m := &stun.Message{Raw: append([]byte(nil), p[:n]...)}
	if err := m.Decode(); err != nil || n != stunHeader+int(m.Length) || !sound(m) {
		f.server.stats.malformed.Add(1)
		return 0
	}
	method := m.Type.Method
	if m.Type.Class != stun.ClassRequest {
		if f.server.options.Lenient {
			return n
		}
		f.server.stats.indications.Add(1)
		return 0
	}
	if method == stun.MethodBinding {
		if code, ok := f.fault(method, true); ok {
			f.request = request{message: m, client: client}
			return f.answer(code, p[:n])
		}
		return n
	}
	f.request = request{message: m, client: client, integrity: f.server.integrityOf(m)}
	if !f.authenticated(m) {
		if m.Contains(stun.AttrNonce) {
			f.server.stats.unauthorized.Add(1)
		}
		if _, ok := f.fault(method, false); ok {
			return 0
		}
		return f.answer(stun.CodeUnauthorized, p[:n])
	}
	if !f.server.nonces.use(addrPortOf(client), m) {
		if _, ok := f.fault(method, false); ok {
			return 0
		}
		return f.answer(stun.CodeStaleNonce, p[:n])
	}
	if code, ok := f.fault(method, true); ok {
		return f.answer(code, p[:n])
	}
	if code := f.refusal(m); code != 0 {
		return f.answer(code, p[:n])
	}
	if method == stun.MethodCreatePermission && !f.server.options.Lenient {
		f.respond(stun.ClassSuccessResponse, 0)
		return 0
	}
	return n
}

// fault returns the answer that Faults have for the request at hand.
func (f *front) fault(method stun.Method, served bool) (stun.ErrorCode, bool) {
	code, ok := f.server.faults.take(method, served)
	if ok {
		f.server.stats.faults.Add(1)
	}
	return code, ok
}

// answer makes sure that the request p is answered with a code, or not at all
// for 0. It returns the length of what pion shall see of it: pion has the
// nonces. A request without MESSAGE-INTEGRITY it answers 401, whatever else is
// wrong, one with a nonce that is none 438, each with a new nonce.
func (f *front) answer(code stun.ErrorCode, p []byte) int {
	switch {
	case code == 0:
	case f.request.message.Type.Method == stun.MethodBinding:
		f.respond(stun.ClassErrorResponse, code)
	case code == stun.CodeUnauthorized:
		return withoutIntegrity(p)
	case code == stun.CodeStaleNonce:
		spoilNonce(p)
		return len(p)
	default:
		f.respond(stun.ClassErrorResponse, code)
	}
	return 0
}

// respond answers the request at hand in pion's place, with an error code
// unless that is 0. A response that cannot be sent is a datagram lost.
func (f *front) respond(class stun.MessageClass, code stun.ErrorCode) {
	response := stun.MustBuild(
		stun.NewTransactionIDSetter(f.request.message.TransactionID),
		stun.NewType(f.request.message.Type.Method, class),
	)
	var err error
	if code != 0 {
		// The library knows reasons for some codes only.
		err = stun.ErrorCodeAttribute{Code: code}.AddTo(response)
	}
	if err == nil && f.request.integrity != nil {
		err = f.request.integrity.AddTo(response)
	}
	if err == nil {
		_, _ = f.PacketConn.WriteTo(response.Raw, f.request.client)
	}
}

// integrityOf returns the key of the user that a message names, nil without.
func (s *Server) integrityOf(m *stun.Message) stun.MessageIntegrity {
	var username stun.Username
	if username.GetFrom(m) != nil {
		return nil
	}
	password, _, err := passwordOf(s.options.Secret, username.String())
	if err != nil {
		return nil
	}
	return stun.NewLongTermIntegrity(username.String(), Realm, password)
}

// authenticated reports whether the request carries everything that pion wants
// to see, signed by a user who has not expired. The nonce is not judged.
func (f *front) authenticated(m *stun.Message) bool {
	var username stun.Username
	var realm stun.Realm
	if username.GetFrom(m) != nil || realm.GetFrom(m) != nil || realm.String() != Realm || !m.Contains(stun.AttrNonce) {
		return false
	}
	if _, ok := f.server.key(username.String(), Realm, nil); !ok {
		return false
	}
	f.request.username = username.String()
	return f.request.integrity.Check(m) == nil
}

// refusal returns the error that a request with valid credentials deserves
// before pion sees it, 0 for none. It settles the families of an Allocate.
func (f *front) refusal(m *stun.Message) (code stun.ErrorCode) {
	strict := !f.server.options.Lenient
	switch m.Type.Method {
	case stun.MethodAllocate:
		transport, _ := m.Attributes.Get(stun.AttrRequestedTransport)
		if strict && (len(transport.Value) < 1 || transport.Value[0] != protocolUDP) {
			return stun.CodeBadRequest
		}
		f.request.families, code = f.server.familiesOf(m)
		return code
	case stun.MethodRefresh, stun.MethodCreatePermission, stun.MethodChannelBind:
	default:
		return stun.CodeBadRequest
	}
	allocation := f.allocationOf(addrPortOf(f.request.client))
	if allocation == nil {
		return stun.CodeAllocMismatch
	}
	if m.Type.Method != stun.MethodChannelBind {
		return 0
	}
	number, _, ok := bindingOf(m)
	peer, _ := m.Attributes.Get(stun.AttrXORPeerAddress)
	switch {
	case !ok || number < minChannel || number > maxChannel:
		return stun.CodeBadRequest
	case !allocation.families.include(peer.Value[1]):
		return stun.CodePeerAddrFamilyMismatch
	}
	return 0
}

// learn takes what the front has to know from pion's response to the request at
// hand, before the client can act on it.
func (f *front) learn(response *stun.Message) {
	client := addrPortOf(f.request.client)
	if response.Type.Class == stun.ClassErrorResponse {
		f.server.nonces.issued(client, response)
		return
	}
	if response.Type.Method != stun.MethodChannelBind {
		return
	}
	number, peer, ok := bindingOf(f.request.message)
	if a := f.allocationOf(client); ok && a != nil {
		a.bind(number, peer, f.server.options.Now())
	}
}

// amend signs errors, and adds the IPv6 address to an allocation that has both.
func (f *front) amend(p []byte) ([]byte, error) {
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	if err := m.Decode(); err != nil {
		return nil, err
	}
	f.learn(m)
	second := m.Type.Class == stun.ClassSuccessResponse && f.request.families == bothFamilies
	unsigned := m.Type.Class == stun.ClassErrorResponse && !m.Contains(stun.AttrMessageIntegrity)
	if f.request.integrity == nil || !second && !unsigned {
		return p, nil
	}
	if second {
		var first stun.XORMappedAddress
		if err := first.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
			return nil, err
		}
		m.Raw = m.Raw[:withoutIntegrity(m.Raw)]
		if err := m.Decode(); err != nil {
			return nil, err
		}
		also := stun.XORMappedAddress{IP: f.server.options.IPv6.AsSlice(), Port: first.Port}
		if err := also.AddToAs(m, stun.AttrXORRelayedAddress); err != nil {
			return nil, err
		}
	}
	if err := f.request.integrity.AddTo(m); err != nil {
		return nil, err
	}
	return m.Raw, nil
}
