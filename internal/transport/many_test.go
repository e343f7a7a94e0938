package transport

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
)

const manyClients = 1000

// crowd is many registered clients, each with the two paths it moves between.
type crowd struct {
	receiver  *receiver
	keys      [][32]byte
	endpoints []*Endpoint
	changes   int
}

// path returns the n-th path of client i as the receiver finds it.
func (c *crowd) path(i, n int) *Path {
	var src source
	src.origin.remote = [16]byte{192, 0, 2, 1}
	binary.BigEndian.PutUint16(src.origin.remote[2:], uint16(i))
	src.origin.local = [16]byte{192, 0, 2, 1}
	src.origin.port = uint16(1000 + n)
	return c.receiver.path(&src)
}

func newCrowd(s *Sockets) *crowd {
	c := &crowd{receiver: newReceiver(NewBind(s, discard{}), IPv4)}
	c.receiver.adopt(s)
	for i := range manyClients {
		var key [32]byte
		binary.LittleEndian.PutUint32(key[:], uint32(i)*2654435761)
		e := NewEndpoint(func(*Path) { c.changes++ })
		s.Peers().Add(key, e)
		c.keys, c.endpoints = append(c.keys, key), append(c.endpoints, e)
	}
	return c
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // finishes what the first one found
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestAnIdleClientCostsLessThanAKilobyte(t *testing.T) {
	s := openSockets(t, Config{})
	newCrowd(openSockets(t, Config{})) // what the first one brings with it
	before := heap()
	c := newCrowd(s)
	registered := heap()
	for i, key := range c.keys {
		c.path(i, 0).FromPeer(key)
	}
	connected := heap()
	for i, key := range c.keys {
		if p := c.path(i, 0); c.endpoints[i].Path() != p || p.owner.Load().key != key {
			t.Fatalf("client %d has the path %v", i, c.endpoints[i].Path())
		}
	}
	perClient := func(from, to uint64) int { return int(int64(to)-int64(from)) / manyClients }
	t.Logf("registered: %d bytes, with a path: %d bytes more", perClient(before, registered), perClient(registered, connected))
	if total := perClient(before, connected); total > 1024 {
		t.Errorf("%d bytes for each client", total)
	}
	for _, key := range c.keys {
		s.Peers().Remove(key)
	}
	for i := range s.peers.shard {
		if members := s.peers.shard[i].members.Load(); members != nil && len(*members) != 0 {
			t.Errorf("shard %d keeps %d clients", i, len(*members))
		}
	}
	runtime.KeepAlive(c)
}

// BenchmarkPathChange has each of many clients move to another path with each
// packet, next to staying where it is.
func BenchmarkPathChange(b *testing.B) {
	for _, paths := range []int{1, 2} {
		b.Run(map[int]string{1: "stays", 2: "moves"}[paths], func(b *testing.B) {
			c := newCrowd(openSockets(b, Config{}))
			var all [2][manyClients]*Path
			for i := range manyClients {
				all[0][i], all[1][i] = c.path(i, 0), c.path(i, 1)
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				client := i % manyClients
				all[i/manyClients%paths][client].FromPeer(c.keys[client])
				i++
			}
			if i > 2*manyClients && (c.changes > manyClients) != (paths == 2) {
				b.Errorf("%d changes in %d packets", c.changes, i)
			}
		})
	}
}

// BenchmarkRegister adds and removes one client among many.
func BenchmarkRegister(b *testing.B) {
	s := openSockets(b, Config{})
	newCrowd(s)
	key, e := [32]byte{1, 2, 3}, NewEndpoint(nil)
	b.ReportAllocs()
	for b.Loop() {
		s.Peers().Add(key, e)
		s.Peers().Remove(key)
	}
}

// BenchmarkNewPath makes the path to an address that was not heard of before.
func BenchmarkNewPath(b *testing.B) {
	s := openSockets(b, Config{})
	remote := netip.MustParseAddrPort("192.0.2.1:1")
	b.ReportAllocs()
	for b.Loop() {
		s.Path(loopback[IPv4], remote)
	}
}
