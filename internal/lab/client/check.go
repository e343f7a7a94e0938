package client

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pion/stun/v3"
)

// peerReflexive is the type preference that stands in the PRIORITY of checks.
const peerReflexive = 110

// request sends a check (transport §2.2).
func (a *agent) request(p *pair) {
	setters := []stun.Setter{
		stun.TransactionID, stun.BindingRequest,
		stun.NewUsername(a.cfg.remote.Username + ":" + a.cfg.local.Username),
		stun.RawAttribute{Type: stun.AttrICEControlling, Value: a.tie[:]},
		stun.RawAttribute{Type: stun.AttrPriority, Value: binary.BigEndian.AppendUint32(nil, p.leg.priority()&0xffffff|peerReflexive<<24)},
	}
	if p.nominated {
		setters = append(setters, stun.RawAttribute{Type: stun.AttrUseCandidate})
	}
	m, err := stun.Build(append(setters, stun.NewShortTermIntegrity(a.cfg.remote.Password), stun.Fingerprint)...)
	if err != nil {
		return
	}
	if p.sent = append(p.sent, m.TransactionID); len(p.sent) > checkLimit {
		p.sent = slices.Delete(p.sent, 0, 1)
	}
	// What cannot be sent is as lost as what is not answered.
	_, _ = p.leg.WriteTo(m.Raw, net.UDPAddrFromAddrPort(p.remote))
}

// handle takes one STUN message. What is not authentic is ignored.
func (a *agent) handle(d arrived) {
	m := &stun.Message{Raw: d.data}
	if m.Decode() != nil {
		return
	}
	switch m.Type {
	case stun.BindingRequest:
		if stun.NewShortTermIntegrity(a.cfg.local.Password).Check(m) == nil {
			a.requested(d, m)
		}
	case stun.BindingSuccess:
		if stun.NewShortTermIntegrity(a.cfg.remote.Password).Check(m) != nil {
			return
		}
		for _, p := range a.pairs {
			if slices.Contains(p.sent, m.TransactionID) {
				a.answeredBy(p, time.Now())
				return
			}
		}
	}
}

// requested answers a check of the gateway. It may come from an address that is
// not known, and it makes a pair that is dead or gone one to check.
func (a *agent) requested(d arrived, m *stun.Message) {
	var name stun.Username
	priority, err := m.Get(stun.AttrPriority)
	if name.GetFrom(m) != nil || name.String() != a.cfg.local.Username+":"+a.cfg.remote.Username || err != nil || len(priority) != 4 || a.revoked[d.from] {
		return
	}
	mapped := &stun.XORMappedAddress{IP: d.from.Addr().AsSlice(), Port: int(d.from.Port())}
	response, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess, mapped,
		stun.NewShortTermIntegrity(a.cfg.local.Password), stun.Fingerprint)
	if err != nil {
		return
	}
	_, _ = d.leg.WriteTo(response.Raw, net.UDPAddrFromAddrPort(d.from))
	if a.remotes[d.from] == 0 {
		a.remotes[d.from] = binary.BigEndian.Uint32(priority)
	}
	if p := a.pairUp(d.leg, d.from); !p.answered && p.pending > 1 {
		p.next = time.Now()
	}
}

// remoteCandidate is what an agent needs to know of a candidate.
type remoteCandidate struct {
	addr     netip.AddrPort
	priority uint32
}

// parseCandidate reads a candidate string (transport §2.4).
func parseCandidate(line string) (remoteCandidate, bool) {
	fields := strings.Fields(line)
	if len(fields) < 8 || !strings.HasPrefix(fields[0], "candidate:") || fields[1] != "1" || !strings.EqualFold(fields[2], "udp") || fields[6] != "typ" {
		return remoteCandidate{}, false
	}
	priority, err := strconv.ParseUint(fields[3], 10, 32)
	if err != nil || priority == 0 {
		return remoteCandidate{}, false
	}
	addr, err := netip.ParseAddr(fields[4])
	if err != nil {
		return remoteCandidate{}, false
	}
	port, err := strconv.ParseUint(fields[5], 10, 16)
	if err != nil || port == 0 {
		return remoteCandidate{}, false
	}
	return remoteCandidate{netip.AddrPortFrom(addr, uint16(port)), uint32(priority)}, true
}
