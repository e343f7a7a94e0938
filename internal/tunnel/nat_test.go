package tunnel

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
)

var (
	proxy4, proxy6 = netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd00:2021:1111:8000::1")
	behind4        = netip.MustParseAddr("10.77.0.5")
	behind6        = netip.MustParseAddr("2001:db8:77::5")
	nameless4      = netip.MustParseAddr("100.96.0.9") // set up, without an address
	stranger4      = netip.MustParseAddr("100.96.0.200")
)

// natRig is a tunnel with a TUN device and client 1, which has a DNS resource.
type natRig struct {
	tun    *Tunnel
	device gatewayTUN
	client *Client
	nat    *NAT
	woken  int
	slab   []byte // of answers
}

func siteGrant(filters ...policy.Filter) policy.Grant {
	return policy.Grant{Resource: policy.Resource{ID: "site", Kind: policy.DNS, Pattern: "*.example.com", Filters: filters}}
}

func newNATRig(t testing.TB, cfg nat.Config) *natRig {
	t.Helper()
	r := &natRig{tun: plainTunnel(), device: newGatewayTUN(), nat: NewNAT(nat.New(cfg))}
	r.tun.AttachTUN(r.device)
	r.nat.Adopt(func() { r.woken++ })
	for _, a := range []nat.Assignment{
		{Resource: "site", Domain: "a.example.com", ProxyIPs: []netip.Addr{proxy4, proxy6}, RealIPs: []netip.Addr{behind4, behind6}},
		{Resource: "site", Domain: "b.example.com", ProxyIPs: []netip.Addr{nameless4}},
	} {
		if _, err := r.nat.Table().Assign(a); err != nil {
			t.Fatal(err)
		}
	}
	cfg1 := configOf(1, newHeardBy(), append(usualGrants(), siteGrant())...)
	cfg1.NAT = r.nat
	r.client = connect(t, r.tun, cfg1)
	return r
}

func (r *natRig) toResource(packets ...[]byte) [][]byte {
	return r.outward(clock.UnixNano(), packets...)
}

func (r *natRig) toClient(packets ...[]byte) [][]byte {
	return r.inward(clock.UnixNano(), packets...)
}

// open has the writer of the table run and returns what it put on the network.
func (r *natRig) open() [][]byte { return r.opened(clock.UnixNano()) }

// outward returns those of a batch of packets from the client that go to the TUN
// device.
func (r *natRig) outward(now int64, packets ...[]byte) (kept [][]byte) {
	for _, b := range r.tun.toResource(r.client, decrypted(packets...), engineOffset, now) {
		kept = append(kept, b[engineOffset:])
	}
	return kept
}

// inward returns those of a batch of packets from the TUN device that go to a
// client.
func (r *natRig) inward(now int64, packets ...[]byte) (kept [][]byte) {
	slab, descriptors := fromTUN(packets...)
	n := r.tun.toClient(slab, descriptors, make([]addressee, len(packets)), now)
	for _, p := range descriptors[:n] {
		kept = append(kept, slab[p.Offset:p.Offset+p.Size])
	}
	return kept
}

func (r *natRig) opened(now int64) (packets [][]byte) {
	r.tun.Open(r.nat, now)
	for {
		select {
		case p := <-r.device.fromEngine:
			packets = append(packets, p)
		default:
			return packets
		}
	}
}

// answers returns what the gateway says to clients by itself.
func (r *natRig) answers(t *testing.T) (packets [][]byte) {
	if r.slab == nil {
		r.slab = make([]byte, slabSize)
	}
	slab, descriptors := r.slab, make([]enginetun.ReadPacket, batchSize)
	for r.tun.inject.used > 0 {
		n, err := r.tun.inject.Read(slab, descriptors)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range descriptors[:n] {
			p := slices.Clone(slab[d.Offset : d.Offset+d.Size])
			if r.tun.inject.claim(p) == nil {
				t.Errorf("an answer to nobody: %x", p)
			}
			packets = append(packets, p)
		}
	}
	return packets
}

func checkPackets(t *testing.T, got [][]byte, want ...[]byte) {
	t.Helper()
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Fatalf("got %x, want %x", got, want)
	}
}

func TestAFlowToADomain(t *testing.T) {
	for _, c := range []struct {
		name                         string
		first, translated, back, got []byte
	}{
		{"UDP over IPv4", udp(address4(1), proxy4, 5000, 53, 20), udp(address4(1), behind4, 5000, 53, 20),
			udp(behind4, address4(1), 53, 5000, 9), udp(proxy4, address4(1), 53, 5000, 9)},
		{"UDP over IPv6", udp(address6(1), proxy6, 5000, 53, 20), udp(address6(1), behind6, 5000, 53, 20),
			udp(behind6, address6(1), 53, 5000, 9), udp(proxy6, address6(1), 53, 5000, 9)},
		{"echo", packettest.Ping(address4(1), proxy4, 7, []byte("ping")), packettest.Ping(address4(1), behind4, 7, []byte("ping")),
			packettest.Pong(behind4, address4(1), 7, []byte("ping")), packettest.Pong(proxy4, address4(1), 7, []byte("ping"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newNATRig(t, nat.Config{})
			checkPackets(t, r.toResource(c.first, c.first))
			if r.woken != 1 || r.nat.Waiting() != 2 {
				t.Errorf("woken %d times, %d packets wait", r.woken, r.nat.Waiting())
			}
			checkPackets(t, r.open(), c.translated, c.translated)
			checkPackets(t, r.toResource(c.first), c.translated)
			checkPackets(t, r.toClient(c.back), c.got)
			wantDrops(t, "client", r.client.Drops(), nil)
			wantDrops(t, "tunnel", r.tun.Drops(), nil)
			if got := r.client.Counters().ToResourcePackets.Load(); got != 3 {
				t.Errorf("%d packets counted", got)
			}
		})
	}
}

func TestPacketsToDomainsThatDoNotPass(t *testing.T) {
	own := address4(1)
	for _, c := range []struct {
		name   string
		packet []byte
		reason drop.Reason
		answer packet.Unreachable
	}{
		{"a domain without address", udp(own, nameless4, 1, 1, 0), drop.Unresolved, packet.NoRoute},
		{"an address that was not set up", udp(own, stranger4, 1, 1, 0), drop.Unresolved, packet.NoRoute},
		{"a protocol without way back", packettest.IP(own, proxy4, 47, make([]byte, 8)), drop.NATUnsupported, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newNATRig(t, nat.Config{})
			checkPackets(t, r.toResource(c.packet))
			wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{c.reason: 1})
			answers := drain(t, r.tun)
			if len(answers) != 0 != (c.answer != 0) {
				t.Fatalf("%d answers", len(answers))
			}
			if c.answer != 0 {
				if typ, code := icmpOf(t, answers[0].b); typ != 3 || code != 0 {
					t.Errorf("answer %d/%d, want unreachable", typ, code)
				}
			}
		})
	}
}

// What happens between a first packet and its session counts.
func TestFirstPacketsAreJudgedAgain(t *testing.T) {
	first := udp(address4(1), proxy4, 5000, 53, 20)
	for _, c := range []struct {
		name    string
		between func(r *natRig)
		reason  drop.Reason
	}{
		{"the resource is revoked", func(r *natRig) { r.client.SetPolicy(snapshot(1, usualGrants()...)) }, drop.NoResource},
		{"the filter refuses it", func(r *natRig) {
			r.client.SetPolicy(snapshot(1, siteGrant(policy.Filter{Protocol: policy.FilterTCP, Ports: policy.PortRange{Last: 65535}})))
		}, drop.Filtered},
		{"the domain has no address any more", func(r *natRig) {
			_, _ = r.nat.Table().Assign(nat.Assignment{Resource: "site", Domain: "a.example.com", ProxyIPs: []netip.Addr{proxy4}})
		}, drop.Unresolved},
		{"the client is said goodbye to", func(r *natRig) { r.client.closing.Store(true) }, drop.NoResource},
		{"the client is removed", func(r *natRig) { r.client.removed.Store(true) }, drop.NoResource},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newNATRig(t, nat.Config{})
			r.toResource(first)
			c.between(r)
			checkPackets(t, r.open())
			wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{c.reason: 1})
			if n := r.nat.Table().Stats().Sessions; n != 0 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

func TestFirstPacketsAreBounded(t *testing.T) {
	r := newNATRig(t, nat.Config{MaxSessions: 100})
	var packets [][]byte
	for port := range firstPackets + 3 {
		packets = append(packets, udp(address4(1), proxy4, uint16(1000+port), 53, 0))
	}
	checkPackets(t, r.toResource(packets...))
	if got := len(r.open()); got != 100 {
		t.Errorf("%d packets passed, want as many as there are sessions", got)
	}
	wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{drop.NATOverflow: 3, drop.NATFull: firstPackets - 100})
	r.toResource(packets[0], packets[200])
	if r.woken != 2 {
		t.Errorf("woken %d times, want once for each time the queue was empty", r.woken)
	}
}

// Rule 63, and what nobody but a session may bring.
func TestPacketsFromTheNetworkWithoutASession(t *testing.T) {
	r := newNATRig(t, nat.Config{})
	r.toResource(udp(address4(1), proxy4, 5000, 53, 20))
	r.open()
	r.nat.Table().Invalidate("site")
	checkPackets(t, r.toClient(
		udp(behind4, address4(1), 53, 5000, 9),  // of the session that ended
		udp(behind4, address4(1), 53, 5001, 9),  // of none
		udp(proxy4, address4(1), 53, 5000, 9),   // by somebody who knows proxy addresses
		udp(proxy4, address4(1), 1500, 5000, 9), // same
	))
	wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{drop.NATEnded: 1, drop.NotAllowed: 3})
}

func TestWithoutADeviceFirstPacketsAreCounted(t *testing.T) {
	r := newNATRig(t, nat.Config{})
	r.tun.AttachTUN(nil)
	r.toResource(udp(address4(1), proxy4, 5000, 53, 20))
	r.open()
	wantDrops(t, "tunnel", r.tun.Drops(), map[drop.Reason]uint64{drop.TUNWrite: 1})
}

// crowd is 100,000 UDP sessions of one client and what packets of each begin with.
type crowd struct {
	*natRig
	there, back [][28]byte
}

const crowded = 100_000

func newCrowd(b *testing.B) *crowd {
	c := &crowd{newNATRig(b, nat.Config{}), make([][28]byte, crowded), make([][28]byte, crowded)}
	var proxies, reals []netip.Addr
	for i := range crowded / 50_000 {
		proxies = append(proxies, netip.AddrFrom4([4]byte{100, 97, 0, byte(i)}))
		reals = append(reals, netip.AddrFrom4([4]byte{10, 78, 0, byte(i)}))
	}
	if _, err := c.nat.Table().Assign(nat.Assignment{Resource: "site", Domain: "c.example.com", ProxyIPs: proxies, RealIPs: reals}); err != nil {
		b.Fatal(err)
	}
	for i := range crowded {
		at, port := i%len(proxies), uint16(1024+i/len(proxies))
		copy(c.there[i][:], udp(address4(1), proxies[at], port, 53, packet.MaxSize-28))
		copy(c.back[i][:], udp(reals[at], address4(1), 53, port, packet.MaxSize-28))
	}
	emptied := make(chan struct{})
	go func() {
		defer close(emptied)
		for range c.device.fromEngine {
		}
	}()
	for i := 0; i < crowded; i += batchSize {
		for _, head := range c.there[i:min(i+batchSize, crowded)] {
			c.nat.Hold(c.client, append(head[:], make([]byte, packet.MaxSize-28)...))
		}
		c.tun.Open(c.nat, clock.UnixNano())
	}
	close(c.device.fromEngine)
	<-emptied
	if n := c.nat.Table().Stats().Sessions; n != crowded {
		b.Fatalf("%d sessions", n)
	}
	return c
}

// measure has pass take batches with the packets' beginnings of heads, in runs as
// a peer sends them and as the worst case another session for every packet. Least,
// median and mean time of a batch leave out what writing the beginnings costs,
// the first two of them also what others do on the machine.
func (c *crowd) measure(b *testing.B, packets [][]byte, heads [][28]byte, pass func() int) {
	for _, run := range []int{8, 1} {
		b.Run(fmt.Sprintf("RunsOf%d", run), func(b *testing.B) {
			at := 0
			took := make([]time.Duration, 0, 1<<16)
			b.SetBytes(batchSize * packet.MaxSize)
			b.ReportAllocs()
			for b.Loop() {
				for i, p := range packets {
					if i%run == 0 {
						at = (at + 7919) % crowded
					}
					copy(p, heads[at][:])
				}
				begin := time.Now()
				if pass() != batchSize {
					b.Fatal("not forwarded")
				}
				if len(took) < cap(took) {
					took = append(took, time.Since(begin))
				}
			}
			var sum time.Duration
			for _, d := range took {
				sum += d
			}
			slices.Sort(took)
			b.ReportMetric(float64(sum)/float64(len(took))/batchSize, "mean-ns/packet")
			b.ReportMetric(float64(took[len(took)/2])/batchSize, "median-ns/packet")
			b.ReportMetric(float64(took[0])/batchSize, "least-ns/packet")
			perPacket(b)
		})
	}
}

// BenchmarkToDomain is BenchmarkToResource for packets that are translated.
func BenchmarkToDomain(b *testing.B) {
	c, o := newCrowd(b), newOutboundBatch()
	var packets [][]byte
	for _, buf := range o.bufs {
		packets = append(packets, buf[engineOffset:])
	}
	c.measure(b, packets, c.there, func() int {
		return len(c.tun.toResource(c.client, append(o.scratch[:0], o.bufs...), engineOffset, clock.UnixNano()))
	})
}

// BenchmarkFromDomain is the same for the answers.
func BenchmarkFromDomain(b *testing.B) {
	c, in := newCrowd(b), newInboundBatch()
	var packets [][]byte
	for _, p := range in.all {
		packets = append(packets, in.slab[p.Offset:])
	}
	owners := make([]addressee, batchSize)
	c.measure(b, packets, c.back, func() int {
		copy(in.packets, in.all)
		return c.tun.toClient(in.slab, in.packets, owners, clock.UnixNano())
	})
}

// BenchmarkFirstPackets is what a new session costs the packet path and the
// writer of the table together.
func BenchmarkFirstPackets(b *testing.B) {
	r := newNATRig(b, nat.Config{})
	go func() {
		for range r.device.fromEngine {
		}
	}()
	defer close(r.device.fromEngine)
	pkt, port, now := udp(address4(1), proxy4, 1024, 53, 20), 0, clock.UnixNano()
	b.ReportAllocs()
	for b.Loop() {
		for range batchSize {
			port++
			if port == 60_000 {
				port = 0
				b.StopTimer()
				r.nat.Table().Invalidate("site")
				b.StartTimer()
			}
			pkt[20], pkt[21] = byte((1024+port)>>8), byte(1024+port)
			r.nat.Hold(r.client, pkt)
		}
		r.tun.Open(r.nat, now)
	}
	perPacket(b)
}
