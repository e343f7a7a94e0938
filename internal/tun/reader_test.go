package tun

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"firezone-gateway/internal/drop"
)

var (
	tcp4 = flow{src: netip.MustParseAddrPort("192.0.2.1:443"), dst: netip.MustParseAddrPort("100.64.0.9:5000"), tcp: true, options: 12, id: 0xfffe, seq: 0xffffff00, flags: flagACK | flagPSH | flagFIN}
	tcp6 = flow{src: netip.MustParseAddrPort("[2001:db8::1]:443"), dst: netip.MustParseAddrPort("[fd00:2021:1111::9]:5000"), tcp: true, seq: 7, flags: flagACK}
	udp4 = flow{src: netip.MustParseAddrPort("192.0.2.1:53"), dst: netip.MustParseAddrPort("100.64.0.9:5000"), id: 9}
	udp6 = flow{src: netip.MustParseAddrPort("[2001:db8::1]:53"), dst: netip.MustParseAddrPort("[fd00:2021:1111::9]:5000")}
)

// fakeQueue is a TUN file with scripted content. A nil frame is a moment in
// which the queue is empty.
type fakeQueue struct {
	frames [][]byte
	after  error // what read returns once frames are used up
	waits  int
}

var errNoMoreFrames = errors.New("waiting for a frame that never comes")

func (q *fakeQueue) Read(f func(fd uintptr) bool) error {
	for !f(0) {
		q.waits++
		if len(q.frames) == 0 {
			return errNoMoreFrames
		}
	}
	return nil
}

func (q *fakeQueue) read(_ int, p []byte) (int, error) {
	if len(q.frames) == 0 {
		if q.after != nil {
			return 0, q.after
		}
		return 0, unix.EAGAIN
	}
	frame := q.frames[0]
	q.frames = q.frames[1:]
	if frame == nil {
		return 0, unix.EAGAIN
	}
	return copy(p, frame), nil // a TUN read cuts what does not fit
}

type fakeReader struct {
	*reader
	queue *fakeQueue
	drops drop.Counters
	stats counters
	lost  error
}

func newFakeReader(vnet bool, frames ...[]byte) *fakeReader {
	f := &fakeReader{queue: &fakeQueue{frames: frames}}
	f.reader = newReader(f.queue, vnet, DefaultMTU, &f.drops, &f.stats, func(err error) { f.lost = err })
	f.reader.read = f.queue.read
	return f
}

// next reads one batch and returns copies of its packets.
func (f *fakeReader) next(tb interface {
	Helper()
	Fatalf(string, ...any)
}, slab []byte, count int) ([][]byte, error) {
	tb.Helper()
	packets := make([]wgtun.ReadPacket, count)
	n, err := f.Read(slab, packets)
	var got [][]byte
	end := 0
	for i, p := range packets[:n] {
		if p.Offset < end+spacing || p.Offset+p.Size+spacing > len(slab) {
			tb.Fatalf("packet %d at %d+%d after %d in %d", i, p.Offset, p.Size, end, len(slab))
		}
		end = p.Offset + p.Size
		got = append(got, bytes.Clone(slab[p.Offset:end]))
	}
	return got, err
}

func TestReadDrainsTheQueueOnOneWakeUp(t *testing.T) {
	var frames, want [][]byte
	for i := range 10 {
		frame, packets := udp4.super(bytes.Repeat([]byte{byte(i)}, 100+i), 0)
		frames, want = append(frames, frame), append(want, packets...)
	}
	f := newFakeReader(true, slices.Concat([][]byte{nil}, frames, [][]byte{nil}, frames[:1])...)
	got, err := f.next(t, make([]byte, slabBytes), batchSize)
	if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Fatalf("%d packets, %v, want %d", len(got), err, len(want))
	}
	if f.queue.waits != 1 {
		t.Errorf("waited %d times, want once", f.queue.waits)
	}
	got, err = f.next(t, make([]byte, slabBytes), batchSize)
	if err != nil || !slices.EqualFunc(got, want[:1], bytes.Equal) {
		t.Fatalf("second batch: %d packets, %v", len(got), err)
	}
	if s := f.stats.load(); s != (Stats{Batches: 2, Packets: 11}) {
		t.Errorf("stats %+v", s)
	}
}

func TestReadKeepsWhatDoesNotFit(t *testing.T) {
	payload := randomBytes(1, 60000)
	for _, tc := range []struct {
		name    string
		flow    flow
		gsoSize int
		slab    int
		packets int
		supers  int
	}{
		{"two super packets in one slab", tcp4, 1228, slabBytes, batchSize, 2},
		{"more segments than packets", tcp6, 100, slabBytes, batchSize, 2},
		{"small segments of the smallest maximum segment size", tcp4, 48, slabBytes, batchSize, 1},
		{"a slab smaller than a super packet", udp4, 1200, 20000, batchSize, 2},
		{"a slab of one segment", udp6, 1200, 1500, batchSize, 1},
		{"one packet at a time", tcp6, 1208, slabBytes, 1, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var frames, want [][]byte
			single, packets := udp6.super([]byte("between"), 0)
			for i := range tc.supers {
				frame, segments := tc.flow.super(payload[i:], tc.gsoSize)
				frames, want = append(frames, single, frame), append(append(want, packets...), segments...)
			}
			f := newFakeReader(true, frames...)
			slab := make([]byte, tc.slab)
			var got [][]byte
			for len(got) < len(want) {
				batch, err := f.next(t, slab, tc.packets)
				if err != nil || len(batch) == 0 {
					t.Fatalf("after %d of %d packets: %d more, %v", len(got), len(want), len(batch), err)
				}
				got = append(got, batch...)
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("packet %d differs: %s\n% x\n% x", i, checkPacket(got[i]), got[i][:60], want[i][:60])
				}
			}
			if f.stats.load().SuperPackets != uint64(tc.supers) {
				t.Errorf("stats %+v", f.stats.load())
			}
		})
	}
}

func TestReadYieldsEveryPacketOnceAndInOrder(t *testing.T) {
	payload := randomBytes(2, 65000)
	rapid.Check(t, func(t *rapid.T) {
		var frames, want [][]byte
		for range rapid.IntRange(1, 8).Draw(t, "frames") {
			f := rapid.SampledFrom([]flow{tcp4, tcp6, udp4, udp6}).Draw(t, "flow")
			size := rapid.IntRange(1, 65000).Draw(t, "payload")
			gsoSize := rapid.SampledFrom([]int{0, 48, 536, 1200, 1228, 9000}).Draw(t, "gso size")
			if gsoSize == 0 {
				size = min(size, 1200)
			}
			frame, segments := f.super(payload[:size], gsoSize)
			frames, want = append(frames, frame), append(want, segments...)
			if rapid.Bool().Draw(t, "then empty") {
				frames = append(frames, nil)
			}
		}
		f := newFakeReader(true, frames...)
		buf := make([]byte, slabBytes)
		var got [][]byte
		for len(got) < len(want) {
			slab := buf[:rapid.IntRange(9300, slabBytes).Draw(t, "slab")]
			batch, err := f.next(t, slab, rapid.IntRange(1, batchSize).Draw(t, "packets"))
			if err != nil {
				t.Fatalf("after %d of %d packets: %v", len(got), len(want), err)
			}
			got = append(got, batch...)
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatal("packets differ")
		}
	})
}

func TestReadWithoutVirtioHeaderTakesPacketsAsTheyAre(t *testing.T) {
	var frames [][]byte
	for i := range 200 {
		frames = append(frames, udp4.packet(i, make([]byte, 1000), 0, 0, false))
	}
	frames = append(frames, udp6.packet(0, make([]byte, 60000), 0, 0, false)) // the MTU was raised
	f := newFakeReader(false, frames...)
	var got [][]byte
	for len(got) < len(frames) {
		batch, err := f.next(t, make([]byte, slabBytes), batchSize)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, batch...)
	}
	if !slices.EqualFunc(got, frames, bytes.Equal) {
		t.Error("packets differ")
	}
}

func TestReadCompletesPartialChecksums(t *testing.T) {
	t.Run("of a packet that is not split", func(t *testing.T) {
		for _, fl := range []flow{tcp4, tcp6, udp4, udp6} {
			frame, want := fl.super([]byte("odd length"), 0)
			got, err := newFakeReader(true, frame).next(t, make([]byte, slabBytes), batchSize)
			if err != nil || len(got) != 1 || !bytes.Equal(got[0], want[0]) || checkPacket(got[0]) != "" {
				t.Errorf("got % x, %v, want % x", got, err, want)
			}
		}
	})
	t.Run("to all ones where UDP would read zero as absent", func(t *testing.T) {
		for _, gsoSize := range []int{0, 2} {
			zero := udp6
			payload := make([]byte, 2+gsoSize)
			// Search the payload whose first segment sums up to all ones.
			frame, want := zero.super(payload, gsoSize)
			for i := 0; want[0][46] != 0xff || want[0][47] != 0xff; i++ {
				if i > 0xffff {
					t.Fatal("no such payload")
				}
				payload[0], payload[1] = byte(i>>8), byte(i)
				frame, want = zero.super(payload, gsoSize)
			}
			got, err := newFakeReader(true, frame).next(t, make([]byte, slabBytes), batchSize)
			if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("got % x, %v, want % x", got, err, want)
			}
		}
	})
	t.Run("of every segment, even unasked", func(t *testing.T) {
		frame, want := tcp6.super(make([]byte, 1500), 1000)
		frame[0] = 0
		f := newFakeReader(true, frame)
		for i := range want {
			got, err := f.next(t, make([]byte, slabBytes), 1)
			if err != nil || len(got) != 1 || !bytes.Equal(got[0], want[i]) {
				t.Errorf("segment %d: %v", i, err)
			}
		}
	})
	t.Run("only if the header asks for it", func(t *testing.T) {
		pkt := udp4.packet(0, []byte("x"), 0, 0, true)
		got, _ := newFakeReader(true, vnetFrame(0, 0, 0, 0, 20, 6, pkt)).next(t, make([]byte, slabBytes), batchSize)
		if len(got) != 1 || !bytes.Equal(got[0], pkt) {
			t.Errorf("got % x, want % x", got, pkt)
		}
	})
}

func TestReadCountsFramesThatContradictThemselves(t *testing.T) {
	good, _ := tcp4.super(make([]byte, 5000), 1000)
	goodUDP6, _ := udp6.super(make([]byte, 5000), 1000)
	change := func(frame []byte, at int, v byte) []byte {
		frame = bytes.Clone(frame)
		frame[at] = v
		return frame
	}
	cases := map[string][]byte{
		"no packet after the header":              good[:vnetHdrLen],
		"shorter than the header":                 good[:5],
		"unknown segmentation type":               change(good, 1, 77),
		"segmentation with ECN, never negotiated": change(good, 1, 0x80|unix.VIRTIO_NET_HDR_GSO_TCPV4),
		"IPv6 type on an IPv4 packet":             change(good, 1, unix.VIRTIO_NET_HDR_GSO_TCPV6),
		"IPv4 type on an IPv6 packet":             change(goodUDP6, 1, unix.VIRTIO_NET_HDR_GSO_TCPV4),
		"neither IPv4 nor IPv6":                   change(good, vnetHdrLen, 0x55),
		"IPv4 header length differs from start":   change(good, vnetHdrLen, 0x46),
		"segment size zero":                       vnetFrame(1, 1, 0, 0, 20, 16, good[vnetHdrLen:]),
		"segment size beyond an IP packet":        vnetFrame(1, 1, 0, 65535, 20, 16, good[vnetHdrLen:]),
		"start beyond the packet":                 vnetFrame(1, 5, 0, 100, 60000, 6, goodUDP6[vnetHdrLen:]),
		"start and offset overflow 16 bits":       vnetFrame(1, 5, 0, 100, 65535, 65535, goodUDP6[vnetHdrLen:]),
		"checksum in the wrong place":             vnetFrame(1, 1, 0, 1000, 20, 6, good[vnetHdrLen:]),
		"checksum beyond a plain packet":          vnetFrame(1, 0, 0, 0, 5040, 16, good[vnetHdrLen:]),
		"TCP header length too small":             change(good, vnetHdrLen+20+12, 0x10),
		"TCP header beyond the packet":            vnetFrame(1, 1, 0, 4, 20, 16, good[vnetHdrLen:][:45]),
		"UDP header beyond the packet":            vnetFrame(0, 5, 0, 4, 40, 6, goodUDP6[vnetHdrLen:][:44]),
	}
	for name, frame := range cases {
		t.Run(name, func(t *testing.T) {
			next, want := udp4.super([]byte("next"), 0)
			f := newFakeReader(true, frame, next)
			got, err := f.next(t, make([]byte, slabBytes), batchSize)
			if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("got % x, %v, want % x", got, err, want)
			}
			if n := f.drops.Load(drop.Malformed); n != 1 {
				t.Errorf("%d drops, want 1", n)
			}
		})
	}
}

func TestReadDropsWhatNoSlabCanTake(t *testing.T) {
	next, want := udp4.super([]byte("next"), 0)
	for _, gsoSize := range []int{0, 1300} {
		big, _ := udp6.super(make([]byte, 3000), gsoSize)
		for _, before := range [][][]byte{nil, {next}} {
			f := newFakeReader(true, slices.Concat(before, [][]byte{big, next})...)
			slab := make([]byte, 700)
			for range len(before) + 1 {
				got, err := f.next(t, slab, batchSize)
				if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
					t.Fatalf("got % x, %v, want % x", got, err, want)
				}
			}
			if n := f.drops.Load(drop.Oversize); n != 1 {
				t.Errorf("%d drops, want 1", n)
			}
		}
	}
	f := newFakeReader(true, next)
	if _, err := f.Read(make([]byte, 2*spacing), make([]wgtun.ReadPacket, 1)); !errors.Is(err, wgtun.ErrTooManySegments) {
		t.Errorf("Read into an empty slab: %v", err)
	}
	if _, err := f.Read(make([]byte, slabBytes), nil); !errors.Is(err, wgtun.ErrTooManySegments) {
		t.Errorf("Read into no packets: %v", err)
	}
}

func TestReadDeliversWhatItHasBeforeAnError(t *testing.T) {
	for name, tc := range map[string]struct{ after, lost error }{
		"device gone": {unix.EBADFD, unix.EBADFD},
		"end of file": {nil, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			frame, want := udp4.super([]byte("last"), 0)
			f := newFakeReader(true, frame)
			f.queue.after = tc.after
			if tc.after == nil {
				f.queue.frames = append(f.queue.frames, []byte{}, []byte{})
			}
			got, err := f.next(t, make([]byte, slabBytes), batchSize)
			if err != nil || !slices.EqualFunc(got, want, bytes.Equal) || f.lost != nil {
				t.Fatalf("got % x, %v, lost %v", got, err, f.lost)
			}
			if _, err = f.next(t, make([]byte, slabBytes), batchSize); !errors.Is(err, os.ErrClosed) || !errors.Is(f.lost, tc.lost) {
				t.Errorf("then %v, lost %v", err, f.lost)
			}
		})
	}
	t.Run("poller closed", func(t *testing.T) {
		f := newFakeReader(true)
		if _, err := f.next(t, make([]byte, slabBytes), batchSize); !errors.Is(err, os.ErrClosed) || f.lost != nil {
			t.Errorf("%v, lost %v", err, f.lost)
		}
	})
}

func TestReadRetriesAfterASignal(t *testing.T) {
	frame, want := udp4.super([]byte("x"), 0)
	f := newFakeReader(true, frame)
	interrupted := false
	read := f.reader.read
	f.reader.read = func(fd int, p []byte) (int, error) {
		if !interrupted {
			interrupted = true
			return 0, unix.EINTR
		}
		return read(fd, p)
	}
	if got, err := f.next(t, make([]byte, slabBytes), batchSize); err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("got % x, %v", got, err)
	}
}

// FuzzRead feeds frames to the reader and demands that whatever it makes of
// them is laid out as the engine expects and nothing is lost silently.
func FuzzRead(f *testing.F) {
	for _, fl := range []flow{tcp4, tcp6, udp4, udp6} {
		for _, gsoSize := range []int{0, 48, 1200} {
			frame, _ := fl.super(make([]byte, 3000), gsoSize)
			f.Add(frame, uint32(slabBytes), uint8(batchSize))
			f.Add(frame, uint32(2000), uint8(1))
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte, slabSize uint32, packets uint8) {
		if len(frame) == 0 || len(frame) > scratchSize {
			return
		}
		slab := make([]byte, 1500+slabSize%slabBytes)
		r := newFakeReader(true, frame, frame)
		// Every batch takes at least a byte off a frame.
		for i := range 2*len(frame) + 1 {
			got, err := r.next(t, slab, 1+int(packets))
			if err != nil {
				if !errors.Is(err, os.ErrClosed) || len(got) > 0 {
					t.Fatalf("%d packets with %v", len(got), err)
				}
				malformed, oversize := r.drops.Load(drop.Malformed), r.drops.Load(drop.Oversize)
				if i == 0 && malformed+oversize != 2 {
					t.Fatal("frames vanished")
				}
				return
			}
			if len(got) == 0 {
				t.Fatal("no packet and no error")
			}
		}
		t.Fatal("never comes to an end")
	})
}
