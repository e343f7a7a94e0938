package tunnel

import (
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"weak"

	enginetun "github.com/tailscale/wireguard-go/tun"
)

// trainTUN is a device that is read many packets at a time.
type trainTUN struct {
	gatewayTUN
	trains chan [][]byte
	slabs  []weak.Pointer[byte] // which the engine read into
}

func (d *trainTUN) Read(slab []byte, packets []enginetun.ReadPacket) (int, error) {
	var train [][]byte
	select {
	case train = <-d.trains:
	case pkt := <-d.toEngine:
		train = [][]byte{pkt}
	case <-d.closed:
		return 0, os.ErrClosed
	}
	at := spacing
	for i, pkt := range train {
		packets[i] = enginetun.ReadPacket{Offset: at, Size: copy(slab[at:], pkt)}
		at += len(pkt) + spacing
	}
	d.slabs = append(d.slabs, weak.Make(&slab[0]))
	return len(train), nil
}

// The engine has scratch space for each client, in which a batch leaves its slices
// behind where the next one is shorter.
func TestPastBatchesHoldNoMemory(t *testing.T) {
	const longest = 50
	synctest.Test(t, func(t *testing.T) {
		r, c := newCabledRig(t)
		m := r.joinCabled(t, c)
		dev := &trainTUN{gatewayTUN: r.tun, trains: make(chan [][]byte)}
		r.AttachTUN(dev)
		r.exchange(t, m, 1) // which ends the engine's read of the device before, if any
		train := func(n int, pkt []byte) (list [][]byte) {
			for range n {
				list = append(list, pkt)
			}
			return list
		}
		toClient := udp(server4, address4(m.n), 1000, 1, 1100)
		toResource := udp(address4(m.n), server4, 1, 1000, 1100)
		for n := longest; n > 0; n-- {
			dev.trains <- train(n, toClient)
			for range n {
				m.tun.expect(t, toClient)
			}
			synctest.Wait()
			c.gateway.train.Store(int32(n))
			for range n {
				m.tun.send(t, toResource)
			}
			for range n {
				r.tun.expect(t, toResource)
			}
			synctest.Wait()
			for range 2 { // which empties the pool of slabs
				runtime.GC()
			}
		}
		for way, slabs := range map[string][]weak.Pointer[byte]{"to the client": dev.slabs, "to the resource": c.gateway.slabs} {
			held := map[*byte]bool{}
			for _, slab := range slabs {
				if p := slab.Value(); p != nil {
					held[p] = true
				}
			}
			if len(slabs) < longest || len(held) > 2 { // the last one, and the one to be filled next
				t.Errorf("%s: %d of the slabs of %d batches are held", way, len(held), len(slabs))
			}
		}
	})
}
