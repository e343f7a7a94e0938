// Package ice answers and sends the connectivity checks of one client each, on
// sockets and relays that all clients share.
//
// Candidate and what belongs to it is pure, and so is the core of an agent, the
// controlled side of ICE as far as a gateway needs it (transport §7.8): it answers
// checks on every local address for as long as it lives, punches holes, and knows
// the best pair. Mux sorts STUN messages to agents, is the only way in and out for
// them, and gives them time.
package ice

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Type is the type of a candidate (RFC 8445 §5.1.1). Peer-reflexive candidates
// are never signalled.
type Type uint8

// The types that are signalled.
const (
	Host Type = iota
	ServerReflexive
	Relay
)

// String returns the type as it appears in candidate strings.
func (t Type) String() string { return [...]string{"host", "srflx", "relay"}[t] }

// Candidate is a transport address at which we or a client can be reached.
type Candidate struct {
	Type Type
	Addr netip.AddrPort
	// Base is, for our own candidates, the local address they belong to; for a
	// relayed address it is the one at which its relay is reached. For a client's it is what
	// the client signalled as related address, or the zero value.
	Base     netip.AddrPort
	Priority uint32
}

// Key identifies a candidate for duplicates and invalidations: type, address
// and related address decide, priority and foundation do not (transport §2.5).
type Key struct {
	Type       Type
	Addr, Base netip.AddrPort
}

// Key returns what identifies c among the candidates of one client.
func (c Candidate) Key() Key { return Key{c.Type, c.Addr, c.Base} }

// Usable reports whether candidates with this address are sent and accepted:
// all but IPv4 link-local, broadcast, multicast and unspecified addresses, IPv6
// multicast and unspecified ones, and port 0 (transport §2.3).
func Usable(a netip.AddrPort) bool {
	ip := a.Addr().Unmap()
	if !ip.IsValid() || a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
		return false
	}
	return !ip.Is4() || !ip.IsLinkLocalUnicast() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Prioritise sets the priority of each of our candidates (transport §2.4): the
// local preference falls by two with every earlier candidate of the same type
// and family in the list, and by 1000 for a relayed address of another family
// than the one that reaches the relay.
func Prioritise(list []Candidate) {
	var earlier [3][2]uint32
	for i := range list {
		c := &list[i]
		six := b2u(!is4(c.Addr))
		local := localPreference[c.Type] + six - 2*earlier[c.Type][six]
		if c.Type == Relay && c.Base.IsValid() && is4(c.Base) != is4(c.Addr) {
			local -= 1000
		}
		c.Priority = priority(typePreference[c.Type], local)
		earlier[c.Type][six]++
	}
}

// Sort orders candidates by priority, highest first, as they are signalled.
func Sort(list []Candidate) {
	slices.SortStableFunc(list, func(a, b Candidate) int { return cmp.Compare(b.Priority, a.Priority) })
}

// Marshal writes the candidate string that clients expect, with the ufrag of
// the gateway as suffix (transport §2.4). The related address is never told.
func (c Candidate) Marshal(ufrag string) string {
	ip := c.Addr.Addr().Unmap()
	hash := fnv.New64a()
	hash.Write([]byte{byte(c.Type)})
	hash.Write(c.Base.Addr().AsSlice())
	hash.Write(ip.AsSlice())
	hash.Write(binary.BigEndian.AppendUint16(nil, c.Addr.Port()))
	s := fmt.Sprintf("candidate:%08x%x 1 udp %d %s %d typ %s",
		bits.ReverseBytes32(c.Priority), hash.Sum64(), c.Priority, ip, c.Addr.Port(), c.Type)
	if c.Type != Host {
		related := "0.0.0.0"
		if ip.Is6() {
			related = "::"
		}
		s += " raddr " + related + " rport 0"
	}
	if ufrag != "" {
		s += " ufrag " + ufrag
	}
	return s
}

// ErrCandidate is wrapped by all errors of Parse.
var ErrCandidate = errors.New("unusable candidate")

// maxCandidate bounds the string; real ones stay below 200 bytes.
const maxCandidate = 512

// Parse reads one candidate string of a client. It accepts both generations:
// fields separated by white space, unknown attributes skipped. Refused are
// other components than 1, transports other than UDP, host names, addresses
// that are not Usable, types that are never signalled, and a ufrag attribute
// that differs from ufrag (transport §2.4, T-20, T-33).
func Parse(s, ufrag string) (Candidate, error) {
	var c Candidate
	if len(s) > maxCandidate {
		return c, fmt.Errorf("%w: %d bytes", ErrCandidate, len(s))
	}
	rest, ok := strings.CutPrefix(s, "candidate:")
	f := strings.Fields(rest)
	if !ok || len(f) < 8 || f[6] != "typ" {
		return c, fmt.Errorf("%w: not a candidate string", ErrCandidate)
	}
	if f[1] != "1" {
		return c, fmt.Errorf("%w: component is not 1", ErrCandidate)
	}
	if !strings.EqualFold(f[2], "udp") {
		return c, fmt.Errorf("%w: transport is not UDP", ErrCandidate)
	}
	prio, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil {
		return c, fmt.Errorf("%w: priority", ErrCandidate)
	}
	addr, ok := parseAddrPort(f[4], f[5])
	if !ok || !Usable(addr) {
		return c, fmt.Errorf("%w: address", ErrCandidate)
	}
	typ := slices.Index([]string{"host", "srflx", "relay"}, f[7])
	if typ < 0 {
		return c, fmt.Errorf("%w: type", ErrCandidate)
	}
	c = Candidate{Type: Type(typ), Addr: addr, Priority: uint32(prio)}
	raddr, rport := "", "0"
	for pairs := f[8:]; len(pairs) >= 2; pairs = pairs[2:] {
		switch value := pairs[1]; pairs[0] {
		case "raddr":
			raddr = value
		case "rport":
			rport = value
		case "ufrag":
			if value != ufrag {
				return Candidate{}, fmt.Errorf("%w: of another agent", ErrCandidate)
			}
		}
	}
	if raddr != "" {
		if c.Base, ok = parseAddrPort(raddr, rport); !ok {
			return Candidate{}, fmt.Errorf("%w: related address", ErrCandidate)
		}
	}
	return c, nil
}

// Optimistic returns further candidates of a client that are worth a check: its
// public IPv4 addresses with the ports of its IPv4 host candidates, because
// many NATs keep the port (T-32). At most two are returned, none that existing
// holds already; they belong behind existing.
func Optimistic(existing []Candidate) []Candidate {
	const most = 2
	var more []Candidate
	for _, public := range existing {
		for _, host := range existing {
			if public.Type != ServerReflexive || host.Type != Host || !is4(public.Addr) || !is4(host.Addr) {
				continue
			}
			guess := public
			guess.Addr = netip.AddrPortFrom(public.Addr.Addr(), host.Addr.Port())
			same := func(c Candidate) bool { return c.Addr == guess.Addr }
			if slices.ContainsFunc(existing, same) || slices.ContainsFunc(more, same) {
				continue
			}
			if more = append(more, guess); len(more) == most {
				return more
			}
		}
	}
	return more
}

// Preferences by type (transport §2.4); localPreference is the one of IPv4.
var (
	typePreference  = [...]uint32{Host: 126, ServerReflexive: 100, Relay: 2}
	localPreference = [...]uint32{Host: 65534, ServerReflexive: 32766, Relay: 16382}
)

const (
	prflxType  = 110
	prflxLocal = 49150
)

func priority(typ, local uint32) uint32 { return typ<<24 + (local&0xffff)<<8 + 255 }

func parseAddrPort(ip, port string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(ip)
	p, perr := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), err == nil && perr == nil && a.Zone() == ""
}

func is4(a netip.AddrPort) bool { return a.Addr().Unmap().Is4() }

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func b2u(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
