package transport

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"firezone-gateway/internal/drop"
)

func TestBatchesArriveInOrder(t *testing.T) {
	mixed := []int{1312, 1312, 1312, 96, 96, 1312, 32, 1312, 1312, 500, 400, 300, 300, 300, 1316, 1316}
	for _, f := range []Family{IPv4, IPv6} {
		for _, offload := range []struct {
			name string
			cfg  Config
		}{
			{"with offloads", Config{}},
			{"without GSO", Config{DisableGSO: true}},
			{"without GRO", Config{DisableGRO: true}},
			{"without offloads", Config{DisableGSO: true, DisableGRO: true}},
		} {
			for _, b := range []struct {
				name  string
				sizes []int
			}{
				{"one", []int{96}},
				{"128 full ones", repeat(128, 1312)},
				{"128 keepalives", repeat(128, 32)},
				{"mixed sizes", mixed},
				{"a shorter tail", append(repeat(20, 1312), 64)},
			} {
				t.Run(fmt.Sprintf("%v %s: %s", f, offload.name, b.name), func(t *testing.T) {
					a, z := openSockets(t, offload.cfg), openSockets(t, offload.cfg)
					needFamily(t, a, f)
					e := startEngine(t, z, 128)
					var path *Path
					for range 3 {
						bufs, want := batch(b.sizes...)
						send(t, a, pathTo(a, z, f), bufs)
						path = e.expect(t, want)
					}
					if path.Remote() != address(a, f) || path.Local() != address(z, f) {
						t.Errorf("path is %v", path)
					}
					out, in := a.Stats()[f], z.Stats()[f]
					if n := uint64(3 * len(b.sizes)); out.DatagramsOut != n || in.DatagramsIn != n || out.BytesOut != in.BytesIn {
						t.Errorf("out %+v, in %+v, want %d datagrams", out, in, n)
					}
				})
			}
		}
	}
}

func TestCoalescedMessagesInBothModes(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	if !a.sockets[IPv4].gso.Load() || !z.sockets[IPv4].gro {
		skipOrFail(t, "no UDP segmentation or receive offload")
	}
	for _, packets := range []int{1, 7, 128} {
		t.Run(fmt.Sprintf("%d packets at a time", packets), func(t *testing.T) {
			e := startEngine(t, z, packets)
			r := e.bind.receivers[IPv4]
			// Everything is queued before the receiver sees it, so that one call finds it all.
			e.close(t)
			var want []string
			fill := func(count, size int) {
				bufs, w := batch(repeat(count, size)...)
				send(t, a, pathTo(a, z, IPv4), bufs)
				want = append(want, w...)
			}
			for range 3 {
				fill(1, 200)   // single, in a slot
				fill(50, 1300) // a surprise
				fill(60, 33)   // fits a slot although coalesced
				fill(1, 500)
				fill(64, 1000)
				fill(128, 32)
			}
			if r.aggregating {
				t.Fatal("starts in aggregating mode")
			}
			e.open(t, packets)
			e.expect(t, want)
			bufs, want2 := batch(repeat(40, 1312)...)
			send(t, a, pathTo(a, z, IPv4), bufs)
			e.expect(t, want2)
			e.close(t)
			if !r.aggregating {
				t.Error("coalesced messages do not lead to aggregating mode")
			}
			e.open(t, packets)
			for range 2 {
				bufs, want2 = batch(1312)
				send(t, a, pathTo(a, z, IPv4), bufs)
				e.expect(t, want2)
			}
			e.close(t)
			if r.aggregating {
				t.Error("single messages do not lead back to single mode")
			}
		})
	}
}

func TestOrderAndContentOfManyDatagrams(t *testing.T) {
	const total, window = 100_000, 1000
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	e := startEngine(t, z, 128)
	p := pathTo(a, z, IPv4)
	rnd := rand.New(rand.NewPCG(1, 2))
	sizes := make([]int, total)
	for i := range sizes {
		switch {
		case i > 0 && rnd.IntN(4) > 0:
			sizes[i] = sizes[i-1] // runs, which coalesce
		default:
			sizes[i] = 32 + rnd.IntN(MaxDatagram-32+1)
		}
	}
	sent := 0
	for received := 0; received < total; received++ {
		for sent < total && sent-received < window {
			n := min(1+rnd.IntN(128), total-sent)
			bufs := make([][]byte, n)
			for i := range bufs {
				bufs[i] = append(make([]byte, headroom), transport(sizes[sent+i], sent+i)...)
			}
			send(t, a, p, bufs)
			sent += n
		}
		if got := e.next(t); got.b != string(transport(sizes[received], received)) {
			t.Fatalf("datagram %d has %d bytes %.8x, want %d bytes", received, len(got.b), got.b, sizes[received])
		}
	}
	e.expectNothing(t)
	t.Logf("sender %+v", a.Stats()[IPv4])
	t.Logf("receiver %+v", z.Stats()[IPv4])
}

func TestOversizeIsNeitherSentNorReceived(t *testing.T) {
	out, in := new(drop.Counters), new(drop.Counters)
	a, z := openSockets(t, Config{Drops: out}), openSockets(t, Config{Drops: in})
	e := startEngine(t, z, 128)
	p := pathTo(a, z, IPv4)

	bufs, want := batch(96, 1317, 1316)
	send(t, a, p, bufs)
	e.expect(t, []string{want[0], want[2]})
	waitDrops(t, out, drop.DatagramOversize, 1)
	if err := a.SendTo(make([]byte, 1317), p); err != ErrTooLong {
		t.Errorf("SendTo = %v, want ErrTooLong", err)
	}
	if err := a.SendToServer(make([]byte, 1317), address(z, IPv4)); err != ErrTooLong {
		t.Errorf("SendToServer = %v, want ErrTooLong", err)
	}

	c := dial(t, z)
	for _, n := range []int{1317, 2048, 2049, 9000, 65000} {
		if _, err := c.Write(transport(n, 0)); err != nil {
			t.Fatal(err)
		}
	}
	waitDrops(t, in, drop.DatagramOversize, 5)
	e.expectNothing(t)
}

func TestCoalescedOversizeIsDropped(t *testing.T) {
	drops := new(drop.Counters)
	z := openSockets(t, Config{Drops: drops})
	if !z.sockets[IPv4].gro || !z.sockets[IPv4].gso.Load() {
		skipOrFail(t, "no UDP segmentation or receive offload")
	}
	e := startEngine(t, z, 128)
	c := dial(t, z)
	var size [64]byte
	oob := size[:putSegmentSize(size[:], MaxDatagram+1)]
	message := bytes.Repeat(transport(MaxDatagram+1, 0), 5)
	last := transport(MaxDatagram, 1) // the only one that is short enough
	if _, _, err := c.WriteMsgUDP(append(message, last...), oob, nil); err != nil {
		t.Fatal(err)
	}
	e.expect(t, []string{string(last)})
	waitDrops(t, drops, drop.DatagramOversize, 5)
}

func TestTheChannelHeaderCounts(t *testing.T) {
	drops := new(drop.Counters)
	a, z := openSockets(t, Config{Drops: drops}), openSockets(t, Config{})
	e := startEngine(t, z, 128)
	p := channelBetween(a, z)
	bufs, want := batch(MaxDatagram-channelHeader, MaxDatagram-channelHeader+1, 96)
	send(t, a, p, bufs)
	e.expect(t, []string{want[0], want[2]})
	for n, want := range map[int]error{MaxDatagram - channelHeader: nil, MaxDatagram - channelHeader + 1: ErrTooLong} {
		if err := a.SendTo(transport(n, 0), p); err != want {
			t.Errorf("SendTo of %d bytes = %v, want %v", n, err, want)
		}
	}
	e.expect(t, []string{string(transport(MaxDatagram-channelHeader, 0))})
	waitDrops(t, drops, drop.DatagramOversize, 2)
}
