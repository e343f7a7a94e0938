package tunnel

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// TestABatchIsJudgedLikeItsPackets holds what is looked up ahead for many packets
// against one packet at a time.
func TestABatchIsJudgedLikeItsPackets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	together, single := newNATRig(t, nat.Config{}), newNATRig(t, nat.Config{})
	for _, r := range []*natRig{together, single} {
		for port := range uint16(4) {
			r.toResource(udp(address4(1), proxy4, 5000+port, 53, 8), udp(address6(1), proxy6, 5000+port, 53, 8))
		}
		r.open()
		connect(t, r.tun, configOf(2, newHeardBy(), usualGrants()...))
		silent := connect(t, r.tun, configOf(3, newHeardBy(), usualGrants()...))
		silent.heard.Store(false)
	}
	for range 300 {
		there, back := batchOf(random, outward), batchOf(random, inward)
		var want [][]byte
		for _, p := range there {
			want = append(want, single.toResource(p)...)
		}
		got := together.toResource(there...)
		checkPackets(t, got, want...)
		checkPackets(t, together.open(), single.open()...)

		want = nil
		for _, p := range back {
			want = append(want, single.toClient(p)...)
		}
		checkPackets(t, together.toClient(back...), want...)
	}
	for _, c := range []struct {
		name      string
		got, want *drop.Counters
		least     int // reasons
	}{
		{"client", together.client.Drops(), single.client.Drops(), 8},
		{"tunnel", together.tun.Drops(), single.tun.Drops(), 3},
	} {
		want := map[drop.Reason]uint64{}
		c.want.Each(func(r drop.Reason, n uint64) { want[r] = n })
		wantDrops(t, c.name, c.got, want)
		if len(want) < c.least {
			t.Errorf("%s: packets were dropped for %d reasons only: %v", c.name, len(want), want)
		}
	}
}

// FuzzBatch is the same for packets of any kind, and holds that what was right
// before a translation is right after it.
func FuzzBatch(f *testing.F) { fuzzBatch(f) }

func TestHammerBatch(t *testing.T) {
	hammer.Test(t, "FuzzBatch", fuzzBatch, func(args []any) { repairFrames(args[1].([]byte)) })
}

func fuzzBatch(f hammer.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 32 {
		there, back := batchOf(random, outward), batchOf(random, inward)
		f.Add(false, frames(there[:min(len(there), 20)]...))
		f.Add(true, frames(back[:min(len(back), 20)]...))
	}
	together, single := newNATRig(f, nat.Config{MaxSessions: 64}), newNATRig(f, nat.Config{MaxSessions: 64})
	for _, r := range []*natRig{together, single} {
		connect(f, r.tun, configOf(2, newHeardBy(), usualGrants()...))
	}
	now := clock.UnixNano()
	f.Fuzz(func(t *testing.T, back bool, data []byte) {
		packets := framed(data)
		now += int64(time.Second)
		for _, r := range []*natRig{together, single} {
			r.nat.Table().Sweep(now)
		}
		pass := func(r *natRig, packets ...[]byte) [][]byte {
			if back {
				return r.inward(now, packets...)
			}
			return r.outward(now, packets...)
		}
		var want [][]byte
		for _, p := range packets {
			kept := pass(single, p)
			if len(kept) == 1 {
				checkSums(t, p, kept[0])
			}
			want = append(want, kept...)
		}
		checkPackets(t, pass(together, packets...), want...)
		checkPackets(t, together.opened(now), single.opened(now)...)
		checkPackets(t, together.answers(t), single.answers(t)...)
	})
}

// checkSums checks the checksums of a packet that was translated, if they were
// right before.
func checkSums(t *testing.T, before, after []byte) {
	var b, a packet.View
	if b.Parse(before) != drop.None || a.Parse(after) != drop.None {
		t.Fatalf("%x became %x", before, after)
	}
	if packettest.Verify(b.B, byte(b.Protocol), b.Transport) != nil {
		return
	}
	if err := packettest.Verify(a.B, byte(a.Protocol), a.Transport); err != nil {
		t.Fatalf("%x became %x: %v", before, after, err)
	}
}

// batchOf returns packets in runs, some of which differ from the one before in one
// respect only.
func batchOf(random *rand.Rand, one func(*rand.Rand) []byte) (packets [][]byte) {
	for len(packets) < 1+random.IntN(batchSize-8) {
		p := one(random)
		for range 1 + random.IntN(8) {
			p = slices.Clone(p)
			if random.IntN(10) == 0 {
				p[random.IntN(len(p))] ^= 1 << random.IntN(8)
				packettest.Repair(p)
			}
			packets = append(packets, p)
		}
	}
	return packets
}

func oneOf[T any](random *rand.Rand, from ...T) T { return from[random.IntN(len(from))] }

// outward is from client 1 in most cases.
func outward(random *rand.Rand) []byte {
	src, dst := oneOf(random, address4(1), address4(1), address4(1), foreign4),
		oneOf(random, server4, other4, expired4, proxy4, proxy4, nameless4, stranger4, gateway4, address4(2))
	if random.IntN(4) == 0 {
		src, dst = oneOf(random, address6(1), foreign6), oneOf(random, server6, other6, proxy6, gateway6)
	}
	from, to := netip.AddrPortFrom(src, uint16(5000+random.IntN(6))), netip.AddrPortFrom(dst, oneOf[uint16](random, 53, 443, 1500))
	switch random.IntN(8) {
	case 0:
		return packettest.TCP(from, to, oneOf[byte](random, 0x02, 0x10, 0x11, 0x04), nil)
	case 1:
		return packettest.Ping(src, dst, from.Port(), nil)
	case 2:
		return packettest.Unreachable(src, dst, packettest.UDP(to, from, nil))
	case 3:
		return oneOf(random, packettest.IP(src, dst, 47, nil), packet.AppendGoodbye(nil), []byte{0x45})
	}
	return packettest.UDP(from, to, nil)
}

// inward is from the network.
func inward(random *rand.Rand) []byte {
	src, dst := oneOf(random, server4, behind4, behind4, other4, proxy4, gateway4),
		oneOf(random, address4(1), address4(1), address4(1), address4(2), address4(3), nobody4, other4)
	if random.IntN(4) == 0 {
		src, dst = oneOf(random, server6, behind6, proxy6), oneOf(random, address6(1), address6(2), other6)
	}
	from, to := netip.AddrPortFrom(src, oneOf[uint16](random, 53, 443, 1500)), netip.AddrPortFrom(dst, uint16(5000+random.IntN(6)))
	switch random.IntN(8) {
	case 0:
		return packettest.TCP(from, to, oneOf[byte](random, 0x12, 0x10, 0x11, 0x04), nil)
	case 1:
		return packettest.Pong(src, dst, to.Port(), nil)
	case 2:
		return packettest.Unreachable(src, dst, packettest.UDP(to, from, make([]byte, 8)))
	case 3:
		return oneOf(random, packettest.IP(src, dst, 47, nil), []byte{0x45})
	}
	return packettest.UDP(from, to, nil)
}
