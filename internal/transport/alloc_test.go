//go:build !race

// The race detector makes sync.Pool forget at random, so this is measured without.

package transport

import (
	"testing"

	"github.com/tailscale/wireguard-go/conn"
)

func TestThePacketPathAllocatesNothing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   Config
		sizes []int
		ecn   byte
	}{
		{"coalesced", Config{}, repeat(128, 1312), 0},
		{"singly", Config{DisableGSO: true, DisableGRO: true}, repeat(100, 1312), 0},
		{"surprises", Config{}, []int{96, 1312, 1312, 1312, 1312}, 0},
		{"capable of ECN", Config{}, repeat(128, 1312), 1},
		{"with Congestion Experienced", Config{}, repeat(128, 1312), ecnCE},
		{"singly with Congestion Experienced", Config{DisableGSO: true, DisableGRO: true}, repeat(100, 1312), ecnCE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, z := openSockets(t, tt.cfg), openSockets(t, tt.cfg)
			ab, zb := NewBind(a, discard{}), NewBind(z, discard{})
			if _, _, err := ab.Open(0); err != nil {
				t.Fatal(err)
			}
			defer ab.Close()
			fns, _, err := zb.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			defer zb.Close()
			key := [32]byte{9}
			e := NewEndpoint(nil)
			z.Peers().Add(key, e)
			relayed := channelBetween(a, z) // so that ChannelData and STUN have takers
			bufs, _ := batch(tt.sizes...)
			for _, b := range bufs {
				b[headroom-ECNAhead] = tt.ecn
			}
			framed := channelData(MinChannel, transport(96, 0))
			stun := bindingRequest()
			slab, packets := make([]byte, slabSize), make([]conn.ReceivedPacket, 128)
			p := pathTo(a, z, IPv4)
			congested := false
			round := func() {
				for _, path := range []*Path{p, relayed} {
					if err := ab.Send(bufs, path, headroom); err != nil {
						t.Fatal(err)
					}
				}
				if a.SendTo(framed, p) != nil || a.SendToServer(stun, p.Remote()) != nil {
					t.Fatal("control datagrams")
				}
				for got := 0; got < 2*len(bufs)+1; {
					n, err := fns[0](slab, packets)
					if err != nil {
						t.Fatal(err)
					}
					packets[n-1].Endpoint.(conn.PeerAwareEndpoint).FromPeer(key)
					congested = congested || e.Congested()
					got += n
				}
			}
			round()
			if congested != (tt.ecn == ecnCE) {
				t.Errorf("congested is %v", congested)
			}
			if n := testing.AllocsPerRun(200, round); n != 0 {
				t.Errorf("%v allocations in a batch of %d", n, len(bufs))
			}
		})
	}
}
