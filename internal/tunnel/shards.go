package tunnel

import (
	"maps"
	"sync"
	"sync/atomic"
)

const shardCount = 256

// shards is a map that readers use without locks: each shard is an immutable
// map behind an atomic pointer and a write copies one shard, so that adding a
// client costs 1/256 of the table and never stops the packet path.
type shards[K comparable, V any] struct {
	mu    sync.Mutex // serialises writers
	shard func(K) uint8
	maps  [shardCount]atomic.Pointer[map[K]V]
}

func newShards[K comparable, V any](shard func(K) uint8) *shards[K, V] {
	s := &shards[K, V]{shard: shard}
	empty := map[K]V{}
	for i := range s.maps {
		s.maps[i].Store(&empty)
	}
	return s
}

func (s *shards[K, V]) get(k K) (V, bool) {
	v, ok := (*s.maps[s.shard(k)].Load())[k]
	return v, ok
}

// put stores v unless the key is taken and reports whether it did.
func (s *shards[K, V]) put(k K, v V) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := &s.maps[s.shard(k)]
	old := *at.Load()
	if _, taken := old[k]; taken {
		return false
	}
	next := make(map[K]V, len(old)+1)
	maps.Copy(next, old)
	next[k] = v
	at.Store(&next)
	return true
}

func (s *shards[K, V]) delete(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := &s.maps[s.shard(k)]
	old := *at.Load()
	if _, ok := old[k]; !ok {
		return
	}
	next := make(map[K]V, len(old))
	for key, v := range old {
		if key != k {
			next[key] = v
		}
	}
	at.Store(&next)
}

// each calls f for every entry of one consistent view per shard.
func (s *shards[K, V]) each(f func(K, V)) {
	for i := range s.maps {
		for k, v := range *s.maps[i].Load() {
			f(k, v)
		}
	}
}
