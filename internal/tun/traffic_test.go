package tun

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
)

func TestManyDatagramsAreReadInOrderWithoutLoss(t *testing.T) {
	const total, window = 100_000, 4000 // in flight: less than the queue of 10000
	for _, to := range []netip.Addr{clientV4, clientV6} {
		t.Run(to.String(), func(t *testing.T) {
			eachDriver(t, func(t *testing.T, driver Driver) {
				d := openConfigured(t, driver)
				defer d.Close()
				conn := dialUDP(t, addrPort(to, 9))

				var p progress
				failed := make(chan string, 1)
				done := make(chan struct{})
				go func() {
					defer close(done)
					b := newBatchBuffer()
					for next := uint32(0); next < total; {
						n, err := d.Read(b.slab, b.packets)
						if err != nil {
							failed <- err.Error()
							return
						}
						checkLayout(t, b.slab, b.packets[:n])
						for _, m := range b.packets[:n] {
							pkt := b.slab[m.Offset:][:m.Size]
							payload := pkt[len(pkt)-sizeOf(next):]
							if problem := checkPacket(pkt); problem != "" || binary.BigEndian.Uint32(payload) != next {
								failed <- problem + " or not the expected datagram"
								return
							}
							next++
						}
						p.received.Store(int64(next))
					}
				}()

				buf := make([]byte, 1200)
				end := time.Now().Add(deadline)
				for i := range uint32(total) {
					for int64(i)-p.received.Load() >= window {
						if time.Now().After(end) {
							t.Fatalf("%d of %d arrived", p.received.Load(), total)
						}
						runtime.Gosched()
					}
					binary.BigEndian.PutUint32(buf, i)
					if _, err := conn.Write(buf[:sizeOf(i)]); err != nil {
						t.Fatal(err)
					}
				}
				if err := d.File().SetReadDeadline(time.Now().Add(deadline)); err != nil {
					t.Fatal(err)
				}
				<-done
				select {
				case problem := <-failed:
					t.Fatalf("after %d datagrams: %s", p.received.Load(), problem)
				default:
				}
				s := d.Stats()
				t.Logf("%.1f packets per Read", float64(s.Packets)/float64(s.Batches))
			})
		})
	}
}

// sizeOf varies the payload, so that neither alignment nor order is accidental.
func sizeOf(i uint32) int { return 4 + int(i*7919%1197) }

// TestTCPCrossesTwoDevices sends data both ways between sockets in two
// namespaces whose devices are joined by Read and Write.
func TestTCPCrossesTwoDevices(t *testing.T) {
	const size = 8 << 20
	for _, pair := range [][2]Driver{{Auto, Auto}, {Water, Water}, {Auto, Water}} {
		for _, v6 := range []bool{false, true} {
			name := pair[0].String() + " to " + pair[1].String() + map[bool]string{false: " by IPv4", true: " by IPv6"}[v6]
			t.Run(name, func(t *testing.T) {
				bridge := newBridge(t, pair)
				server := clientV4
				if v6 {
					server = clientV6
				}
				bridge.ns[1].enter()
				listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addrPort(server, 0)))
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
				bridge.ns[0].enter()
				near, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
				if err != nil {
					t.Fatal(err)
				}
				defer near.Close()
				far, err := listener.AcceptTCP()
				if err != nil {
					t.Fatal(err)
				}
				defer far.Close()

				var wg sync.WaitGroup
				for i, dir := range [][2]*net.TCPConn{{near, far}, {far, near}} {
					data := randomBytes(uint64(i), size)
					wg.Go(func() {
						if _, err := dir[0].Write(data); err != nil {
							t.Errorf("write: %v", err)
						}
						dir[0].CloseWrite()
					})
					wg.Go(func() {
						hash := sha256.New()
						dir[1].SetReadDeadline(time.Now().Add(deadline))
						if n, err := io.Copy(hash, dir[1]); err != nil || n != size {
							t.Errorf("%d of %d bytes arrived: %v", n, size, err)
						}
						if want := sha256.Sum256(data); !bytes.Equal(hash.Sum(nil), want[:]) {
							t.Error("data changed on the way")
						}
					})
				}
				wg.Wait()
				bridge.stop()

				for i, d := range bridge.devices {
					s := d.Stats()
					t.Logf("device %d: %+v", i, s)
					if supers := s.SuperPackets > 0; supers != (pair[i] == Auto) {
						t.Errorf("device %d with driver %v saw %d super packets", i, pair[i], s.SuperPackets)
					}
					for _, reason := range []drop.Reason{drop.Malformed, drop.Oversize, drop.TUNWrite} {
						if n := d.drops.Load(reason); n != 0 {
							t.Errorf("device %d dropped %d as %v", i, n, reason)
						}
					}
				}
			})
		}
	}
}

func TestWrittenPacketsArriveAtASocket(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := openConfigured(t, driver)
		for _, tc := range []struct{ from, to netip.Addr }{{clientV4, gatewayV4}, {clientV6, gatewayV6}} {
			sock, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrPort(tc.to, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer sock.Close()
			to := sock.LocalAddr().(*net.UDPAddr).AddrPort()

			// Equal sizes of one flow, which merging turns into super packets;
			// few enough for the default receive buffer.
			var bufs [][]byte
			for i := range 60 {
				bufs = append(bufs, udpPacket(addrPort(tc.from, 7), addrPort(tc.to, to.Port()), bytes.Repeat([]byte{byte(i)}, 1000), 16))
			}
			if n, err := d.Write(bufs, 16); n != len(bufs) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			sock.SetReadDeadline(time.Now().Add(deadline / 10))
			got := make([]byte, 2000)
			for i := range bufs {
				n, from, err := sock.ReadFromUDPAddrPort(got)
				if err != nil {
					t.Fatalf("datagram %d: %v", i, err)
				}
				if from.Addr().Unmap() != tc.from || from.Port() != 7 || !bytes.Equal(got[:n], bytes.Repeat([]byte{byte(i)}, 1000)) {
					t.Fatalf("datagram %d: %d bytes from %v", i, n, from)
				}
			}
		}
		if n := d.drops.Load(drop.TUNWrite); n != 0 {
			t.Errorf("%d drops", n)
		}
	})
}

func TestReadDoesNotAllocate(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := openConfigured(t, driver)
		conn := dialUDP(t, addrPort(clientV4, 9))
		b := newBatchBuffer()
		payload := make([]byte, 1200)
		allocs := testing.AllocsPerRun(200, func() {
			conn.Write(payload)
			if _, err := d.Read(b.slab, b.packets); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%v allocations per Read", allocs)
		}
	})
}

// bridge joins two devices in two namespaces.
type bridge struct {
	tb      testing.TB
	ns      [2]*namespace
	devices [2]testDevice
	wg      sync.WaitGroup
}

func newBridge(tb testing.TB, drivers [2]Driver) *bridge {
	b := &bridge{tb: tb}
	addrs := [2][2]netip.Addr{{gatewayV4, gatewayV6}, {clientV4, clientV6}}
	for i := range b.ns {
		b.ns[i] = newNamespace(tb)
		b.ns[i].enter()
		b.devices[i] = open(tb, drivers[i])
		fam, err := Configure(Network{Link: testName, V4: addrs[i][0], V6: addrs[i][1]})
		if err != nil || fam.Tolerated != nil {
			tb.Fatalf("Configure = %+v, %v", fam, err)
		}
		waitForLocal(tb, addrs[i][1])
	}
	b.ns[0].enter()
	for i := range b.devices {
		b.wg.Go(func() { b.pump(b.devices[i], b.devices[1-i]) })
	}
	tb.Cleanup(b.stop)
	return b
}

func (b *bridge) stop() {
	for _, d := range b.devices {
		d.Close()
	}
	b.wg.Wait()
}

// pump copies packets the way the engine does: an element per packet with the
// engine's headroom, the whole batch in one Write.
func (b *bridge) pump(from, to testDevice) {
	buf := newBatchBuffer()
	out := make([][]byte, 0, batchSize)
	for {
		n, err := from.Read(buf.slab, buf.packets)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				b.tb.Errorf("Read: %v", err)
			}
			return
		}
		checkLayout(b.tb, buf.slab, buf.packets[:n])
		out = out[:0]
		for _, m := range buf.packets[:n] {
			pkt := buf.slab[m.Offset:][:m.Size]
			if m.Size > DefaultMTU {
				b.tb.Errorf("packet of %d bytes", m.Size)
			}
			if problem := checkPacket(pkt); problem != "" {
				b.tb.Errorf("read a packet with wrong %s", problem)
			}
			out = append(out, buf.slab[m.Offset-16:m.Offset+m.Size])
		}
		if _, err := to.Write(out, 16); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				b.tb.Errorf("Write: %v", err)
			}
			return
		}
	}
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	data := make([]byte, n)
	r.Read(data)
	return data
}

// goroutineWaits reports whether a goroutine in the named function is parked in
// the poller.
func goroutineWaits(function string) bool {
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, function) && strings.Contains(stack, "[IO wait") {
			return true
		}
	}
	return false
}
