//go:build !race

// The race detector makes sync.Pool forget at random, so this is measured without.

package transport

import (
	"net/netip"
	"testing"

	"github.com/tailscale/wireguard-go/conn"
)

func TestThePacketPathAllocatesNothing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   Config
		sizes []int
	}{
		{"coalesced", Config{}, repeat(128, 1312)},
		{"singly", Config{DisableGSO: true, DisableGRO: true}, repeat(100, 1312)},
		{"surprises", Config{}, []int{96, 1312, 1312, 1312, 1312}},
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
			r := z.AddRelay(address(a, IPv4)) // so that ChannelData and STUN have takers
			r.SetChannel(MinChannel, netip.MustParseAddrPort("198.51.100.7:1"), netip.MustParseAddrPort("203.0.113.1:2"))
			bufs, _ := batch(tt.sizes...)
			framed := channelData(MinChannel, transport(96, 0))
			stun := bindingRequest()
			slab, packets := make([]byte, slabSize), make([]conn.ReceivedPacket, 128)
			p := pathTo(a, z, IPv4)
			round := func() {
				if err := ab.Send(bufs, p, headroom); err != nil {
					t.Fatal(err)
				}
				if a.SendTo(framed, p) != nil || a.SendToServer(stun, p.Remote()) != nil {
					t.Fatal("control datagrams")
				}
				for got := 0; got < len(bufs)+1; {
					n, err := fns[0](slab, packets)
					if err != nil {
						t.Fatal(err)
					}
					packets[n-1].Endpoint.(conn.PeerAwareEndpoint).FromPeer(key)
					got += n
				}
			}
			round()
			if n := testing.AllocsPerRun(200, round); n != 0 {
				t.Errorf("%v allocations in a batch of %d", n, len(bufs))
			}
		})
	}
}
