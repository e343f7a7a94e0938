package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// networks finds the narrowest network around an address. The address space is
// cut at the ends of all networks; between two cuts the answer is the same. A
// client's cuts, entries, rules and filters fill a few neighbouring cache lines,
// which is what counts when packets of many clients alternate.
type networks struct {
	v4      []cut4
	v6      []cut6
	entries []entry // entries[0] is none
}

// A cut says which entry holds from an address on.
type (
	cut4 struct {
		from  uint32
		entry int32
	}
	cut6 struct {
		high, low uint64
		entry     int32
	}
)

// entry is one distinct network. Nearly all have a single rule, which is kept
// here to save a cache line; the others are in Snapshot.rules[more:end].
type entry struct {
	rule      rule  // the one with the greatest resource ID
	wider     int32 // the next wider network that contains this one, 0: none
	more, end int32 // further rules, greatest resource ID first
}

// lookup returns the index of the entry of the narrowest network around a, 0 if
// there is none.
func (n *networks) lookup(a netip.Addr) int32 {
	if a.Is4() {
		b := a.As4()
		key := binary.BigEndian.Uint32(b[:])
		if len(n.v4) == 0 || n.v4[0].from > key {
			return 0
		}
		// Halving the rest whatever the comparison says leaves no branch to
		// mispredict: at always holds a cut that is not above key.
		at := 0
		for rest := len(n.v4); rest > 1; {
			half := rest / 2
			next := at
			if n.v4[at+half].from <= key {
				next = at + half
			}
			at = next
			rest -= half
		}
		return n.v4[at].entry
	}
	b := a.As16()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	lo, hi := 0, len(n.v6)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if c := &n.v6[mid]; c.high < high || c.high == high && c.low <= low {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return 0
	}
	return n.v6[lo-1].entry
}

// add takes the networks in any order, each once; entryOf returns the rules of a
// network.
func (n *networks) add(all []netip.Prefix, entryOf func(netip.Prefix) entry) {
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	n.entries = make([]entry, 1, len(all)+1)
	type open struct {
		last  netip.Addr
		entry int32
	}
	around := []open{{}} // from the outside in
	leave := func() {
		left := around[len(around)-1]
		around = around[:len(around)-1]
		if next := left.last.Next(); next.IsValid() {
			n.cut(next, around[len(around)-1].entry)
		}
	}
	for _, network := range all {
		for len(around) > 1 && around[len(around)-1].last.Less(network.Addr()) {
			leave()
		}
		e := entryOf(network)
		e.wider = around[len(around)-1].entry
		n.entries = append(n.entries, e)
		at := int32(len(n.entries) - 1)
		around = append(around, open{lastOf(network), at})
		n.cut(network.Addr(), at)
	}
	for len(around) > 1 {
		leave()
	}
	n.v4, n.v6 = slices.Clip(n.v4), slices.Clip(n.v6)
}

func (n *networks) cut(from netip.Addr, entry int32) {
	if from.Is4() {
		b := from.As4()
		c := cut4{binary.BigEndian.Uint32(b[:]), entry}
		if k := len(n.v4); k > 0 && n.v4[k-1].from == c.from {
			n.v4[k-1] = c
			return
		}
		n.v4 = append(n.v4, c)
		return
	}
	b := from.As16()
	c := cut6{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), entry}
	if k := len(n.v6); k > 0 && n.v6[k-1].high == c.high && n.v6[k-1].low == c.low {
		n.v6[k-1] = c
		return
	}
	n.v6 = append(n.v6, c)
}

// lastOf returns the last address of a masked network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
