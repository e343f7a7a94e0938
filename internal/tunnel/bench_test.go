package tunnel

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
)

// load is a population of clients, each with its own networks, and packets of
// 1280 bytes for them. The address fields of the packets are written anew for
// each batch, as part of what is measured, so that the packets stay in the cache
// as they do behind the engine.
type load struct {
	tunnel  *Tunnel
	clients []*Client
	servers [][][4]byte // by client, one in each network
}

func newLoad(b testing.TB, clients, grants int) *load {
	b.Helper()
	l := &load{tunnel: plainTunnel()}
	random := rand.New(rand.NewPCG(1, 2))
	filters := []policy.Filter{
		{Protocol: policy.FilterTCP, Ports: policy.PortRange{First: 443, Last: 443}},
		{Protocol: policy.FilterUDP, Ports: policy.PortRange{First: 1000, Last: 1999}},
	}
	for i := range clients {
		var granted []policy.Grant
		var servers [][4]byte
		for g := range grants {
			network := netip.AddrFrom4([4]byte{10, byte(random.Uint32()), byte(random.Uint32()), 0})
			granted = append(granted, policy.Grant{Resource: policy.Resource{
				ID: fmt.Sprint(g), Kind: policy.CIDR, Network: netip.PrefixFrom(network, 24), Filters: filters}})
			a := network.As4()
			a[3] = byte(random.Uint32())
			servers = append(servers, a)
		}
		l.clients = append(l.clients, connect(b, l.tunnel, configOf(i+1, newHeardBy(), granted...)))
		l.servers = append(l.servers, servers)
	}
	return l
}

var loads = []struct {
	name            string
	clients, grants int
}{
	{"1Client1Grant", 1, 1},
	{"1000Clients20Grants", 1000, 20},
}

// outboundBatch is a batch from one client.
type outboundBatch struct {
	bufs, scratch [][]byte
}

func newOutboundBatch() *outboundBatch {
	o := &outboundBatch{scratch: make([][]byte, 0, batchSize)}
	for range batchSize {
		o.bufs = append(o.bufs, decrypted(udp(address4(1), server4, 5000, 1500, packet.MaxSize-28))...)
	}
	return o
}

// address makes the batch one of client i to random servers of its own.
func (o *outboundBatch) address(l *load, i int, random *rand.Rand) [][]byte {
	src, servers := address4(i+1).As4(), l.servers[i]
	for _, b := range o.bufs {
		dst := servers[random.IntN(len(servers))]
		copy(b[engineOffset+12:], src[:])
		copy(b[engineOffset+16:], dst[:])
	}
	return append(o.scratch[:0], o.bufs...)
}

// sinkTUN is a device that counts what it is given.
type sinkTUN struct {
	gatewayTUN
	packets int
}

func (s *sinkTUN) Write(bufs [][]byte, _ int) (int, error) {
	s.packets += len(bufs)
	return len(bufs), nil
}

func BenchmarkToResource(b *testing.B) {
	for _, size := range loads {
		b.Run(size.name, func(b *testing.B) {
			l, o, sink := newLoad(b, size.clients, size.grants), newOutboundBatch(), &sinkTUN{}
			l.tunnel.AttachTUN(sink)
			random := rand.New(rand.NewPCG(3, 4))
			b.SetBytes(batchSize * packet.MaxSize)
			b.ReportAllocs()
			for b.Loop() {
				i := random.IntN(len(l.clients))
				bufs := o.address(l, i, random)
				sink.packets = 0
				if _, _ = l.tunnel.dev.WriteTo(int(l.clients[i].flow), bufs, engineOffset); sink.packets != batchSize {
					b.Fatal("not forwarded")
				}
			}
			perPacket(b)
		})
	}
}

// inboundBatch is a batch from the TUN device.
type inboundBatch struct {
	slab         []byte
	all, packets []enginetun.ReadPacket
}

func newInboundBatch() *inboundBatch {
	packets := make([][]byte, batchSize)
	for i := range packets {
		packets[i] = udp(server4, address4(1), 1500, 5000, packet.MaxSize-28)
	}
	in := &inboundBatch{packets: make([]enginetun.ReadPacket, batchSize)}
	in.slab, in.all = fromTUN(packets...)
	return in
}

// address makes each run of packets one for a random client, each packet from one
// of its servers.
func (in *inboundBatch) address(l *load, run int, random *rand.Rand) []enginetun.ReadPacket {
	i := 0
	for n, p := range in.all {
		if n%run == 0 {
			i = random.IntN(len(l.clients))
		}
		src, dst := l.servers[i][random.IntN(len(l.servers[i]))], address4(i+1).As4()
		copy(in.slab[p.Offset+12:], src[:])
		copy(in.slab[p.Offset+16:], dst[:])
	}
	copy(in.packets, in.all)
	return in.packets
}

// pass does what Read and the engine's reader do with a batch.
func (in *inboundBatch) pass(t *Tunnel, packets []enginetun.ReadPacket, now int64) (routed int) {
	d := t.dev
	d.count, d.next = t.toClient(in.slab, packets, d.owners[:], now), 0
	for _, p := range packets[:d.count] {
		pkt := in.slab[p.Offset : p.Offset+p.Size]
		src, dst := netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20]))
		if _, ok := t.route(src, dst, pkt); ok {
			routed++
		}
	}
	return routed
}

// BenchmarkToClient has packets in runs, as segments of one stream come from the
// TUN device, and as the worst case another client for every packet.
func BenchmarkToClient(b *testing.B) {
	for _, size := range loads {
		for _, run := range []int{8, 1} {
			if size.clients == 1 && run == 1 {
				continue
			}
			b.Run(fmt.Sprintf("%s/RunsOf%d", size.name, run), func(b *testing.B) {
				l, in := newLoad(b, size.clients, size.grants), newInboundBatch()
				random := rand.New(rand.NewPCG(3, 4))
				now := clock.UnixNano()
				b.SetBytes(batchSize * packet.MaxSize)
				b.ReportAllocs()
				for b.Loop() {
					if in.pass(l.tunnel, in.address(l, run, random), now) != batchSize {
						b.Fatal("not passed")
					}
				}
				perPacket(b)
			})
		}
	}
}

// BenchmarkAddressing measures what the other two spend on their packets.
func BenchmarkAddressing(b *testing.B) {
	l, in := newLoad(b, 1000, 20), newInboundBatch()
	random := rand.New(rand.NewPCG(3, 4))
	for b.Loop() {
		in.address(l, 1, random)
	}
	perPacket(b)
}

func perPacket(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/packet")
}

func TestPipelinesDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := newLoad(t, 50, 20)
	random := rand.New(rand.NewPCG(3, 4))
	now := clock.UnixNano()
	o, in := newOutboundBatch(), newInboundBatch()
	hold := func(name string, f func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	hold("to resource", func() {
		i := random.IntN(len(l.clients))
		if l.tunnel.toResource(l.clients[i], o.address(l, i, random), engineOffset, now) == nil {
			t.Error("nothing forwarded")
		}
	})
	hold("to client", func() {
		if in.pass(l.tunnel, in.address(l, 1, random), now) != batchSize {
			t.Error("not passed")
		}
	})
	answered := newInboundBatch()
	hold("answers", func() {
		now += 1e9 // a budget for each run
		bufs := o.address(l, 0, random)
		for _, b := range bufs {
			binary.BigEndian.PutUint32(b[engineOffset+16:], 0x08080808)
		}
		if len(l.tunnel.toResource(l.clients[0], bufs, engineOffset, now)) != 0 {
			t.Error("forwarded")
		}
		n, err := l.tunnel.inject.Read(answered.slab, answered.packets)
		if n != batchSize || err != nil {
			t.Errorf("%d answers, %v", n, err)
		}
		for _, p := range answered.packets[:n] {
			pkt := answered.slab[p.Offset : p.Offset+p.Size]
			if _, ok := l.tunnel.route(netip.Addr{}, netip.IPv4Unspecified(), pkt); !ok {
				t.Error("answer without a client")
			}
		}
	})
}
