package relay

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/pion/stun/v3"
)

// front stands between a listening socket and pion's server, as its PacketConn
// and as its generator of relayed sockets.
//
// pion serves each socket by one goroutine: it reads a request, handles it and
// writes the response before it reads again. So the request at hand needs no
// lock, and whatever pion asks for in between is about that request. The data
// of allocations is written by other goroutines and never touches it.
type front struct {
	net.PacketConn
	server  *Server
	request request // the one at hand

	mu          sync.Mutex
	allocations map[netip.AddrPort]*relayedConn // guarded by mu; by client
}

// request is what the front must remember of a STUN request until its response.
type request struct {
	message *stun.Message
	client  net.Addr
	// integrity signs the response; empty when the request names no user.
	integrity stun.MessageIntegrity
	families  families
}

// families of the addresses that an allocation has.
type families uint8

const (
	onlyIPv4 families = iota
	onlyIPv6
	bothFamilies
)

// include reports whether there is an address of the family, in STUN's numbers.
func (f families) include(family byte) bool {
	return f == bothFamilies || (f == onlyIPv6) == (family == familyIPv6)
}

func newFront(s *Server, conn net.PacketConn) *front {
	return &front{PacketConn: conn, server: s, allocations: make(map[netip.AddrPort]*relayedConn)}
}

// ReadFrom returns the next datagram that pion shall handle.
func (f *front) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, client, err := f.PacketConn.ReadFrom(p)
		if err != nil {
			return n, client, err
		}
		f.request = request{}
		switch {
		case n > 0 && p[0]>>6 == 1: // ChannelData (RFC 8656 §12.4)
			return n, client, nil
		case n > 0 && p[0]>>6 == 0:
			if n = f.admit(p, n, client); n > 0 {
				return n, client, nil
			}
		default:
			f.server.stats.malformed.Add(1)
		}
	}
}

// WriteTo sends what pion has to say, with the responses amended and without
// the padding of ChannelData, which has none over UDP here.
func (f *front) WriteTo(p []byte, to net.Addr) (int, error) {
	if len(p) >= channelHeader && p[0]>>6 == 1 {
		p = p[:min(len(p), channelHeader+int(binary.BigEndian.Uint16(p[2:])))]
	}
	if !isResponse(p) || f.request.message == nil {
		return f.PacketConn.WriteTo(p, to)
	}
	amended, err := f.amend(p)
	if err != nil {
		return 0, err
	}
	if _, err := f.PacketConn.WriteTo(amended, to); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Validate satisfies turn.RelayAddressGenerator.
func (f *front) Validate() error { return nil }

// AllocatePacketConn opens the relayed socket for the request at hand. The
// network that pion names is always "udp4" and says nothing.
func (f *front) AllocatePacketConn(string, int) (net.PacketConn, net.Addr, error) {
	conn, address, err := f.server.listenRelayed(f.request.families)
	if err != nil {
		return nil, nil, err
	}
	relayed := &relayedConn{PacketConn: conn, front: f, client: addrPortOf(f.request.client), families: f.request.families}
	f.server.stats.open.Add(1)
	f.server.stats.allocated.Add(1)
	f.server.relayed.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allocations[relayed.client] = relayed
	return relayed, net.UDPAddrFromAddrPort(address), nil
}

// AllocateConn refuses: relays do not allocate TCP.
func (f *front) AllocateConn(string, int) (net.Conn, net.Addr, error) {
	return nil, nil, errors.ErrUnsupported
}

// admit looks at a STUN message of n bytes at the beginning of p and returns
// the length of what pion shall see of it, 0 for nothing. It answers itself
// where pion would not.
func (f *front) admit(p []byte, n int, client net.Addr) int {
	m := &stun.Message{Raw: append([]byte(nil), p[:n]...)}
	if err := m.Decode(); err != nil || n != stunHeader+int(m.Length) || !sound(m) {
		f.server.stats.malformed.Add(1)
		return 0
	}
	if m.Type.Class != stun.ClassRequest || m.Type.Method == stun.MethodBinding {
		return n
	}
	f.request = request{message: m, client: client, integrity: f.server.integrityOf(m)}
	if !f.authenticated(m) {
		if m.Contains(stun.AttrNonce) {
			f.server.stats.unauthorized.Add(1)
		}
		// To a request without MESSAGE-INTEGRITY pion answers 401 with a
		// fresh nonce, whatever was wrong with it.
		return withoutIntegrity(p[:n])
	}
	if code := f.refusal(m); code != 0 {
		// A refusal that cannot be sent is a datagram lost.
		_ = f.refuse(code)
		return 0
	}
	return n
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
// to see, signed by a user who has not expired. The nonce is for pion to judge.
func (f *front) authenticated(m *stun.Message) bool {
	var username stun.Username
	var realm stun.Realm
	if username.GetFrom(m) != nil || realm.GetFrom(m) != nil || realm.String() != Realm || !m.Contains(stun.AttrNonce) {
		return false
	}
	if _, ok := f.server.key(username.String(), Realm, nil); !ok {
		return false
	}
	return f.request.integrity.Check(m) == nil
}

// refusal returns the error that an authenticated request deserves before pion
// sees it, 0 for none. It settles the families of an Allocate.
func (f *front) refusal(m *stun.Message) stun.ErrorCode {
	if m.Type.Method == stun.MethodAllocate {
		var code stun.ErrorCode
		f.request.families, code = f.server.familiesOf(m)
		return code
	}
	f.mu.Lock()
	allocation := f.allocations[addrPortOf(f.request.client)]
	f.mu.Unlock()
	if allocation == nil {
		return stun.CodeAllocMismatch
	}
	peer, ok := m.Attributes.Get(stun.AttrXORPeerAddress)
	if m.Type.Method == stun.MethodChannelBind && ok && !allocation.families.include(peer.Value[1]) {
		return stun.CodePeerAddrFamilyMismatch
	}
	return 0
}

func (f *front) refuse(code stun.ErrorCode) error {
	response, err := stun.Build(
		stun.NewTransactionIDSetter(f.request.message.TransactionID),
		stun.NewType(f.request.message.Type.Method, stun.ClassErrorResponse),
		code,
		f.request.integrity,
	)
	if err != nil {
		return err
	}
	_, err = f.PacketConn.WriteTo(response.Raw, f.request.client)
	return err
}

// amend signs errors, and adds the IPv6 address to an allocation that has both.
func (f *front) amend(p []byte) ([]byte, error) {
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	if err := m.Decode(); err != nil {
		return nil, err
	}
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

func (f *front) forget(conn *relayedConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.allocations[conn.client] == conn {
		delete(f.allocations, conn.client)
	}
}

const (
	stunHeader    = 20
	channelHeader = 4
	// attrAdditionalAddressFamily is of RFC 8656 §18.13, unknown to pion/stun.
	attrAdditionalAddressFamily = stun.AttrType(0x8000)
	familyIPv4                  = 1
	familyIPv6                  = 2
)

// familiesOf returns the families that an Allocate request gets, or the code
// of the refusal (transport §4.4).
func (s *Server) familiesOf(m *stun.Message) (families, stun.ErrorCode) {
	requested, hasRequested := m.Attributes.Get(stun.AttrRequestedAddressFamily)
	additional, hasAdditional := m.Attributes.Get(attrAdditionalAddressFamily)
	has4, has6 := s.options.IPv4.IsValid(), s.options.IPv6.IsValid()
	switch {
	case hasRequested && hasAdditional,
		hasRequested && len(requested.Value) != 4,
		hasAdditional && (len(additional.Value) != 4 || additional.Value[0] != familyIPv6):
		return 0, stun.CodeBadRequest
	case hasAdditional && has4 && has6:
		return bothFamilies, 0
	case hasAdditional && has6:
		return onlyIPv6, 0
	case hasRequested && requested.Value[0] == familyIPv6 && has6:
		return onlyIPv6, 0
	case hasRequested && requested.Value[0] != familyIPv4, !has4:
		return 0, stun.CodeAddrFamilyNotSupported
	}
	return onlyIPv4, 0
}

// sound reports whether the attributes whose length pion takes for granted
// have the length of their address family (RFC 8489 §14.1).
func sound(m *stun.Message) bool {
	for _, a := range m.Attributes {
		switch a.Type {
		case stun.AttrXORPeerAddress, stun.AttrXORMappedAddress, stun.AttrXORRelayedAddress:
			if len(a.Value) != 8 && len(a.Value) != 20 {
				return false
			}
			if (a.Value[1] == familyIPv4) != (len(a.Value) == 8) {
				return false
			}
		}
	}
	return true
}

// withoutIntegrity cuts MESSAGE-INTEGRITY, and what follows it, off a
// well-formed STUN message in place and returns the length left.
func withoutIntegrity(p []byte) int {
	at := stunHeader
	for at+4 <= len(p) && stun.AttrType(binary.BigEndian.Uint16(p[at:])) != stun.AttrMessageIntegrity {
		at += 4 + (int(binary.BigEndian.Uint16(p[at+2:]))+3)&^3
	}
	at = min(at, len(p))
	binary.BigEndian.PutUint16(p[2:], uint16(at-stunHeader))
	return at
}

// isResponse reports whether p is a STUN message of one of the two response
// classes, whose common bit is the lowest of the first byte.
func isResponse(p []byte) bool {
	return len(p) >= stunHeader && p[0]>>6 == 0 && p[0]&1 == 1
}
