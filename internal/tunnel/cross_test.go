package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

var (
	six4   = netip.MustParseAddr("100.96.0.6")             // stands for behind6 only
	four6  = netip.MustParseAddr("fd00:2021:1111:8000::4") // stands for behind4 only
	hop4   = netip.MustParseAddr("198.51.100.9")           // a router
	hop6   = netip.MustParseAddr("2001:db8:ffff::9")       // another
	client = [2]netip.Addr{address4(1), address6(1)}
)

// newCrossRig is a natRig whose client has set up a domain with IPv6 only and one
// with IPv4 only.
func newCrossRig(t testing.TB, on bool) *natRig {
	t.Helper()
	r := newNATRig(t, nat.Config{NAT64: on})
	for _, a := range []nat.Assignment{
		{Resource: "site", Domain: "six.example.com", ProxyIPs: []netip.Addr{six4}, RealIPs: []netip.Addr{behind6}},
		{Resource: "site", Domain: "four.example.com", ProxyIPs: []netip.Addr{four6}, RealIPs: []netip.Addr{behind4}},
	} {
		if _, err := r.nat.Table().Assign(a); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func tcp(src, dst netip.Addr, sport, dport uint16, payload int) []byte {
	return packettest.TCP(netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), 0x10, make([]byte, payload))
}

// sameButID compares packets but for the identification of IPv4, which
// translation makes up.
func sameButID(t *testing.T, got, want []byte) {
	t.Helper()
	if len(got) == len(want) && got[0]>>4 == 4 {
		got = slices.Clone(got)
		copy(got[4:6], want[4:6])
		got[10], got[11] = 0, 0
		binary.BigEndian.PutUint16(got[10:], packettest.Checksum(got[:20]))
	}
	if !samePacket(got, want) {
		t.Fatalf("got\n%x, want\n%x", got, want)
	}
}

func TestAFlowToADomainOfTheOtherFamily(t *testing.T) {
	for _, c := range []struct {
		name         string
		proxy, real  netip.Addr
		inside, site int // families
	}{
		{"IPv4 to IPv6", six4, behind6, 0, 1},
		{"IPv6 to IPv4", four6, behind4, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newCrossRig(t, true)
			inside, outside := client[c.inside], client[c.site]
			sent, became := tcp(inside, c.proxy, 5000, 443, 100), tcp(outside, c.real, 5000, 443, 100)
			if got := r.toResource(sent); len(got) != 0 {
				t.Fatalf("the first packet passed before it had a session: %x", got)
			}
			first := r.open()
			if len(first) != 1 {
				t.Fatalf("%d packets were sent after they waited", len(first))
			}
			sameButID(t, first[0], became)

			// In a batch with others, each in its place.
			other := udp(address4(1), server4, 4000, 1500, 50)
			got := r.toResource(sent, other, sent, other, sent)
			if len(got) != 5 || !bytes.Equal(got[1], other) || !bytes.Equal(got[3], other) {
				t.Fatalf("%d packets of 5 passed", len(got))
			}
			for _, i := range []int{0, 2, 4} {
				sameButID(t, got[i], became)
			}

			back, wanted := tcp(c.real, outside, 443, 5000, 100), tcp(c.proxy, inside, 443, 5000, 100)
			plain := udp(server4, address4(1), 1500, 4000, 50)
			got = r.toClient(back, plain, back, back, plain)
			if len(got) != 5 || !bytes.Equal(got[1], plain) || !bytes.Equal(got[4], plain) {
				t.Fatalf("%d packets of 5 came back: %x", len(got), got)
			}
			for _, i := range []int{0, 2, 3} {
				sameButID(t, got[i], wanted)
			}
			wantDrops(t, "client", r.client.Drops(), nil)
			if n := r.client.Counters().ToResourcePackets.Load(); n != 6 {
				t.Errorf("%d packets counted to the resource", n)
			}
		})
	}
}

func TestWithoutNAT64TheOtherFamilyIsUnreachable(t *testing.T) {
	r := newCrossRig(t, false)
	for proxy, want := range map[netip.Addr][2]byte{six4: {3, 0}, four6: {1, 3}} {
		if got := r.toResource(tcp(client[family(proxy)], proxy, 5000, 443, 10)); len(got) != 0 {
			t.Fatalf("passed: %x", got)
		}
		answers := drain(t, r.tun)
		if len(answers) != 1 {
			t.Fatalf("%d answers", len(answers))
		}
		if typ, code := icmpOf(t, answers[0].b); typ != want[0] || code != want[1] {
			t.Errorf("answered with type %d code %d", typ, code)
		}
	}
	wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{drop.Unresolved: 2})
}

// TestTranslatedPacketsKeepTheirDistance checks what the engine builds on: that
// there is room around each packet.
func TestTranslatedPacketsKeepTheirDistance(t *testing.T) {
	r := newCrossRig(t, true)
	r.toResource(udp(client[1], four6, 5000, 1500, 10))
	if len(r.open()) != 1 {
		t.Fatal("no session")
	}
	var batch [][]byte
	for i := range 40 {
		batch = append(batch, udp(behind4, client[0], 1500, 5000, i))
	}
	slab, descriptors := fromTUN(batch...)
	owners := make([]addressee, len(batch))
	if n := r.tun.toClient(slab, descriptors, owners, clock.UnixNano()); n != len(batch) {
		t.Fatalf("%d packets of %d", n, len(batch))
	}
	end := 0
	for i, d := range descriptors {
		if d.Offset-end < enginetun.ReadPacketSpacing {
			t.Fatalf("packet %d begins %d bytes behind the one before", i, d.Offset-end)
		}
		end = d.Offset + d.Size
		if !samePacket(slab[d.Offset:end], udp(four6, client[1], 1500, 5000, i)) || owners[i].dst != client[1] {
			t.Fatalf("packet %d for %v is %x", i, owners[i].dst, slab[d.Offset:end])
		}
	}
	if len(slab)-end < enginetun.ReadPacketSpacing {
		t.Fatal("the last packet ends too late")
	}
}

func TestADeviceThatLeavesNoRoomForTranslation(t *testing.T) {
	r := newCrossRig(t, true)
	r.toResource(udp(client[1], four6, 5000, 1500, 10))
	r.open()
	pkt := udp(behind4, client[0], 1500, 5000, 10)
	engine := make([]byte, enginetun.ReadPacketSpacing)
	slab := slices.Concat(engine, pkt, make([]byte, spacing), pkt, engine, pkt, engine)
	descriptors := []enginetun.ReadPacket{
		{Offset: len(engine), Size: len(pkt)},
		{Offset: len(engine) + len(pkt) + spacing, Size: len(pkt)},
		{Offset: len(engine) + 2*len(pkt) + spacing + len(engine), Size: len(pkt)},
	}
	second := descriptors[1].Offset
	if n := r.tun.toClient(slab, descriptors, make([]addressee, 3), clock.UnixNano()); n != 1 || descriptors[0].Offset != second-20 {
		t.Fatal("translated into what the engine needs")
	}
	wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{drop.Unclassified: 2})
}

func TestLargePacketsGrowTowardsResources(t *testing.T) {
	r := newCrossRig(t, true)
	large := udp(client[0], six4, 5000, 1500, packet.MaxSize-28)
	r.toResource(large)
	if got := r.open(); len(got) != 1 || !samePacket(got[0], udp(client[1], behind6, 5000, 1500, packet.MaxSize-28)) {
		t.Fatalf("%d packets after they waited", len(got))
	}
	var batch [][]byte
	for range batchSize {
		batch = append(batch, large)
	}
	for range 3 { // also when nobody has given the buffers back
		got := r.toResource(batch...)
		if len(got) != batchSize {
			t.Fatalf("%d packets", len(got))
		}
		for i := range got {
			if !samePacket(got[i], udp(client[1], behind6, 5000, 1500, packet.MaxSize-28)) {
				t.Fatalf("packet %d is %x", i, got[i])
			}
		}
	}
	r.client.restGrown()
	if r.client.grown != nil {
		t.Error("the buffers were kept")
	}
}

func TestTheNetworkLearnsWhatIsTooLarge(t *testing.T) {
	r := newCrossRig(t, true)
	r.toResource(udp(client[1], four6, 5000, 1500, 10))
	r.open()
	fits, large := udp(behind4, client[0], 1500, 5000, 1260-28), udp(behind4, client[0], 1500, 5000, 1261-28)
	if got := r.toClient(fits); len(got) != 1 || len(got[0]) != packet.MaxSize {
		t.Fatalf("%d packets", len(got))
	}
	if got := r.toClient(large); len(got) != 0 {
		t.Fatalf("%d packets", len(got))
	}
	r.device.expectNothing(t) // it may be fragmented

	large[6] = 0x40 // don't fragment
	large[10], large[11] = 0, 0
	binary.BigEndian.PutUint16(large[10:], packettest.Checksum(large[:20]))
	if got := r.toClient(large); len(got) != 0 {
		t.Fatalf("%d packets", len(got))
	}
	told := r.device.receive(t)
	want := packettest.ICMP(client[0], behind4, 3, 4, 1260, large[:28])
	if !bytes.Equal(told[20:], want[20:]) || source(told) != client[0] || destination(told) != behind4 {
		t.Fatalf("got %x, want %x", told, want)
	}
	wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{drop.Oversize: 2})
	messages := 1
	for range 2 * answersPerSecond {
		r.toClient(large)
		for len(r.device.fromEngine) > 0 {
			<-r.device.fromEngine
			messages++
		}
	}
	if messages != answersPerSecond {
		t.Errorf("%d messages in a second", messages)
	}
}

func TestErrorsAboutTranslatedPacketsComeBack(t *testing.T) {
	for _, c := range []struct {
		name        string
		sent        []byte
		became      []byte
		fail        func(became []byte) []byte
		typ, code   byte
		rest        uint32
		from        netip.Addr
		quotedBytes int
	}{
		{
			"hop limit exceeded on the way to IPv6", udp(client[0], six4, 5000, 1500, 20), udp(client[1], behind6, 5000, 1500, 20),
			func(b []byte) []byte { return packettest.ICMP(hop6, client[1], 3, 0, 0, b) }, 11, 0, 0, six4, 48,
		},
		{
			"packet too big on the way to IPv6", udp(client[0], six4, 5000, 1500, 1252), udp(client[1], behind6, 5000, 1500, 1252),
			func(b []byte) []byte { return packettest.ICMP(gateway6, client[1], 2, 0, 1280, b[:1232]) }, 3, 4, 1260, six4, 1212,
		},
		{
			"TTL exceeded on the way to IPv4", udp(client[1], four6, 5000, 1500, 20), udp(client[0], behind4, 5000, 1500, 20),
			func(b []byte) []byte { return packettest.ICMP(hop4, client[0], 11, 0, 0, b) }, 3, 0, 0, four6, 68,
		},
		{
			"port unreachable at the IPv4 host", udp(client[1], four6, 5000, 1500, 20), udp(client[0], behind4, 5000, 1500, 20),
			func(b []byte) []byte { return packettest.ICMP(behind4, client[0], 3, 3, 0, b[:28]) }, 1, 4, 0, four6, 48,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newCrossRig(t, true)
			r.toResource(c.sent)
			first := r.open()
			if len(first) != 1 {
				t.Fatalf("%d packets", len(first))
			}
			sameButID(t, first[0], c.became)
			got := r.toClient(c.fail(first[0]))
			if len(got) != 1 {
				t.Fatalf("%d packets come back; drops %v", len(got), r.client.Drops())
			}
			want := packettest.ICMP(c.from, client[family(c.from)], c.typ, c.code, c.rest, c.sent[:c.quotedBytes])
			header, protocol := 20, byte(1)
			if want[0]>>4 == 6 {
				header, protocol = 40, 58
				want[7] = 20
			} else {
				want[8] = 20
				want[10], want[11] = 0, 0
				binary.BigEndian.PutUint16(want[10:], packettest.Checksum(want[:20]))
			}
			if len(got[0]) != len(want) || !bytes.Equal(got[0][:header], want[:header]) {
				t.Fatalf("got\n%x, want\n%x", got[0], want)
			}
			// A quoted IPv4 header has another identification, with which its checksum
			// and that of the error change.
			message, quoted := header, 2*header+8
			if !bytes.Equal(got[0][message:message+2], want[message:message+2]) || !bytes.Equal(got[0][message+4:message+8], want[message+4:message+8]) ||
				!samePacket(got[0][quoted:], want[quoted:]) {
				t.Fatalf("says\n%x, want\n%x", got[0][message:], want[message:])
			}
			if err := packettest.Verify(got[0], protocol, header); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClientsWithoutTheOtherAddress(t *testing.T) {
	r := newCrossRig(t, true)
	r.client.cfg.TunnelV6 = netip.Addr{}
	sent := udp(client[0], six4, 5000, 1500, 10)
	r.toResource(sent)
	if got := r.open(); len(got) != 0 {
		t.Fatalf("sent %x", got)
	}
	r.toResource(sent) // which has a session
	if answers := drain(t, r.tun); len(answers) != 1 {
		t.Errorf("%d answers", len(answers))
	}
	wantDrops(t, "client", r.client.Drops(), map[drop.Reason]uint64{drop.Unresolved: 2})
}

func TestCrossingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools")
	}
	r := newCrossRig(t, true)
	for _, p := range [][]byte{udp(client[0], six4, 5000, 1500, 1000), udp(client[1], four6, 5000, 1500, 1000)} {
		r.toResource(p)
	}
	r.open()
	for name, sent := range map[string][]byte{
		"IPv4 to IPv6": udp(client[0], six4, 5000, 1500, 1000), "IPv6 to IPv4": udp(client[1], four6, 5000, 1500, 1000),
	} {
		bufs := decrypted(sent)
		var scratch [1][]byte
		if n := testing.AllocsPerRun(200, func() {
			scratch[0] = bufs[0]
			copy(bufs[0][engineOffset:], sent)
			if len(r.tun.toResource(r.client, scratch[:], engineOffset, clock.UnixNano())) != 1 {
				t.Fatal("refused")
			}
			r.client.restGrown()
		}); n != 0 {
			t.Errorf("%s, to the resource: %v allocations", name, n)
		}
	}
	for name, back := range map[string][]byte{
		"IPv6 to IPv4": udp(behind6, client[1], 1500, 5000, 1000), "IPv4 to IPv6": udp(behind4, client[0], 1500, 5000, 1000),
	} {
		slab, descriptors := fromTUN(back)
		at, owners := descriptors[0].Offset, make([]addressee, 1)
		if n := testing.AllocsPerRun(200, func() {
			descriptors[0] = enginetun.ReadPacket{Offset: at, Size: copy(slab[at:], back)}
			if r.tun.toClient(slab, descriptors, owners, clock.UnixNano()) != 1 {
				t.Fatal("refused")
			}
		}); n != 0 {
			t.Errorf("%s, to the client: %v allocations", name, n)
		}
	}
}

// BenchmarkCross is a batch of full packets each way.
func BenchmarkCross(b *testing.B) {
	r := newCrossRig(b, true)
	sent := map[string][]byte{
		"IPv4ToIPv6": udp(client[0], six4, 5000, 1500, packet.MaxSize-28),
		"IPv6ToIPv4": udp(client[1], four6, 5000, 1500, packet.MaxSize-48),
		"SameFamily": udp(client[0], proxy4, 5000, 1500, packet.MaxSize-28),
	}
	for _, p := range sent {
		r.toResource(p)
	}
	r.open()
	for name, p := range sent {
		b.Run(name+"ToResource", func(b *testing.B) {
			b.ReportAllocs()
			var batch [][]byte
			for range batchSize {
				batch = append(batch, decrypted(p)...)
			}
			scratch := make([][]byte, batchSize)
			for b.Loop() {
				for _, buf := range batch {
					copy(buf[engineOffset:], p[:48])
				}
				copy(scratch, batch)
				if len(r.tun.toResource(r.client, scratch, engineOffset, clock.UnixNano())) != batchSize {
					b.Fatal("refused")
				}
				r.client.restGrown()
			}
			perPacket(b)
		})
	}
	for name, p := range map[string][]byte{
		"IPv6ToIPv4": udp(behind6, client[1], 1500, 5000, packet.MaxSize-48),
		"IPv4ToIPv6": udp(behind4, client[0], 1500, 5000, packet.MaxSize-48),
	} {
		b.Run(name+"ToClient", func(b *testing.B) {
			b.ReportAllocs()
			var packets [][]byte
			for range 64 {
				packets = append(packets, p)
			}
			slab, original := fromTUN(packets...)
			descriptors, owners := make([]enginetun.ReadPacket, len(original)), make([]addressee, len(original))
			for b.Loop() {
				copy(descriptors, original)
				for _, d := range original {
					copy(slab[d.Offset:], p[:48])
				}
				if r.tun.toClient(slab, descriptors, owners, clock.UnixNano()) != len(original) {
					b.Fatal("refused")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(original)), "ns/packet")
		})
	}
}
