package nat

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// index finds items by the hash of their key. Readers take no lock; there is
// one writer at a time. The zero value is empty.
//
// It is cut into parts, each a table with linear probing that is rebuilt on its
// own when it gets full, so that no insertion takes long however large the
// whole is. A slot's hash and item change one after the other and a slot is
// used again, so a reader must compare the key of what it finds. An item that
// stays is found by every search, and so is one of two that replace puts in
// each other's place.
type index[T any] struct {
	parts [indexParts]atomic.Pointer[part[T]]
	items atomic.Int64 // written by the writer only
}

type part[T any] struct {
	slots []slot[T] // a power of two, at least one always free

	// For the writer.
	live int // slots with an item
	used int // slots that are not free: with an item or vacated
}

type slot[T any] struct {
	hash atomic.Uint64
	item atomic.Pointer[T]
}

const (
	indexParts = 16
	partBits   = 4 // of the hash, from the top
	minSlots   = 8

	free    = 0 // ends a search
	vacated = 1 // does not
)

// usable changes h to a hash that no slot takes for a mark.
func usable(h uint64) uint64 { return h | 2 }

// part returns the part for items under h, nil if it is empty, and where in it
// to begin a search.
func (x *index[T]) part(h uint64) (p *part[T], at uint64) {
	return x.parts[h>>(64-partBits)].Load(), h >> 2
}

// fetch has the processor load the slot at which a search begins. The call
// does not wait for it. p may be nil.
func (p *part[T]) fetch(at uint64) {
	if p != nil {
		p.slots[at&uint64(len(p.slots)-1)].hash.Load()
	}
}

// find returns the first item under h from at on, nil if there is none, and
// where to go on. Different keys nearly never share a hash, so the first is
// nearly always the right one. What the writer does after the call of part, a
// search may miss.
func (p *part[T]) find(h, at uint64) (item *T, next uint64) {
	if p == nil {
		return nil, at
	}
	slots := p.slots
	for ; ; at++ {
		s := &slots[at&uint64(len(slots)-1)]
		switch s.hash.Load() {
		case h:
			if item := s.item.Load(); item != nil {
				return item, at + 1
			}
		case free:
			return nil, at
		}
	}
}

func (x *index[T]) len() int { return int(x.items.Load()) }

// insert files item under h. A second item under one hash is found after the
// first or before it.
func (x *index[T]) insert(h uint64, item *T) {
	at := &x.parts[h>>(64-partBits)]
	p := at.Load()
	if p == nil {
		p = rebuilt[T](nil)
		at.Store(p)
	} else if (p.used+1)*4 > len(p.slots)*3 {
		p = rebuilt(p)
		at.Store(p)
	}
	p.insert(h, item)
	x.items.Add(1)
}

// delete removes item, which was filed under h.
func (x *index[T]) delete(h uint64, item *T) {
	at := &x.parts[h>>(64-partBits)]
	p := at.Load()
	p.delete(h, item)
	x.items.Add(-1)
	if p.live == 0 {
		at.Store(nil)
	} else if len(p.slots) > minSlots && p.live*8 < len(p.slots) {
		at.Store(rebuilt(p))
	}
}

// replace puts item in the place of old, which was filed under h.
func (x *index[T]) replace(h uint64, old, item *T) {
	s, _ := x.parts[h>>(64-partBits)].Load().slot(h, old)
	s.item.Store(item)
}

func (x *index[T]) clear() {
	for i := range x.parts {
		x.parts[i].Store(nil)
	}
	x.items.Store(0)
}

// all yields each item once. Of items that are inserted, replaced or deleted
// meanwhile any may be yielded or missed.
func (x *index[T]) all() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for i := range x.parts {
			p := x.parts[i].Load()
			if p == nil {
				continue
			}
			for j := range p.slots {
				if item := p.slots[j].item.Load(); item != nil && !yield(item) {
					return
				}
			}
		}
	}
}

func (p *part[T]) insert(h uint64, item *T) {
	for i := h >> 2; ; i++ {
		s := &p.slots[i&uint64(len(p.slots)-1)]
		mark := s.hash.Load()
		if mark > vacated {
			continue
		}
		if mark == free {
			p.used++
		}
		p.live++
		s.item.Store(item) // first, so that who sees the hash sees the item
		s.hash.Store(h)
		return
	}
}

func (p *part[T]) delete(h uint64, item *T) {
	s, next := p.slot(h, item)
	// No search goes on behind a slot whose successor is free.
	if next.hash.Load() == free {
		s.hash.Store(free)
		p.used--
	} else {
		s.hash.Store(vacated)
	}
	s.item.Store(nil)
	p.live--
}

// slot returns the slot of item, which was filed under h, and the one behind.
func (p *part[T]) slot(h uint64, item *T) (s, next *slot[T]) {
	mask := uint64(len(p.slots) - 1)
	for i := h >> 2; ; i++ {
		if s := &p.slots[i&mask]; s.hash.Load() == h && s.item.Load() == item {
			return s, &p.slots[(i+1)&mask]
		}
	}
}

// rebuilt returns a part with the items of p, at most half full and without
// vacated slots. Readers may go on with p.
func rebuilt[T any](p *part[T]) *part[T] {
	size := minSlots
	if p != nil {
		size = max(size, 1<<bits.Len(uint(2*(p.live+1)-1)))
	}
	out := &part[T]{slots: make([]slot[T], size)}
	if p != nil {
		for i := range p.slots {
			if item := p.slots[i].item.Load(); item != nil {
				out.insert(p.slots[i].hash.Load(), item)
			}
		}
	}
	return out
}
