package nat

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestIndexMatchesAMap inserts and deletes items whose hashes meet in a few
// places, at the end of a part too, and finds them all.
func TestIndexMatchesAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index[int]
		held := map[uint64][]*int{}
		count := 0
		for range 300 {
			part := rapid.Uint64Range(0, 2).Draw(t, "part")
			place := rapid.Uint64Range(0, 40).Draw(t, "place")
			h := usable(part<<(64-partBits) | place<<2)
			if rapid.IntRange(0, 2).Draw(t, "delete") == 0 && len(held[h]) > 0 {
				i := rapid.IntRange(0, len(held[h])-1).Draw(t, "which")
				x.delete(h, held[h][i])
				held[h] = slices.Delete(held[h], i, i+1)
				count--
			} else {
				item := new(int)
				x.insert(h, item)
				held[h] = append(held[h], item)
				count++
			}
			if x.len() != count {
				t.Fatalf("%d items, want %d", x.len(), count)
			}
			checkFound(t, &x, h, held[h])
		}
		n := 0
		for h, items := range held {
			checkFound(t, &x, h, items)
		}
		for range x.all() {
			n++
		}
		if n != count {
			t.Fatalf("all yields %d items of %d", n, count)
		}
		for h, items := range held {
			for _, item := range items {
				x.delete(h, item)
			}
		}
		for i := range x.parts {
			if x.parts[i].Load() != nil {
				t.Fatal("an empty part is kept")
			}
		}
	})
}

func checkFound(t *rapid.T, x *index[int], h uint64, want []*int) {
	var got []*int
	p, at := x.part(h)
	for item, at := p.find(h, at); item != nil; item, at = p.find(h, at) {
		got = append(got, item)
	}
	if len(got) != len(want) {
		t.Fatalf("%d items under one hash, want %d", len(got), len(want))
	}
	for _, item := range want {
		if !slices.Contains(got, item) {
			t.Fatal("an item is not found")
		}
	}
}

// TestIndexShrinks shows that memory goes back and that vacated slots do not
// pile up.
func TestIndexShrinks(t *testing.T) {
	var x index[int]
	items := make([]int, 10_000)
	hash := func(i int) uint64 { return usable(uint64(i) << 2) } // all in one part
	size := func() int { return len(x.parts[0].Load().slots) }
	for i := range items {
		x.insert(hash(i), &items[i])
	}
	if got := size(); got > 4*len(items) {
		t.Fatalf("%d slots for %d items", got, len(items))
	}
	for i := range items[1:] {
		x.delete(hash(i+1), &items[i+1])
	}
	if got := size(); got != minSlots {
		t.Fatalf("%d slots for one item", got)
	}
	for i := range items[1:] {
		x.insert(hash(i+1), &items[i+1])
		x.delete(hash(i+1), &items[i+1])
	}
	if got := size(); got != minSlots {
		t.Fatalf("%d slots for one item after many came and went", got)
	}
}

// TestIndexReadersNeverMissWhatStays reads items that stay, or are replaced by
// others with their key, while more of them come and go in slots around them,
// under the same hashes too, and the parts are rebuilt.
func TestIndexReadersNeverMissWhatStays(t *testing.T) {
	type item struct{ key int }
	const staying, churning = 64, 256
	var x index[item]
	var items [2][staying + churning]item
	hash := func(key int) uint64 {
		if key%4 == 0 {
			key %= staying // the hash of one that stays
		}
		return usable(uint64(key*7%97)<<2 | uint64(key%2)<<(64-partBits) | uint64(key)<<20)
	}
	for key := range items[0] {
		items[0][key].key, items[1][key].key = key, key
	}
	for key := range staying {
		x.insert(hash(key), &items[0][key])
	}
	found := func(key int) bool {
		p, at := x.part(hash(key))
		item, at := p.find(hash(key), at)
		for item != nil && item.key != key {
			item, at = p.find(hash(key), at)
		}
		return item != nil
	}
	var stop atomic.Bool
	var reads atomic.Int64
	var wg sync.WaitGroup
	for g := range 2 {
		wg.Go(func() {
			for key := g; !stop.Load(); key = (key + 1) % staying {
				if !found(key) {
					t.Errorf("item %d is not found", key)
					return
				}
				reads.Add(1)
			}
		})
	}
	random := rand.New(rand.NewPCG(1, 2))
	var held [staying + churning]*item
	for key := range staying {
		held[key] = &items[0][key]
	}
	deadline := time.Now().Add(time.Minute)
	for i := 0; !t.Failed() && (i < 50_000 || reads.Load() < 50_000); i++ {
		if i%1000 == 0 && time.Now().After(deadline) {
			t.Error("too few items were read")
		}
		key := random.IntN(staying + churning)
		if i%2 == 0 {
			key = random.IntN(staying)
		}
		other := &items[i/2%2][key]
		switch {
		case held[key] == nil:
			x.insert(hash(key), other)
		case held[key] == other:
			continue
		case key < staying:
			x.replace(hash(key), held[key], other)
		default:
			x.delete(hash(key), held[key])
			other = nil
		}
		held[key] = other
	}
	stop.Store(true)
	wg.Wait()
}
