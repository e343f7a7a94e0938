package transport

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRelayedAgainstDirect alternates batches on a direct path and through
// a channel between the same two sockets, and reports the speed of the relayed
// ones in relation to the direct ones (1 is equal) for both halves of the bind.
// It compares medians, because single batches are delayed by whatever else runs.
func BenchmarkRelayedAgainstDirect(b *testing.B) {
	for _, tt := range []struct {
		name  string
		cfg   Config
		sizes []int
	}{
		{"coalesced", Config{}, repeat(128, 1312)},
		{"coalesced keepalives", Config{}, repeat(128, 32)},
		{"mixed sizes", Config{}, mixedSizes()},
		{"singly", Config{DisableGSO: true, DisableGRO: true}, repeat(128, 1312)},
		{"one", Config{}, []int{96}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			tt.cfg.RecvBuffer = 16 << 20
			a, z := openSockets(b, tt.cfg), openSockets(b, tt.cfg)
			near, far := NewBind(a, discard{}), NewBind(z, discard{})
			if _, _, err := near.Open(0); err != nil {
				b.Fatal(err)
			}
			defer near.Close()
			fns, _, err := far.Open(0)
			if err != nil {
				b.Fatal(err)
			}
			defer far.Close()
			paths := [2]*Path{pathTo(a, z, IPv4), channelBetween(a, z)}
			bufs, _ := batch(tt.sizes...)
			slab, packets := newSlab()
			var sending, receiving [2]median
			round := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range paths {
					i = (i + round) % len(paths) // none is always the second
					start := time.Now()
					if err := near.Send(bufs, paths[i], headroom); err != nil {
						b.Fatal(err)
					}
					sent := time.Now()
					for got := 0; got < len(bufs); {
						n, err := fns[0](slab, packets)
						if err != nil {
							b.Fatal(err)
						}
						got += n
					}
					sending[i].add(round, sent.Sub(start))
					receiving[i].add(round, time.Since(sent))
				}
				round++
			}
			n := float64(len(bufs))
			b.ReportMetric(sending[0].value()/sending[1].value(), "send-ratio")
			b.ReportMetric(receiving[0].value()/receiving[1].value(), "receive-ratio")
			b.ReportMetric(sending[1].value()/n, "ns-send/packet")
			b.ReportMetric(receiving[1].value()/n, "ns-receive/packet")
		})
	}
}

// TestRelayedBatchesAreAsLargeAsDirectOnes counts messages and system calls of
// both ways.
func TestRelayedBatchesAreAsLargeAsDirectOnes(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	if !z.sockets[IPv4].gro || !a.sockets[IPv4].gso.Load() {
		skipOrFail(t, "no UDP segmentation or receive offload")
	}
	messages, calls := 0, 0
	a.sockets[IPv4].sendmm = func(fd int, msgs []mmsghdr) (int, unix.Errno) {
		n, errno := sendmmsg(fd, msgs)
		messages, calls = messages+max(0, n), calls+1
		return n, errno
	}
	near, far := NewBind(a, discard{}), NewBind(z, discard{})
	if _, _, err := near.Open(0); err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	fns, _, err := far.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	slab, packets := newSlab()
	for name, sizes := range map[string][]int{"full": repeat(128, 1312), "small": repeat(128, 32), "mixed": mixedSizes()} {
		type count struct{ messages, sends, receives int }
		var of [2]count
		for i, p := range []*Path{pathTo(a, z, IPv4), channelBetween(a, z)} {
			for range 4 { // the receiver has chosen its mode by the last one
				messages, calls = 0, 0
				bufs, want := batch(sizes...)
				if err := near.Send(bufs, p, headroom); err != nil {
					t.Fatal(err)
				}
				receives := 0
				for got := 0; got < len(want); receives++ {
					n, err := fns[IPv4](slab, packets)
					if err != nil {
						t.Fatal(err)
					}
					for j, packet := range packets[:n] {
						if string(packet.Bytes(slab)) != want[got+j] {
							t.Fatalf("%s, relayed %v: packet %d has %d bytes", name, i == 1, got+j, packet.Size)
						}
					}
					got += n
				}
				of[i] = count{messages, calls, receives}
			}
		}
		t.Logf("%s: direct %+v, relayed %+v", name, of[0], of[1])
		if of[1] != of[0] {
			t.Errorf("%s: direct %+v, relayed %+v", name, of[0], of[1])
		}
	}
}

// median is that of the latest values, some thousand at most.
type median struct {
	values [4096]time.Duration
	n      int
}

func (m *median) add(round int, d time.Duration) {
	m.values[round%len(m.values)] = d
	m.n = min(round+1, len(m.values))
}

// value returns the median in nanoseconds.
func (m *median) value() float64 {
	sorted := slices.Sorted(slices.Values(m.values[:m.n]))
	return float64(sorted[m.n/2].Nanoseconds())
}

// channelBetween makes each of two sockets take the other for a relay, and
// returns the path from a through a channel that z knows.
func channelBetween(a, z *Sockets) *Path {
	peer, relayed := netip.MustParseAddrPort("198.51.100.7:1"), netip.MustParseAddrPort("203.0.113.1:2")
	z.AddRelay(address(a, IPv4)).SetChannel(MinChannel, peer, relayed)
	return a.AddRelay(address(z, IPv4)).SetChannel(MinChannel, peer, relayed)
}
