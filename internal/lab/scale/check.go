package scale

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v3"
)

// credentials are what both sides of a connection check with.
type credentials struct {
	ours, theirs iceCredentials
	tie          [8]byte
}

type iceCredentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// prflxPriority is the PRIORITY of our checks: our host candidate's with the
// type preference of a peer-reflexive one (transport §2.2).
func prflxPriority(a netip.Addr) uint32 {
	const typePreference = 110
	local := uint32(49150)
	if a.Is6() {
		local++
	}
	return typePreference<<24 | local<<8 | 255
}

// request returns a check with a new transaction id (transport §2.2).
func (c *credentials) request(local netip.Addr, nominate bool) ([]byte, [stun.TransactionIDSize]byte) {
	m := stun.New()
	m.TransactionID = stun.NewTransactionID()
	m.Type = stun.BindingRequest
	m.WriteHeader()
	m.Add(stun.AttrUsername, []byte(c.theirs.Username+":"+c.ours.Username))
	m.Add(stun.AttrICEControlling, c.tie[:])
	m.Add(stun.AttrPriority, binary.BigEndian.AppendUint32(nil, prflxPriority(local)))
	if nominate {
		m.Add(stun.AttrUseCandidate, nil)
	}
	sign(m, c.theirs.Password)
	return m.Raw, m.TransactionID
}

// success answers a request of the gateway.
func (c *credentials) success(id [stun.TransactionIDSize]byte, remote netip.AddrPort) []byte {
	m := stun.New()
	m.TransactionID = id
	m.Type = stun.BindingSuccess
	m.WriteHeader()
	mapped := stun.XORMappedAddress{IP: remote.Addr().AsSlice(), Port: int(remote.Port())}
	if err := mapped.AddTo(m); err != nil {
		panic(err) // the address is one of a datagram
	}
	sign(m, c.ours.Password)
	return m.Raw
}

func sign(m *stun.Message, password string) {
	if err := stun.NewShortTermIntegrity(password).AddTo(m); err != nil {
		panic(err) // there is no FINGERPRINT yet
	}
	if err := stun.Fingerprint.AddTo(m); err != nil {
		panic(err) // it never fails
	}
}

// parseCheck returns an authenticated request or success of the gateway.
// priority is that of a request.
func (c *credentials) parseCheck(b []byte) (m *stun.Message, priority uint32, ok bool) {
	m = &stun.Message{Raw: b}
	if m.Decode() != nil {
		return nil, 0, false
	}
	switch m.Type {
	case stun.BindingRequest:
		name, err := m.Get(stun.AttrUsername)
		if err != nil || string(name) != c.ours.Username+":"+c.theirs.Username {
			return nil, 0, false
		}
		p, err := m.Get(stun.AttrPriority)
		if err != nil || len(p) != 4 {
			return nil, 0, false
		}
		return m, binary.BigEndian.Uint32(p), stun.NewShortTermIntegrity(c.ours.Password).Check(m) == nil
	case stun.BindingSuccess:
		var mapped stun.XORMappedAddress
		return m, 0, mapped.GetFrom(m) == nil && stun.NewShortTermIntegrity(c.theirs.Password).Check(m) == nil
	}
	return nil, 0, false
}

// isSTUN tells STUN from WireGuard by the magic cookie.
func isSTUN(b []byte) bool {
	return len(b) >= 20 && b[0] < 64 && binary.BigEndian.Uint32(b[4:]) == 0x2112a442
}
