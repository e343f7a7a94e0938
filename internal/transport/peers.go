package transport

import (
	"maps"
	"sync"
	"sync/atomic"
)

// shards bounds what an Add copies: with 10 000 clients a shard has about 160.
const shards = 64

// Peers maps the public keys of clients to their Endpoints. Readers take no
// lock. The zero value is empty and ready.
type Peers struct {
	shard [shards]struct {
		mu      sync.Mutex // serialises writers
		members atomic.Pointer[map[[32]byte]*member]
	}
}

// member is one registration; a new one for the same key is a new member, so
// that a Path can tell that its cached one has ended.
type member struct {
	key      [32]byte
	endpoint *Endpoint
	removed  atomic.Bool
}

// Add makes e the Endpoint of the client with this key, in place of the one
// registered before, if any.
func (p *Peers) Add(key [32]byte, e *Endpoint) {
	p.update(key, &member{key: key, endpoint: e})
}

// Remove ends the registration of key. Its Endpoint keeps its last path.
func (p *Peers) Remove(key [32]byte) { p.update(key, nil) }

func (p *Peers) update(key [32]byte, m *member) {
	s := &p.shard[key[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[[32]byte]*member{}
	if old := s.members.Load(); old != nil {
		next = maps.Clone(*old)
	}
	old := next[key]
	if m != nil {
		next[key] = m
	} else {
		delete(next, key)
	}
	s.members.Store(&next)
	if old != nil {
		old.removed.Store(true)
	}
}

func (p *Peers) lookup(key [32]byte) *member {
	if members := p.shard[key[0]%shards].members.Load(); members != nil {
		return (*members)[key]
	}
	return nil
}
