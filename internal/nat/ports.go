package nat

import "math/bits"

// portSpace is what ports or identifiers are unique in: outsideKey without the
// port.
type portSpace struct{ high, low, meta uint64 }

// portSet knows which ports of one space are in use. It exists only where two
// sessions wanted the same port, and only its pages that were searched do.
type portSet struct {
	pages [1 << 16 / pagePorts]*portPage
	used  int // pages that exist
}

// portPage has a bit for each of pagePorts ports.
type portPage [pagePorts / 64]uint64

const pagePorts = 1024

// freeOutside returns k if its port is free, else k with the next higher port
// that is, going on from 1 after the last (dataplane §3.5). A session whose
// time is up and that stands in the way is ended. The result is false if all
// ports are in use.
func (t *Table) freeOutside(k outsideKey, now int64) (outsideKey, bool) {
	switch s := t.findOutside(k); {
	case s == nil || s.state.Load()&ended != 0:
		return k, true
	case s.over(now):
		t.end(s)
		return k, true
	}
	space, port := k.split()
	set := t.ports[space]
	if set == nil {
		set = new(portSet)
		t.ports[space] = set
	}
	next, ok := t.freePort(space, set, port, 1<<16-1)
	if !ok {
		next, ok = t.freePort(space, set, 1, port)
	}
	return space.key(next), ok
}

// freePort returns the first port from first to last that is not in use.
func (t *Table) freePort(space portSpace, set *portSet, first, last int) (int, bool) {
	for at := first; at <= last; {
		page := set.pages[at/pagePorts]
		if page == nil {
			page = t.readPage(space, at/pagePorts)
			set.pages[at/pagePorts] = page
			set.used++
		}
		open := ^page[at%pagePorts/64] >> (at % 64)
		if open == 0 {
			at = (at/64 + 1) * 64
			continue
		}
		at += bits.TrailingZeros64(open)
		return at, at <= last
	}
	return 0, false
}

// readPage looks up the sessions of a whole page.
func (t *Table) readPage(space portSpace, page int) *portPage {
	out := new(portPage)
	for i := range pagePorts {
		if s := t.findOutside(space.key(page*pagePorts + i)); s != nil && s.state.Load()&ended == 0 {
			out[i/64] |= 1 << (i % 64)
		}
	}
	return out
}

// markPort keeps the set of k's space right, if there is one, and lets go of
// what is empty.
func (t *Table) markPort(k outsideKey, used bool) {
	if len(t.ports) == 0 {
		return
	}
	space, port := k.split()
	set := t.ports[space]
	if set == nil || set.pages[port/pagePorts] == nil {
		return
	}
	page := set.pages[port/pagePorts]
	if used {
		page[port%pagePorts/64] |= 1 << (port % 64)
		return
	}
	page[port%pagePorts/64] &^= 1 << (port % 64)
	if *page == (portPage{}) {
		set.pages[port/pagePorts] = nil
		set.used--
	}
	if set.used == 0 {
		delete(t.ports, space)
	}
}

func (k outsideKey) split() (portSpace, int) {
	return portSpace{k.high, k.low, k.meta & flowMask}, int(uint16(k.meta))
}

func (s portSpace) key(port int) outsideKey {
	return outsideKey{s.high, s.low, s.meta | uint64(port)}
}
