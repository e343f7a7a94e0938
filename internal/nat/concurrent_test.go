package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// TestReadersWithAWriter translates packets in several goroutines while the
// writer opens, ends, assigns, removes and resets. Whatever the moment, a
// translated packet goes to an address of the right domain, or comes from one
// of its proxy addresses, and has right checksums. With -race it shows that the
// table needs no lock.
func TestReadersWithAWriter(t *testing.T) {
	const domains = 4
	proxies := func(d int) []netip.Addr {
		var out []netip.Addr
		for i := range byte(4) {
			out = append(out, netip.AddrFrom4([4]byte{100, 96, byte(d), i}))
		}
		return out
	}
	// The third byte of an address names its domain on both sides.
	reals := func(d int, generation byte) []netip.Addr {
		return []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(d), generation})}
	}
	domainOf := func(a netip.Addr) byte { return a.As4()[2] }

	table := New(Config{MaxRemembered: 100})
	var now atomic.Int64
	now.Store(start)
	var stop atomic.Bool
	var translated [2]atomic.Int64
	var wg sync.WaitGroup
	needed := make(chan []byte, 64)

	for g := range 3 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 1))
			for i := 0; !stop.Load(); i++ {
				d, kind, port := random.IntN(domains), kinds[random.IntN(3)], uint16(1+random.IntN(32))
				flags := []byte{flagSYN, ack, ack, flagFIN | ack, flagRST}[random.IntN(5)]
				var v packet.View
				if i%2 == 0 {
					b := out(kind, port, proxies(d)[random.IntN(4)], flags)
					original := slices.Clone(b)
					v.Parse(b)
					switch got := table.ToResource(&v, now.Load()); got {
					case Translated:
						if domainOf(v.Dst) != byte(d) || v.Dst.As4()[0] != 10 {
							t.Errorf("domain %d was sent to %v", d, v.Dst)
						}
						translated[0].Add(1)
					case NeedSession:
						select {
						case needed <- original:
						default:
						}
					case Unresolved:
					default:
						t.Errorf("to resource: %v", got)
					}
				} else {
					v.Parse(in(kind, reals(d, byte(random.IntN(3)))[0], port, flags))
					switch got := table.ToClient(&v, now.Load()); got {
					case Translated:
						if domainOf(v.Src) != byte(d) || v.Src.As4()[0] != 100 {
							t.Errorf("domain %d was received from %v", d, v.Src)
						}
						translated[1].Add(1)
					case Untouched, Ended:
					default:
						t.Errorf("to client: %v", got)
					}
				}
				if err := packettest.Verify(v.B, byte(v.Protocol), v.Transport); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					return
				}
			}
		})
	}

	random := rand.New(rand.NewPCG(9, 9))
	var v packet.View
	deadline := time.Now().Add(time.Minute)
	for i := 0; !t.Failed() && (i < 20_000 || translated[0].Load() < 1000 || translated[1].Load() < 1000); i++ {
		if i%1000 == 0 && time.Now().After(deadline) {
			t.Error("too few packets were translated")
		}
		select {
		case b := <-needed:
			v.Parse(b)
			table.Open(&v, now.Load())
		default:
		}
		d := random.IntN(domains)
		switch n := random.IntN(1000); {
		case n < 100:
			if _, err := table.Assign(Assignment{string(rune('a' + d)), string(rune('a' + d)), proxies(d), reals(d, byte(random.IntN(3)))}); err != nil {
				t.Error(err)
			}
		case n < 200:
			now.Add(second)
			table.Sweep(now.Load())
		case n < 205:
			table.Invalidate(string(rune('a' + d)))
		case n < 208:
			table.Remove(string(rune('a' + d)))
		case n == 999:
			table.Reset()
		}
	}
	stop.Store(true)
	wg.Wait()
	if s := table.Stats(); s.Opened == 0 || s.Ended == 0 || s.Resets == 0 {
		t.Fatalf("nothing happened: %+v", s)
	}
}

// TestReadersNeverMissWhatIsReplaced has one flow end and begin again while its
// domain is set up again and again. The proxy address leads somewhere all the
// time, and what comes back is known all the time, as a session or as one that
// has ended: a packet that nothing is known of would be answered or forwarded.
func TestReadersNeverMissWhatIsReplaced(t *testing.T) {
	const kind, port, many = packet.KindUDP, 5000, 50_000
	r := newRig(t, Config{})
	r.assign("example.com", proxies4, []netip.Addr{real4})
	r.sent(kind, port, proxies4[0])

	var now atomic.Int64
	now.Store(r.now)
	var stop atomic.Bool
	var seen [2][Exhausted + 1]atomic.Int64 // by direction
	var wg sync.WaitGroup
	for g := range 2 {
		wg.Go(func() {
			var v packet.View
			for !stop.Load() {
				if g == 0 {
					v.Parse(out(kind, port, proxies4[0], 0))
					seen[g][r.ToResource(&v, now.Load())].Add(1)
				} else {
					v.Parse(in(kind, real4, port, 0))
					seen[g][r.ToClient(&v, now.Load())].Add(1)
				}
			}
		})
	}
	enough := func() bool {
		return seen[0][Translated].Load() > many && seen[0][NeedSession].Load() > many &&
			seen[1][Translated].Load() > many && seen[1][Ended].Load() > many
	}
	deadline := time.Now().Add(time.Minute)
	for i := 0; !enough() && time.Now().Before(deadline); i++ {
		r.assignTo(string(rune('a'+i%8)), "example.com", proxies4, []netip.Addr{real4})
		switch i % 64 {
		case 0:
			r.now += int64(UDPIdle)
			now.Store(r.now)
			r.Sweep(r.now)
		case 32:
			r.sent(kind, port, proxies4[0])
		}
	}
	stop.Store(true)
	wg.Wait()
	if !enough() {
		t.Error("too few packets were translated")
	}
	if n := seen[0][Unresolved].Load(); n > 0 {
		t.Errorf("%d packets of the client went nowhere", n)
	}
	if n := seen[1][Untouched].Load(); n > 0 {
		t.Errorf("%d packets from the network were unknown", n)
	}
}

// TestFiguresMayBeReadWhileTheWriterWrites is for the race detector.
func TestFiguresMayBeReadWhileTheWriterWrites(t *testing.T) {
	table := New(Config{})
	done := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if s := table.Stats(); s.Proxies < 0 || s.Remembered < 0 || s.Opened < s.RefusedFull {
				t.Errorf("figures %+v", s)
			}
			for m := range table.Mappings() {
				if m.Domain == "" {
					t.Error("half a mapping")
				}
			}
		}
	})
	for i := range 200 {
		proxy := netip.AddrFrom4([4]byte{100, 96, 1, byte(i)})
		if _, err := table.Assign(Assignment{Resource: "r", Domain: fmt.Sprint("domain-", i), ProxyIPs: []netip.Addr{proxy}}); err != nil {
			t.Fatal(err)
		}
	}
	table.Remove("r")
	close(done)
	reading.Wait()
	if s := table.Stats(); s.Proxies != 0 {
		t.Errorf("%d proxies are left", s.Proxies)
	}
}
