package transport

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/conn"
)

func BenchmarkSendBatch(b *testing.B) {
	for _, tt := range []struct {
		name string
		cfg  Config
		ecn  byte
	}{{"gso", Config{}, 0}, {"single", Config{DisableGSO: true}, 0}, {"gsoECN", Config{}, 2}, {"singleECN", Config{DisableGSO: true}, 2}} {
		b.Run(tt.name, func(b *testing.B) {
			s := openSockets(b, tt.cfg)
			sink := dial(b, s) // never read: the kernel drops at its buffer
			bufs, _ := batch(repeat(128, 1312)...)
			for _, buf := range bufs {
				buf[headroom-ECNAhead] = tt.ecn
			}
			p := s.Path(loopback[IPv4], localOf(sink))
			b.SetBytes(128 * 1312)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.sendBatch(p, bufs, headroom); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReceive counts datagrams that were received, with the cost of sending
// them on the same goroutine left out of the clock.
func BenchmarkReceive(b *testing.B) {
	for _, tt := range []struct {
		name string
		cfg  Config
		ecn  byte
	}{
		{"gro", Config{}, 0}, {"single", Config{DisableGSO: true, DisableGRO: true}, 0}, {"unexpected", Config{DisableGSO: true}, 0},
		{"groCE", Config{}, ecnCE},
	} {
		b.Run(tt.name, func(b *testing.B) {
			a, z := openSockets(b, tt.cfg), openSockets(b, tt.cfg)
			zb := NewBind(z, discard{})
			fns, _, err := zb.Open(0)
			if err != nil {
				b.Fatal(err)
			}
			defer zb.Close()
			p := pathTo(a, z, IPv4)
			bufs, _ := batch(repeat(128, 1312)...)
			for _, buf := range bufs {
				buf[headroom-ECNAhead] = tt.ecn
			}
			slab, packets := make([]byte, slabSize), make([]conn.ReceivedPacket, 128)
			b.SetBytes(128 * 1312)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				if err := a.sendBatch(p, bufs, headroom); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				for got := 0; got < len(bufs); {
					n, err := fns[0](slab, packets)
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
		})
	}
}

// BenchmarkReceiveRuns receives runs of equal datagrams, each ended by a small
// one, from a full queue: how well messages are coalesced decides the mode.
func BenchmarkReceiveRuns(b *testing.B) {
	for _, run := range []int{2, 4, 8, 16, 32} {
		b.Run(strconv.Itoa(run), func(b *testing.B) {
			const batches = 8
			a, z := openSockets(b, Config{}), openSockets(b, Config{RecvBuffer: 16 << 20})
			zb := NewBind(z, discard{})
			fns, _, err := zb.Open(0)
			if err != nil {
				b.Fatal(err)
			}
			defer zb.Close()
			p := pathTo(a, z, IPv4)
			var sizes []int
			for len(sizes) < 128 {
				sizes = append(append(sizes, repeat(run, 1312)...), 96)
			}
			bufs, _ := batch(sizes[:128]...)
			slab, packets := newSlab()
			calls := 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for range batches {
					if err := a.sendBatch(p, bufs, headroom); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				for got := 0; got < batches*len(bufs); calls++ {
					n, err := fns[0](slab, packets)
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
			received := float64(batches * len(bufs) * b.N)
			b.ReportMetric(received/float64(calls), "packets/call")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/received, "ns/packet")
		})
	}
}

func BenchmarkFromPeer(b *testing.B) {
	s := openSockets(b, Config{})
	key := [32]byte{1}
	s.Peers().Add(key, NewEndpoint(nil))
	var ep conn.PeerAwareEndpoint = s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:1"))
	b.ReportAllocs()
	for b.Loop() {
		ep.FromPeer(key)
	}
}

// BenchmarkPingAgainstEngine bounces batches between two binds, alternating our
// own and the engine's standard one in rounds, and reports the ratio of the times
// (below 1 ours is faster).
func BenchmarkPingAgainstEngine(b *testing.B) {
	for _, tt := range []struct {
		name  string
		sizes []int
	}{
		{"full batch", repeat(128, 1312)},
		{"one datagram", []int{96}},
		{"mixed sizes", mixedSizes()},
	} {
		b.Run(tt.name, func(b *testing.B) {
			bufs, _ := batch(tt.sizes...)
			ours, theirs := newPing(b, ownBind), newPing(b, engineBind)
			var took [2]time.Duration
			b.ReportAllocs()
			for b.Loop() {
				for i, p := range []*ping{ours, theirs} {
					start := time.Now()
					for range 20 {
						p.round(b, bufs)
					}
					took[i] += time.Since(start)
				}
			}
			b.ReportMetric(float64(took[0])/float64(took[1]), "ours/engine")
			b.ReportMetric(float64(took[0].Nanoseconds())/float64(20*b.N), "ns-ours/ping")
			b.ReportMetric(float64(took[1].Nanoseconds())/float64(20*b.N), "ns-engine/ping")
		})
	}
}

func mixedSizes() []int {
	sizes := make([]int, 128)
	for i := range sizes {
		sizes[i] = 32 + i*531%1281
	}
	return sizes
}

// ping is a bind and its echo.
type ping struct {
	bind     conn.Bind
	to       conn.Endpoint
	expected atomic.Int64
	arrived  chan struct{}
}

func ownBind(b *testing.B) (conn.Bind, uint16) {
	s := openSockets(b, Config{RecvBuffer: 7 << 20, SendBuffer: 7 << 20})
	return NewBind(s, discard{}), s.LocalPort(IPv4)
}

func engineBind(*testing.B) (conn.Bind, uint16) { return conn.NewStdNetBind(), 0 }

func newPing(b *testing.B, make func(*testing.B) (conn.Bind, uint16)) *ping {
	p := &ping{arrived: newSignal()}
	near, _ := make(b)
	far, _ := make(b)
	p.bind = near
	var ended sync.WaitGroup
	run := func(bind conn.Bind, take func(slab []byte, packets []conn.ReceivedPacket)) uint16 {
		fns, port, err := bind.Open(0)
		if err != nil {
			b.Fatal(err)
		}
		for _, fn := range fns {
			ended.Go(func() {
				slab, packets := newSlab()
				for {
					n, err := fn(slab, packets)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					take(slab, packets[:n])
				}
			})
		}
		return port
	}
	scratch, _ := batch(repeat(128, MaxDatagram)...)
	port := run(far, func(slab []byte, packets []conn.ReceivedPacket) {
		bufs := scratch[:len(packets)]
		for i := range packets {
			n := copy(bufs[i][headroom:cap(bufs[i])], packets[i].Bytes(slab))
			bufs[i] = bufs[i][:headroom+n]
		}
		_ = far.Send(bufs, packets[0].Endpoint, headroom)
	})
	run(near, func(_ []byte, packets []conn.ReceivedPacket) {
		if p.expected.Add(-int64(len(packets))) == 0 {
			p.arrived <- struct{}{}
		}
	})
	to, err := near.ParseEndpoint(netip.AddrPortFrom(loopback[IPv4], port).String())
	if err != nil {
		b.Fatal(err)
	}
	p.to = to
	b.Cleanup(func() {
		near.Close()
		far.Close()
		ended.Wait()
	})
	return p
}

func (p *ping) round(b *testing.B, bufs [][]byte) {
	p.expected.Store(int64(len(bufs)))
	if err := p.bind.Send(bufs, p.to, headroom); err != nil {
		b.Fatal(err)
	}
	select {
	case <-p.arrived:
	case <-time.After(patience):
		b.Fatalf("%d datagrams are missing", p.expected.Load())
	}
}

func newSignal() chan struct{} { return make(chan struct{}, 1) }

func newSlab() ([]byte, []conn.ReceivedPacket) {
	return make([]byte, slabSize), make([]conn.ReceivedPacket, conn.IdealBatchSize)
}
