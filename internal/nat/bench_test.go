package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/packet"
)

// crowd fills a table with n UDP sessions of domains with four proxy addresses
// of each family and as many real ones, 1,000 sessions each address.
func crowd(t tester, n int, is6 bool) *Table {
	table := New(Config{MaxSessions: n, Seed: 42})
	v := new(packet.View)
	for i := range n {
		if i%4000 == 0 {
			assignCrowd(t, table, i)
		}
		setFlow(crowdPacket(v, is6), i, is6)
		if got := table.Open(v, start); got != Translated {
			t.Fatalf("session %d: %v", i, got)
		}
	}
	return table
}

func assignCrowd(t tester, table *Table, first int) {
	a := Assignment{Resource: "res", Domain: fmt.Sprint(first)}
	for i := range 4 {
		for _, is6 := range []bool{false, true} {
			a.ProxyIPs = append(a.ProxyIPs, crowdProxy(first+i*1000, is6))
			a.RealIPs = append(a.RealIPs, crowdReal(first+i*1000, is6))
		}
	}
	if _, err := table.Assign(a); err != nil {
		t.Fatal(err)
	}
}

func crowdProxy(i int, is6 bool) netip.Addr {
	n := i / 1000
	if is6 {
		b := proxyBase6
		b[14], b[15] = byte(n>>8), byte(n)
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte{100, 96, byte(n >> 8), byte(n)})
}

func crowdReal(i int, is6 bool) netip.Addr {
	n := i / 1000
	if is6 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(n >> 8), 15: byte(n)})
	}
	return netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)})
}

func crowdPort(i int) uint16 { return uint16(10_000 + i%1000) }

// crowdPacket makes v a 1280-byte UDP packet.
func crowdPacket(v *packet.View, is6 bool) *packet.View {
	if v.B == nil || v.Is6() != is6 {
		src, dst, header := client4, proxies4[0], 28
		if is6 {
			src, dst, header = client6, proxies6[0], 48
		}
		b := build(packet.KindUDP, src, 1, dst, service, 0)
		b = append(b, make([]byte, packet.MaxSize-len(b))...)
		if is6 {
			b[4], b[5] = byte((packet.MaxSize-40)>>8), byte((packet.MaxSize-40)&0xff)
		} else {
			b[2], b[3] = byte(packet.MaxSize>>8), byte(packet.MaxSize&0xff)
		}
		b[header-4], b[header-3] = byte((packet.MaxSize-header+8)>>8), byte((packet.MaxSize-header+8)&0xff)
		v.Parse(b)
	}
	return v
}

// setFlow makes v the packet of the client for session i, cheaply enough not to
// be what is measured.
func setFlow(v *packet.View, i int, is6 bool) {
	v.Dst, v.SrcPort = crowdProxy(i, is6), crowdPort(i)
}

func setReply(v *packet.View, i int, is6 bool) {
	v.Src, v.DstPort = crowdReal(i, is6), crowdPort(i)
}

// BenchmarkToResource and BenchmarkToClient look up one of the sessions at
// random and rewrite a packet of 1280 bytes, which is in the cache as it is
// after decryption. In a train of 8, that many packets of a session follow each
// other, as they do in a batch; in a train of 1 the caches are of no help.
func BenchmarkToResource(b *testing.B) { benchmarkTranslate(b, true) }

func BenchmarkToClient(b *testing.B) { benchmarkTranslate(b, false) }

func benchmarkTranslate(b *testing.B, there bool) {
	for _, is6 := range []bool{false, true} {
		family := "v4"
		if is6 {
			family = "v6"
		}
		for _, n := range []int{1, 1000, 100_000, 1_000_000} {
			table := crowd(b, n, is6)
			random := rand.New(rand.NewPCG(1, 2))
			order := make([]uint32, 1<<20)
			for i := range order {
				order[i] = uint32(random.IntN(n))
			}
			for _, train := range []int{8, 1} {
				b.Run(fmt.Sprintf("%s/sessions=%d/train=%d", family, n, train), func(b *testing.B) {
					var v packet.View
					crowdPacket(&v, is6)
					b.ReportAllocs()
					now := start
					for i := 0; b.Loop(); i++ {
						session := int(order[i/train%len(order)])
						if i%128 == 0 {
							now++ // a batch has one time
						}
						var got Result
						if there {
							setFlow(&v, session, is6)
							got = table.ToResource(&v, now)
						} else {
							setReply(&v, session, is6)
							got = table.ToClient(&v, now)
						}
						if got != Translated {
							b.Fatal(got)
						}
					}
				})
			}
		}
	}
}

// BenchmarkOpen opens sessions from the first to the hundred-thousandth again
// and again; the time is for one.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			var v packet.View
			crowdPacket(&v, false)
			b.ReportAllocs()
			table := New(Config{})
			for i := 0; b.Loop(); i++ {
				i := i % n
				if i == 0 {
					b.StopTimer()
					table = New(Config{MaxSessions: n})
					for j := 0; j < n; j += 4000 {
						assignCrowd(b, table, j)
					}
					b.StartTimer()
				}
				setFlow(&v, i, false)
				if got := table.Open(&v, start); got != Translated {
					b.Fatal(got)
				}
			}
		})
	}
}

// BenchmarkOpenAndEnd opens sessions at the pace at which they end, so that
// slots, ports and the memory of ended sessions are used again.
func BenchmarkOpenAndEnd(b *testing.B) {
	const n = 100_000
	table := crowd(b, n, false)
	var v packet.View
	crowdPacket(&v, false)
	b.ReportAllocs()
	now := start
	for i := 0; b.Loop(); i++ {
		if i%n == 0 {
			now += int64(Unconfirmed)
			if got := table.Sweep(now); got != n {
				b.Fatalf("%d sessions ended", got)
			}
		}
		setFlow(&v, i%n, false)
		if got := table.Open(&v, now); got != Translated {
			b.Fatal(got)
		}
	}
}

// BenchmarkSweep looks at all sessions, none of which ends.
func BenchmarkSweep(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			table := crowd(b, n, false)
			for b.Loop() {
				table.Sweep(start + 1)
			}
		})
	}
}

// TestTranslationAllocatesNothing covers both directions and errors.
func TestTranslationAllocatesNothing(t *testing.T) {
	r := pair(t, Config{})
	for _, proxy := range []netip.Addr{proxies4[1], proxies6[1]} {
		for _, kind := range kinds {
			r.send(out(kind, 5000, addrOf(proxies4[0], proxies6[0], proxy), flagSYN))
			sent := out(kind, 5000, proxy, flagSYN)
			translated := r.send(slices.Clone(sent)).B
			reply, failure := answer(translated), errorAbout(translated, 3-2*(translated[0]>>4/6), 0, 0, 1000)
			b := make([]byte, 0, packet.MaxSize)
			var v packet.View
			for _, tc := range []struct {
				name      string
				b         []byte
				translate func(*packet.View, int64) Result
			}{
				{"out", sent, r.ToResource}, {"in", reply, r.ToClient}, {"error", failure, r.ToClient},
			} {
				if n := testing.AllocsPerRun(100, func() {
					b = append(b[:0], tc.b...)
					v.Parse(b)
					if got := tc.translate(&v, r.now); got != Translated {
						t.Fatalf("%v %s: %v", kind, tc.name, got)
					}
				}); n != 0 {
					t.Errorf("%v %s allocates %v times", kind, tc.name, n)
				}
			}
		}
	}
}
