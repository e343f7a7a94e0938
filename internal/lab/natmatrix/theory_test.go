package natmatrix

import (
	"strings"
	"testing"

	"firezone-gateway/internal/lab/natbox"
	labnet "firezone-gateway/internal/lab/net"
)

// The tables are held against a simulation of hole punching with the mappings
// and filters of RFC 4787, which knows nothing of them.
func TestTheoryIsWhatHolePunchingGives(t *testing.T) {
	for _, c := range Cells() {
		want := Relayed
		for _, v6 := range []bool{false, true} {
			if (c.Family == IPv4 && v6) || (c.Family == IPv6 && !v6) {
				continue
			}
			if c.Client != labnet.UDPBlocked && c.Gateway != labnet.UDPBlocked && punches(c.Client, c.Gateway, v6) {
				want = Direct
			}
		}
		if got := c.Theory(); got != want {
			t.Errorf("%v is %v in the table, punching gives %v", c, got, want)
		}
	}
}

// node is one side of a simulated punch. Remote endpoints are the other side's
// address with one of two ports: the one that the relay saw, and the one that
// a symmetric NAT uses towards this side.
type node struct {
	behaviour natbox.Behaviour
	open      bool         // nothing is filtered
	v6        bool         // nothing is mapped
	sentTo    map[int]bool // ports of the other side
}

const (
	seenByRelay = 1
	towardsPeer = 2
)

func (n *node) sourcePort() int {
	if n.v6 || n.open || n.behaviour.Mapping == natbox.EndpointIndependent {
		return seenByRelay
	}
	return towardsPeer
}

// admits reports whether what comes from a port of the other side to a port of
// this one gets in.
func (n *node) admits(from, to int) bool {
	if to != n.sourcePort() {
		return false // of a mapping for somebody else
	}
	if n.open || n.behaviour.Filtering == natbox.EndpointIndependent {
		return true
	}
	if n.behaviour.Filtering == natbox.AddressDependent {
		return len(n.sentTo) > 0
	}
	return n.sentTo[from]
}

// punches lets both sides send to every port they know of the other for some
// rounds, and reports whether packets get through in both directions.
func punches(client, gateway labnet.NATKind, v6 bool) bool {
	side := func(kind labnet.NATKind) *node {
		b, translates := kind.Behaviour()
		return &node{behaviour: b, open: !translates, v6: v6, sentTo: map[int]bool{}}
	}
	a, b := side(client), side(gateway)
	known := map[*node][]int{a: {seenByRelay}, b: {seenByRelay}} // ports of the other side
	heard := map[*node]bool{}
	send := func(from, to *node) {
		for _, port := range known[from] {
			from.sentTo[port] = true
			if to.admits(from.sourcePort(), port) {
				heard[to] = true
				known[to] = append(known[to], from.sourcePort())
			}
		}
	}
	for range 4 {
		send(a, b)
		send(b, a)
	}
	return heard[a] && heard[b]
}

func TestTheMatrixHasEveryCellOnce(t *testing.T) {
	seen := map[Cell]bool{}
	for _, c := range Cells() {
		if seen[c] {
			t.Errorf("%v occurs twice", c)
		}
		seen[c] = true
	}
	if want := 7 * 7 * 3; len(seen) != want {
		t.Errorf("%d cells, want %d", len(seen), want)
	}
}

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		patterns string
		want     int
		first    string
	}{
		{"", 147, "none:none:ipv4"},
		{"symmetric:full-cone:ipv4", 1, "symmetric:full-cone:ipv4"},
		{"symmetric:*:ipv4", 7, "symmetric:none:ipv4"},
		{"symmetric", 21, "symmetric:none:ipv4"},
		{"*:*:ipv6", 49, "none:none:ipv6"},
		{"symmetric:none:ipv4 symmetric:none", 3, "symmetric:none:ipv4"},
	} {
		got, err := Select(Cells(), strings.Fields(c.patterns)...)
		if err != nil || len(got) != c.want || got[0].String() != c.first {
			t.Errorf("%q selects %d cells, error %v", c.patterns, len(got), err)
		}
	}
	for _, pattern := range []string{"magic", "none:none:ipv4:x", "none::ipv4", ":"} {
		if got, err := Select(Cells(), pattern); err == nil {
			t.Errorf("%q selects %v", pattern, got)
		}
	}
}

func TestFamiliesAreReadByName(t *testing.T) {
	for f := range Family(len(familyNames)) {
		var read Family
		text, _ := f.MarshalText()
		if err := read.UnmarshalText(text); err != nil || read != f {
			t.Errorf("%v is read as %v, error %v", f, read, err)
		}
	}
	var f Family
	if f.UnmarshalText([]byte("ipx")) == nil || Family(9).String() != "Family(9)" {
		t.Error("an unknown family has a name")
	}
}
