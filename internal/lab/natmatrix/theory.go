// Package natmatrix measures through which NATs a client and a gateway find each
// other: every pair of kinds, over IPv4, IPv6 and both, with the real daemon in a
// deployment of its own, against what theory says about the pair.
package natmatrix

import (
	"fmt"
	"slices"
	"strings"

	labnet "firezone-gateway/internal/lab/net"
)

// Family is what the network between the two sides speaks.
type Family uint8

// The families of a network.
const (
	IPv4 Family = iota
	IPv6
	DualStack
)

var familyNames = [...]string{IPv4: "ipv4", IPv6: "ipv6", DualStack: "dual-stack"}

// String returns the name of the family, as UnmarshalText reads it.
func (f Family) String() string {
	if int(f) >= len(familyNames) {
		return fmt.Sprintf("Family(%d)", uint8(f))
	}
	return familyNames[f]
}

// MarshalText returns the name of the family.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads the name of a family.
func (f *Family) UnmarshalText(text []byte) error {
	i := slices.Index(familyNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("family %q is none of %v", text, familyNames)
	}
	*f = Family(i)
	return nil
}

// Way is how packets get from one side to the other.
type Way uint8

const (
	// Direct packets go from the one side's router to the other's.
	Direct Way = iota
	// Relayed packets go through a TURN relay.
	Relayed
)

var wayNames = [...]string{Direct: "direct", Relayed: "relayed"}

// String returns the way in one word.
func (w Way) String() string { return wayNames[w] }

// MarshalText returns the way in one word.
func (w Way) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// Cell is one place of the matrix.
type Cell struct {
	Client  labnet.NATKind `json:"client"`
	Gateway labnet.NATKind `json:"gateway"`
	Family  Family         `json:"family"`
}

// String returns the cell in the form that Select reads.
func (c Cell) String() string {
	return fmt.Sprintf("%v:%v:%v", c.Client, c.Gateway, c.Family)
}

// Cells returns the whole matrix, family by family and row by row.
func Cells() []Cell {
	var cells []Cell
	for f := range Family(len(familyNames)) {
		for _, client := range labnet.NATKinds() {
			for _, gateway := range labnet.NATKinds() {
				cells = append(cells, Cell{client, gateway, f})
			}
		}
	}
	return cells
}

// Select returns the cells that any of the patterns matches; without patterns,
// all. A pattern is CLIENT:GATEWAY:FAMILY, where * stands for anything and what
// is missing at the end for *.
func Select(cells []Cell, patterns ...string) ([]Cell, error) {
	if len(patterns) == 0 {
		return cells, nil
	}
	var selected []Cell
	for _, pattern := range patterns {
		parts := append(strings.Split(pattern, ":"), "*", "*")
		if len(parts) > 5 {
			return nil, fmt.Errorf("pattern %q has more than three parts", pattern)
		}
		found := false
		for _, c := range cells {
			if c.matches(parts) {
				found = true
				if !slices.Contains(selected, c) {
					selected = append(selected, c)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("pattern %q matches no cell: NAT kinds are %v, families %v", pattern, labnet.NATKinds(), familyNames)
		}
	}
	return selected, nil
}

func (c Cell) matches(parts []string) bool {
	for i, name := range []string{c.Client.String(), c.Gateway.String(), c.Family.String()} {
		if parts[i] != "*" && parts[i] != name {
			return false
		}
	}
	return true
}

// Theory returns the best way that there is, which is the one that ICE finds:
// with both families a direct one if any of them has one.
func (c Cell) Theory() Way {
	switch c.Family {
	case IPv4:
		return overIPv4[c.Client][c.Gateway]
	case IPv6:
		return overIPv6[c.Client][c.Gateway]
	default:
		return min(overIPv4[c.Client][c.Gateway], overIPv6[c.Client][c.Gateway])
	}
}

type table [7][7]Way // by client and gateway

const (
	d = Direct
	r = Relayed
)

// overIPv4 is what hole punching (RFC 5128 §3.3) gives with the behaviours of
// RFC 4787. Both sides know of each other the mapping that a relay saw, and send
// to it at the same time; they learn other mappings from what arrives.
//
// Behind an endpoint-independent mapping that address is the right one, and the
// packets sent from there open the filter for the other side's address as known.
// So two such sides always meet. A symmetric NAT sends from another port than
// the one known. It still reaches a side whose filter looks at addresses at most,
// which answers to where the packet came from. A filter that looks at ports does
// not admit it: there, and between two symmetric NATs, only a relay helps, and
// where UDP is blocked anyway.
//
// A double NAT of two equal routers is what each of them is: mappings and filters
// in a row distinguish what the strictest of them does.
var overIPv4 = table{
	//                          none full addr port sym. twice udp-
	labnet.NoNAT:             {d, d, d, d, d, d, r},
	labnet.FullCone:          {d, d, d, d, d, d, r},
	labnet.AddressRestricted: {d, d, d, d, d, d, r},
	labnet.PortRestricted:    {d, d, d, d, r, d, r},
	labnet.Symmetric:         {d, d, d, r, r, r, r},
	labnet.DoubleNAT:         {d, d, d, d, r, d, r},
	labnet.UDPBlocked:        {r, r, r, r, r, r, r},
}

// overIPv6 is the same without mappings: routers only filter, every side is known
// by its own address, and simultaneous packets open all filters.
var overIPv6 = table{
	labnet.NoNAT:             {d, d, d, d, d, d, r},
	labnet.FullCone:          {d, d, d, d, d, d, r},
	labnet.AddressRestricted: {d, d, d, d, d, d, r},
	labnet.PortRestricted:    {d, d, d, d, d, d, r},
	labnet.Symmetric:         {d, d, d, d, d, d, r},
	labnet.DoubleNAT:         {d, d, d, d, d, d, r},
	labnet.UDPBlocked:        {r, r, r, r, r, r, r},
}
