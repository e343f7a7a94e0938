package ice

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Bounds of one connection. There are two host and two relayed addresses of ours
// in the normal case (transport §2.3), and clients keep 100 pairs (§2.7).
const (
	maxLocals  = 16
	maxRemotes = MaxRemotes + 28 // with peer-reflexive ones
	maxPairs   = 100
	maxBlocked = 128
)

// addRemote takes a candidate of the client. It reports false when there are too
// many. The known address of a peer-reflexive one gets the signalled priority.
func (c *controlled) addRemote(r Candidate, now time.Duration) bool {
	if c.indexRemote(r.Key()) >= 0 {
		return true
	}
	if len(c.signalled) == MaxRemotes {
		return false
	}
	c.signalled = append(c.signalled, r)
	c.blocked = slices.DeleteFunc(c.blocked, func(a netip.AddrPort) bool { return a == r.Addr })
	if find(c.remotes, r.Addr) == nil {
		c.makeRoom()
		c.remotes = append(c.remotes, address{addr: r.Addr})
	}
	c.heard = now
	c.wake(now)
	c.form(now)
	return true
}

// removeRemote removes the candidate with this key, and its pairs unless another
// candidate has the same address. Requests from the address are ignored from
// then on (transport §2.7).
func (c *controlled) removeRemote(k Key, now time.Duration) {
	i := c.indexRemote(k)
	if i < 0 {
		return
	}
	c.signalled = slices.Delete(c.signalled, i, i+1)
	if !slices.ContainsFunc(c.signalled, func(r Candidate) bool { return r.Addr == k.Addr }) {
		c.dropRemote(k.Addr)
		if len(c.blocked) == maxBlocked {
			c.blocked = slices.Delete(c.blocked, 0, 1)
		}
		c.blocked = append(c.blocked, k.Addr)
	}
	c.wake(now)
	c.form(now)
}

// setLocals replaces the local addresses. Pairs of those that stay stay as they
// are.
func (c *controlled) setLocals(locals []Candidate, now time.Duration) {
	next := make([]address, 0, len(locals))
	for _, l := range locals {
		a := address{addr: unmap(l.Addr), priority: l.Priority}
		if l.Type == ServerReflexive || !Usable(a.addr) {
			continue // checks leave from its base, which is a host candidate
		}
		if known := find(next, a.addr); known != nil {
			known.priority = max(known.priority, a.priority)
		} else if len(next) < maxLocals {
			next = append(next, a)
		}
	}
	if slices.Equal(next, c.locals) {
		return
	}
	c.locals = next
	c.dropPairs(func(p *pair) bool { return !c.serves(p.local) })
	c.wake(now)
	c.form(now)
}

// discover makes the pair of a request that came from an unknown address or on a
// new way. It returns nil if there is no room for it.
func (c *controlled) discover(local, remote netip.AddrPort, priority uint32, use bool, now time.Duration) *pair {
	if find(c.remotes, remote) == nil {
		c.makeRoom()
		c.remotes = append(c.remotes, address{remote, priority, true})
	}
	// In front of those of equal priority: one client address seen at two
	// addresses has been given a new one by its NAT.
	p := &pair{local: local, remote: remote, nominated: use, next: now}
	c.pairs = slices.Insert(c.pairs, 0, p)
	c.form(now)
	if !slices.Contains(c.pairs, p) {
		return nil
	}
	return p
}

// form brings the pairs in line with the addresses: one of each local with each
// signalled remote address of the same family, and those that were discovered.
func (c *controlled) form(now time.Duration) {
	for i := range c.remotes {
		r := &c.remotes[i]
		highest := uint32(0)
		for _, s := range c.signalled {
			if s.Addr == r.addr {
				r.reflexive = false
				highest = max(highest, s.Priority)
			}
		}
		if r.reflexive {
			continue
		}
		r.priority = highest
		for _, l := range c.locals {
			if is4(l.addr) == is4(r.addr) && c.pair(l.addr, r.addr) == nil {
				c.pairs = append(c.pairs, &pair{local: l.addr, remote: r.addr, next: now})
			}
		}
	}
	for _, p := range c.pairs {
		p.priority = pairPriority(find(c.remotes, p.remote).priority, find(c.locals, p.local).priority)
	}
	slices.SortStableFunc(c.pairs, func(a, b *pair) int { return cmp.Compare(b.priority, a.priority) })
	c.trim(func(p *pair) bool { return !p.nominated })
	c.trim(func(p *pair) bool { return p != c.best })
	c.choose()
}

// trim removes pairs of the lowest priority beyond the bound, as far as it may.
func (c *controlled) trim(may func(*pair) bool) {
	for i := len(c.pairs) - 1; i >= 0 && len(c.pairs) > maxPairs; i-- {
		if may(c.pairs[i]) {
			c.pairs = slices.Delete(c.pairs, i, i+1)
		}
	}
}

// makeRoom gives up the peer-reflexive address that was silent for longest when
// there are too many addresses.
func (c *controlled) makeRoom() {
	if len(c.remotes) < maxRemotes {
		return
	}
	oldest, at := -1, never
	for i, r := range c.remotes {
		if !r.reflexive || c.best != nil && c.best.remote == r.addr {
			continue
		}
		heard := time.Duration(0)
		for _, p := range c.pairs {
			if p.remote == r.addr {
				heard = max(heard, p.heard)
			}
		}
		if heard < at {
			oldest, at = i, heard
		}
	}
	// There are more than MaxRemotes addresses, so that some are reflexive.
	c.dropRemote(c.remotes[oldest].addr)
}

func (c *controlled) dropRemote(addr netip.AddrPort) {
	c.remotes = slices.DeleteFunc(c.remotes, func(r address) bool { return r.addr == addr })
	c.dropPairs(func(p *pair) bool { return p.remote == addr })
}

func (c *controlled) dropPairs(gone func(*pair) bool) {
	if c.best != nil && gone(c.best) {
		c.best = nil
	}
	c.pairs = slices.DeleteFunc(c.pairs, gone)
}

func (c *controlled) pair(local, remote netip.AddrPort) *pair {
	i := slices.IndexFunc(c.pairs, func(p *pair) bool { return p.remote == remote && p.local == local })
	if i < 0 {
		return nil
	}
	return c.pairs[i]
}

func (c *controlled) indexRemote(k Key) int {
	return slices.IndexFunc(c.signalled, func(r Candidate) bool { return r.Key() == k })
}

func find(list []address, addr netip.AddrPort) *address {
	i := slices.IndexFunc(list, func(a address) bool { return a.addr == addr })
	if i < 0 {
		return nil
	}
	return &list[i]
}
