package tunnel

import (
	"maps"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

func TestShardsBehaveLikeAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newShards[uint32, int](func(k uint32) uint8 { return uint8(k % 3) }) // crowded
		model := map[uint32]int{}
		key := rapid.Uint32Range(0, 20)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.Int().Draw(t, "value")
				_, taken := model[k]
				if s.put(k, v) == taken {
					t.Fatalf("put(%d) = %v", k, taken)
				}
				if !taken {
					model[k] = v
				}
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				s.delete(k)
				delete(model, k)
			},
			"": func(t *rapid.T) {
				for k := range uint32(21) {
					v, ok := s.get(k)
					if want, present := model[k]; v != want || ok != present {
						t.Fatalf("get(%d) = %d, %v", k, v, ok)
					}
				}
				all := map[uint32]int{}
				s.each(func(k uint32, v int) { all[k] = v })
				if !maps.Equal(all, model) {
					t.Fatalf("each gives %v, want %v", all, model)
				}
			},
		})
	})
}

func TestShardsAreReadWhileTheyChange(t *testing.T) {
	s := newShards[uint32, uint32](func(k uint32) uint8 { return uint8(k % 2) })
	const stays, comesAndGoes = 4, 5
	s.put(stays, stays)
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for !stop.Load() {
				if v, ok := s.get(stays); !ok || v != stays {
					t.Errorf("get = %d, %v", v, ok)
					return
				}
				if v, ok := s.get(comesAndGoes); ok && v != comesAndGoes {
					t.Errorf("get = %d", v)
					return
				}
				s.each(func(k, v uint32) {
					if k != v {
						t.Errorf("%d under %d", v, k)
					}
				})
			}
		})
	}
	for i := range uint32(2000) {
		s.put(comesAndGoes, comesAndGoes)
		s.put(100+i, 100+i)
		s.delete(comesAndGoes)
		s.delete(100 + i)
	}
	stop.Store(true)
	readers.Wait()
}
