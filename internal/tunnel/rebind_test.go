package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport"
)

const channel = 0x4000

// channelRelay forwards between one client, which sees it as the gateway, and
// the gateway, which sees it as a relay with one channel.
type channelRelay struct{ outside, inside *net.UDPConn }

func newChannelRelay(t *testing.T, gateway, client netip.AddrPort) *channelRelay {
	t.Helper()
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	x := &channelRelay{listen(), listen()}
	var ended sync.WaitGroup
	// Writing fails now and then while the gateway has no socket.
	ended.Go(func() {
		b := make([]byte, 2000)
		for {
			n, err := x.outside.Read(b[4:])
			if err != nil {
				return
			}
			binary.BigEndian.PutUint16(b, channel)
			binary.BigEndian.PutUint16(b[2:], uint16(n))
			_, _ = x.inside.WriteToUDPAddrPort(b[:4+n], gateway)
		}
	})
	ended.Go(func() {
		b := make([]byte, 2000)
		for {
			n, err := x.inside.Read(b)
			if err != nil {
				return
			}
			_, _ = x.outside.WriteToUDPAddrPort(b[min(4, n):n], client)
		}
	})
	t.Cleanup(func() {
		x.outside.Close()
		x.inside.Close()
		ended.Wait()
	})
	return x
}

func portOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// address returns where the engine of the client sends from.
func (m *remote) address(t *testing.T) netip.AddrPort {
	t.Helper()
	state, err := m.device.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(state) {
		var port uint16
		if n, _ := fmt.Sscanf(line, "listen_port=%d", &port); n == 1 {
			return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		}
	}
	t.Fatal("the engine has no port")
	return netip.AddrPort{}
}

// lines counts what is logged.
type lines struct{ n atomic.Int64 }

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) Handle(context.Context, slog.Record) error {
	l.n.Add(1)
	return nil
}
func (l *lines) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *lines) WithGroup(string) slog.Handler      { return l }

// TestSocketsAreReplacedUnderTraffic does what the owner of the sockets does on
// a reset, while two clients, one direct and one through a relay, send and
// receive.
func TestSocketsAreReplacedUnderTraffic(t *testing.T) {
	const rebinds = 15
	logged := new(lines)
	r := newRigWith(t, slog.New(logged))
	bind := r.cfg.Bind.(*transport.Bind)
	port := r.sockets.LocalPort(transport.IPv4)
	drops := new(drop.Counters)
	direct, relayed := r.join(t, 1, usualGrants()...), r.join(t, 2, usualGrants()...)
	client := relayed.address(t)
	x := newChannelRelay(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), client)
	if err := relayed.device.IpcSet(fmt.Sprintf("public_key=%x\nendpoint=%v\n",
		r.key.PublicKey().Bytes(), portOf(x.outside))); err != nil {
		t.Fatal(err)
	}
	server := r.sockets.AddRelay(portOf(x.inside))
	server.SetChannel(channel, client, portOf(x.outside))
	r.exchange(t, relayed, 1)
	if p := relayed.client.Path(); p.Relay() != server {
		t.Fatalf("path is %v", p)
	}
	r.exchange(t, direct, 1)

	stop := make(chan struct{})
	var running sync.WaitGroup
	var fromClients [3]atomic.Int64 // packets, by client
	var toClients [3]atomic.Int64
	push := func(into chan []byte, packet func(uint16) []byte) {
		running.Go(func() {
			for i := uint16(0); ; i++ {
				select {
				case <-stop:
					return
				case into <- packet(i):
				}
			}
		})
	}
	pull := func(from chan []byte, count func(pkt []byte)) {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case pkt := <-from:
					count(pkt)
				}
			}
		})
	}
	pull(r.tun.fromEngine, func(pkt []byte) { fromClients[pkt[15]].Add(1) })
	for _, m := range []*remote{direct, relayed} {
		push(m.tun.toEngine, m.request)
		push(r.tun.toEngine, m.reply)
		pull(m.tun.fromEngine, func([]byte) { toClients[m.n].Add(1) })
	}
	allFlow := func() {
		t.Helper()
		for n := 1; n <= 2; n++ {
			in, out := fromClients[n].Load(), toClients[n].Load()
			eventually(t, fmt.Sprintf("packets of client %d", n), func() bool {
				return fromClients[n].Load() > in && toClients[n].Load() > out
			})
		}
	}
	allFlow()
	var goroutines, files int
	for i := range rebinds {
		r.sockets.Close()
		lost := drops.Load(drop.SendFailed)
		if i > 0 { // the first sockets count for themselves
			eventually(t, "packets without sockets to be counted", func() bool { return drops.Load(drop.SendFailed) > lost })
		}
		next := reopen(t, transport.Config{
			Port: port, Logger: slog.New(slog.DiscardHandler), Peers: r.cfg.Peers, Drops: drops,
		})
		if old := bind.Swap(next); old != r.sockets {
			t.Fatal("other sockets were in use")
		}
		r.sockets = next
		server = next.AddRelay(portOf(x.inside))
		server.SetChannel(channel, client, portOf(x.outside))
		allFlow()
		eventually(t, "the path through the new relay", func() bool { return relayed.client.Path().Relay() == server })
		if p := direct.client.Path(); p.Relay() != nil {
			t.Errorf("path is %v", p)
		}
		if i == 0 {
			goroutines, files = runtime.NumGoroutine(), openFiles(t)
		}
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > goroutines || openFiles(t) > files {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d files, after the first rebind %d and %d",
				runtime.NumGoroutine(), openFiles(t), goroutines, files)
		}
		time.Sleep(time.Millisecond) // the pace of looking
	}
	close(stop)
	running.Wait()
	if n := logged.n.Load(); n != 0 {
		t.Errorf("%d lines were logged", n)
	}
}

// reopen opens sockets on the port that cfg prefers, which another program may
// have for a moment.
func reopen(t *testing.T, cfg transport.Config) *transport.Sockets {
	t.Helper()
	var s *transport.Sockets
	eventually(t, "the port", func() bool {
		var err error
		if s, err = transport.Open(cfg); err != nil {
			t.Fatal(err)
		}
		if s.LocalPort(transport.IPv4) == cfg.Port {
			return true
		}
		s.Close()
		return false
	})
	return s
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
