package tun

import (
	"testing"
	"time"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

// BenchmarkRead compares, alternating in one run on one device, this package's
// Read with the engine's own: a queue of UDP datagrams is filled, then emptied.
// Times are CPU time of the process, which other load disturbs less; the ratio
// is the engine's time per packet by ours. With hand-over each batch crosses a
// buffered channel to another goroutine, as it crosses the engine's queues.
func BenchmarkRead(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchmarkRead(b, func(int) {}) })
	b.Run("with hand-over", func(b *testing.B) {
		queue, done := make(chan int, 1024), make(chan struct{})
		go func() {
			defer close(done)
			for range queue {
			}
		}()
		benchmarkRead(b, func(n int) { queue <- n })
		close(queue)
		<-done
	})
}

func benchmarkRead(b *testing.B, handOver func(int)) {
	const fill = 4000
	enterNamespace(b)
	d := openConfigured(b, Auto)
	conn := dialUDP(b, addrPort(clientV4, 9))
	payload := make([]byte, 1200)
	native := d.port.writer.(wgtun.Device)
	buf := newBatchBuffer()

	empty := func(r wgtun.Reader) (time.Duration, int) {
		for range fill {
			if _, err := conn.Write(payload); err != nil {
				b.Fatal(err)
			}
		}
		batches := 0
		start := cpuTime(b)
		for got := 0; got < fill; batches++ {
			n, err := r.Read(buf.slab, buf.packets)
			if err != nil {
				b.Fatal(err)
			}
			got += n
			handOver(n)
		}
		return cpuTime(b) - start, batches
	}
	empty(d)
	empty(native)

	var ours, theirs time.Duration
	var ourBatches, theirBatches, rounds int
	for b.Loop() {
		t, n := empty(d)
		ours, ourBatches = ours+t, ourBatches+n
		t, n = empty(native)
		theirs, theirBatches = theirs+t, theirBatches+n
		rounds++
	}
	packets := float64(rounds * fill)
	b.ReportMetric(float64(ours)/packets, "ours-ns/pkt")
	b.ReportMetric(float64(theirs)/packets, "engine-ns/pkt")
	b.ReportMetric(float64(theirs)/float64(ours), "ratio")
	b.ReportMetric(packets/float64(ourBatches), "pkts/Read")
	b.ReportMetric(packets/float64(theirBatches), "engine-pkts/Read")
}

func cpuTime(tb testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkSplit measures parsing and splitting alone, without a kernel: one
// super packet of 64 kB per Read.
func BenchmarkSplit(b *testing.B) {
	frame, want := tcp4.super(make([]byte, 63000), 1228)
	f := newFakeReader(true, frame)
	frames := f.queue.frames
	buf := newBatchBuffer()
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		f.queue.frames = frames
		n, err := f.Read(buf.slab, buf.packets)
		if err != nil || n != len(want) {
			b.Fatalf("%d, %v", n, err)
		}
	}
}

// BenchmarkWrite measures a batch of one TCP-sized UDP flow into the kernel.
func BenchmarkWrite(b *testing.B) {
	for _, driver := range []Driver{Auto, Water} {
		b.Run(driver.String(), func(b *testing.B) {
			enterNamespace(b)
			d := openConfigured(b, driver)
			// Writing modifies what it merges, so each batch is a fresh copy.
			template := udpPacket(addrPort(clientV4, 7), addrPort(gatewayV4, 9), make([]byte, 1200), 16)
			bufs := make([][]byte, 64)
			for i := range bufs {
				bufs[i] = make([]byte, len(template))
			}
			b.ReportAllocs()
			for b.Loop() {
				for _, buf := range bufs {
					copy(buf, template)
				}
				if n, err := d.Write(bufs, 16); n != len(bufs) || err != nil {
					b.Fatalf("%d, %v", n, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bufs)), "ns/pkt")
		})
	}
}
