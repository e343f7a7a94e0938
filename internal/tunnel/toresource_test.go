package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
)

func TestToResource(t *testing.T) {
	own4, own6 := address4(1), address6(1)
	good4, good6 := udp(own4, server4, 5000, 1000, 20), udp(own6, server6, 5000, 1999, 20)
	mutate := func(p []byte, f func(p []byte)) []byte {
		p = bytes.Clone(p)
		f(p)
		return p
	}
	for _, c := range []struct {
		name   string
		packet []byte
		reason drop.Reason // None: forwarded
		answer packet.Unreachable
	}{
		{name: "granted over IPv4", packet: good4},
		{name: "granted over IPv6", packet: good6},
		{name: "echo is granted", packet: packettest.Ping(own4, server4, 7, nil)},
		{name: "the largest packet passes", packet: udp(own4, server4, 1, 1500, 1280-28)},
		{name: "one byte more does not", packet: udp(own4, server4, 1, 1500, 1281-28), reason: drop.Oversize},
		{name: "empty", packet: nil, reason: drop.Malformed},
		{name: "truncated header", packet: good4[:19], reason: drop.Malformed},
		{name: "truncated payload", packet: good4[:len(good4)-1], reason: drop.Malformed},
		{name: "truncated IPv6 header", packet: good6[:39], reason: drop.Malformed},
		{name: "IP version 5", packet: mutate(good4, func(p []byte) { p[0] = 0x55 }), reason: drop.Malformed},
		{name: "UDP length beyond the packet", packet: mutate(good4, func(p []byte) { p[25]++ }), reason: drop.Malformed},
		{name: "first fragment", packet: mutate(good4, func(p []byte) { p[6] = 0x20 }), reason: drop.Fragment},
		{name: "last fragment", packet: mutate(good4, func(p []byte) { p[7] = 9 }), reason: drop.Fragment},
		{name: "IPv6 fragment", packet: packettest.Extend6(good6, 44, []byte{17, 0, 0, 1, 0, 0, 0, 9}), reason: drop.Fragment},
		{name: "multicast is silent", packet: udp(own4, netip.MustParseAddr("224.0.0.251"), 1, 1500, 0), reason: drop.Multicast},
		{name: "ICMP error is silent", packet: packettest.Unreachable(own4, server4, good4[:28]), reason: drop.OutboundICMP},
		{name: "foreign source over IPv4", packet: udp(foreign4, server4, 1, 1500, 0), reason: drop.ForeignSource, answer: packet.Prohibited},
		{name: "foreign source over IPv6", packet: udp(foreign6, server6, 1, 1500, 0), reason: drop.ForeignSource, answer: packet.Prohibited},
		{name: "source of another client", packet: udp(address4(2), server4, 1, 1500, 0), reason: drop.ForeignSource, answer: packet.Prohibited},
		{name: "no grant over IPv4", packet: udp(own4, other4, 1, 1500, 0), reason: drop.NoResource, answer: packet.Prohibited},
		{name: "no grant over IPv6", packet: udp(own6, other6, 1, 1500, 0), reason: drop.NoResource, answer: packet.Prohibited},
		{name: "another client's address", packet: udp(own4, address4(2), 1, 1500, 0), reason: drop.TunnelRange, answer: packet.Prohibited},
		{name: "port below the filter", packet: udp(own4, server4, 1, 999, 0), reason: drop.Filtered, answer: packet.Prohibited},
		{name: "port above the filter", packet: udp(own6, server6, 1, 2000, 0), reason: drop.Filtered, answer: packet.Prohibited},
		{name: "protocol outside the filter", packet: packettest.IP(own4, server4, 47, make([]byte, 8)), reason: drop.Filtered, answer: packet.Prohibited},
		{name: "expired by time", packet: udp(own4, expired4, 1, 1500, 0), reason: drop.Expired, answer: packet.Prohibited},
		{name: "control header cut short counts as foreign", packet: packettest.IP(netip.IPv6Unspecified(), netip.IPv6Unspecified(), 255, make([]byte, 7)), reason: drop.ForeignSource},
	} {
		t.Run(c.name, func(t *testing.T) {
			tun := plainTunnel()
			client := connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
			bufs := decrypted(good4, c.packet, good6)
			kept := tun.toResource(client, bufs, engineOffset, clock.UnixNano())

			want := [][]byte{good4, good6}
			drops := map[drop.Reason]uint64{c.reason: 1}
			if c.reason == drop.None {
				want, drops = [][]byte{good4, c.packet, good6}, nil
			}
			checkKept(t, kept, want)
			wantDrops(t, "client", client.Drops(), drops)
			wantDrops(t, "tunnel", tun.Drops(), nil)
			checkToResourceCounters(t, client, want)

			answers := drain(t, tun)
			if c.answer == 0 {
				if len(answers) != 0 {
					t.Fatalf("unexpected answer %x", answers[0].b)
				}
				return
			}
			if len(answers) != 1 {
				t.Fatalf("%d answers", len(answers))
			}
			got := answers[0]
			if got.client != client || source(got.b) != destination(c.packet) || destination(got.b) != source(c.packet) {
				t.Errorf("answer from %v to %v", source(got.b), destination(got.b))
			}
			wantType, wantCode := byte(3), byte(13)
			if c.packet[0]>>4 == 6 {
				wantType, wantCode = 1, 1
			}
			if typ, code := icmpOf(t, got.b); typ != wantType || code != wantCode {
				t.Errorf("answer is %d/%d, want %d/%d", typ, code, wantType, wantCode)
			}
		})
	}
}

func checkKept(t *testing.T, kept, want [][]byte) {
	t.Helper()
	if len(kept) != len(want) {
		t.Fatalf("%d packets kept, want %d", len(kept), len(want))
	}
	for i, b := range kept {
		if !bytes.Equal(b[engineOffset:], want[i]) {
			t.Errorf("packet %d is %x, want %x", i, b[engineOffset:], want[i])
		}
	}
}

func checkToResourceCounters(t *testing.T, c *Client, packets [][]byte) {
	t.Helper()
	n := c.Counters()
	bytes := 0
	for _, p := range packets {
		bytes += len(p)
	}
	if n.ToResourcePackets.Load() != uint64(len(packets)) || n.ToResourceBytes.Load() != uint64(bytes) {
		t.Errorf("counted %d packets of %d bytes, want %d of %d",
			n.ToResourcePackets.Load(), n.ToResourceBytes.Load(), len(packets), bytes)
	}
	if n.LastActive.Load() != clock.UnixNano() || n.ToClientPackets.Load() != 0 {
		t.Errorf("last active %d, %d packets to the client", n.LastActive.Load(), n.ToClientPackets.Load())
	}
}

func TestToResourceExpiresByTimeAlone(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
	pkt := udp(address4(1), expired4, 1, 1500, 0)
	if kept := tun.toResource(c, decrypted(pkt), engineOffset, clock.UnixNano()-1); len(kept) != 1 {
		t.Error("refused before the grant ended")
	}
	if kept := tun.toResource(c, decrypted(pkt), engineOffset, clock.UnixNano()); len(kept) != 0 {
		t.Error("forwarded after the grant ended")
	}
}

func TestToResourceHandsOverControlPackets(t *testing.T) {
	tun := plainTunnel()
	h := newHeardBy()
	c := connect(t, tun, configOf(1, h, usualGrants()...))
	for i := range cap(h.control) + 3 {
		pkt := packet.AppendControl(nil, packet.AssignedIPs, []byte{byte(i)})
		if kept := tun.toResource(c, decrypted(pkt), engineOffset, clock.UnixNano()); len(kept) != 0 {
			t.Fatal("control packet went to the TUN device")
		}
	}
	for i := range cap(h.control) {
		if got, want := <-h.control, string(packet.AppendControl(nil, packet.AssignedIPs, []byte{byte(i)})); got != want {
			t.Errorf("control packet %d is %x, want %x", i, got, want)
		}
	}
	wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.ControlOverflow: 3})
	if c.Counters().ToResourcePackets.Load() != 0 {
		t.Error("control packets count as traffic")
	}
}

func TestToResourceOfAClosingClient(t *testing.T) {
	tun := plainTunnel()
	h := newHeardBy()
	c := connect(t, tun, configOf(1, h, usualGrants()...))
	c.closing.Store(true)
	bufs := decrypted(udp(address4(1), server4, 1, 1500, 0), udp(address4(1), other4, 1, 1500, 0), packet.AppendGoodbye(nil))
	if kept := tun.toResource(c, bufs, engineOffset, clock.UnixNano()); len(kept) != 0 {
		t.Error("forwarded")
	}
	wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.NoResource: 3})
	if len(drain(t, tun)) != 0 || len(h.control) != 0 {
		t.Error("answered or handed over")
	}
}

func TestToResourceTakesThePolicyInForce(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
	pkt := udp(address4(1), server4, 1, 1500, 0)
	if kept := tun.toResource(c, decrypted(pkt), engineOffset, clock.UnixNano()); len(kept) != 1 {
		t.Fatal("not granted")
	}
	c.SetPolicy(snapshot(1))
	if kept := tun.toResource(c, decrypted(pkt), engineOffset, clock.UnixNano()); len(kept) != 0 {
		t.Fatal("revoked and forwarded")
	}
}

func TestAnswersAreBounded(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy()))
	refused := decrypted(udp(address4(1), other4, 1, 1500, 0))
	count := func(now time.Time, n int) int {
		answers := 0
		for range n {
			tun.toResource(c, refused[:1], engineOffset, now.UnixNano())
			answers += len(drain(t, tun))
		}
		return answers
	}
	if got := count(clock, answersPerSecond+50); got != answersPerSecond {
		t.Errorf("%d answers in the first second, want %d", got, answersPerSecond)
	}
	if got := count(clock.Add(999*time.Millisecond), 1); got != 0 {
		t.Error("answered before the second was over")
	}
	if got := count(clock.Add(time.Second), answersPerSecond+1); got != answersPerSecond {
		t.Errorf("%d answers in the next second, want %d", got, answersPerSecond)
	}
	wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.NoResource: 2*answersPerSecond + 52})
}

func TestToResourceWhenTheInjectorIsFull(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy()))
	for range injectSlots {
		tun.inject.push(c, packet.AppendGoodbye)
	}
	tun.toResource(c, decrypted(udp(address4(1), other4, 1, 1500, 0)), engineOffset, clock.UnixNano())
	wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.NoResource: 1, drop.InjectOverflow: 1})
}

// FuzzToResource holds against every input: no panic, and exactly what the
// policy forwards is kept, unchanged and in order.
func FuzzToResource(f *testing.F) { fuzzToResource(f) }

func TestHammerToResource(t *testing.T) {
	hammer.Test(t, "FuzzToResource", fuzzToResource, func(args []any) { repairFrames(args[0].([]byte)) })
}

func fuzzToResource(f hammer.F) {
	own4, own6 := address4(1), address6(1)
	f.Add(frames(udp(own4, server4, 1, 1500, 10), udp(own4, other4, 1, 1500, 10), udp(own6, server6, 1, 1500, 0)))
	f.Add(frames(packet.AppendGoodbye(nil), packettest.Ping(own6, foreign6, 1, nil), nil))
	f.Add(frames(udp(foreign6, server6, 1, 1500, 1232), packettest.Unreachable(own4, server4, make([]byte, 28))))
	f.Add([]byte{0, 1, 0x45, 0xff, 0xff})
	rules := snapshot(1, usualGrants()...)
	tun, h := plainTunnel(), newHeardBy()
	c := connect(f, tun, configOf(1, h, usualGrants()...))
	slab, descriptors := make([]byte, slabSize), make([]enginetun.ReadPacket, batchSize)
	f.Fuzz(func(t *testing.T, data []byte) {
		c.answers = answerBudget{}
		packets := framed(data)
		var want [][]byte
		for _, p := range packets {
			if forwards(rules, p) {
				want = append(want, p)
			}
		}
		checkKept(t, tun.toResource(c, decrypted(packets...), engineOffset, clock.UnixNano()), want)
		for len(h.control) > 0 {
			if !packet.IsControl([]byte(<-h.control)) {
				t.Error("no control packet")
			}
		}
		for tun.inject.used > 0 {
			n, err := tun.inject.Read(slab, descriptors)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range descriptors[:n] {
				answer := slab[d.Offset : d.Offset+d.Size]
				if tun.inject.claim(answer) != c {
					t.Error("answer to somebody else")
				}
				icmpOf(t, answer)
			}
		}
	})
}

// forwards judges one packet from a client by itself.
func forwards(rules *policy.Snapshot, pkt []byte) bool {
	var v packet.View
	return v.Parse(pkt) == drop.None && rules.Outbound(&v, policy.NoProxies, clock.UnixNano()).Action == policy.Forward
}

// frames writes packets one after the other, each after its length.
func frames(packets ...[]byte) (out []byte) {
	for _, p := range packets {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
		out = append(out, p...)
	}
	return out
}

// framed reads what frames wrote, as far as it fits into a batch. Lengths that
// are too long reach to the end.
func framed(data []byte) (packets [][]byte) {
	for len(data) >= 2 && len(packets) < batchSize {
		n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
		packets = append(packets, data[2:2+n])
		data = data[2+n:]
	}
	return packets
}

func repairFrames(data []byte) {
	for _, p := range framed(data) {
		packettest.Repair(p)
	}
}
