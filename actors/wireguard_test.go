package actors

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/transport"
)

// wireguard is a client's WireGuard, by the engine that the gateway does not
// use, with a network in memory.
type wireguard struct {
	t        testing.TB
	key      *ecdh.PrivateKey
	engine   *device.Device
	net      clientTUN
	goodbyes atomic.Int64
}

func newWireGuard(t testing.TB) *wireguard {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &wireguard{t: t, key: key, net: newClientTUN()}
	w.net.goodbyes = &w.goodbyes
	quiet := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	w.engine = device.NewDevice(w.net, conn.NewStdNetBind(), quiet)
	if err := w.engine.SetPrivateKey(device.NoisePrivateKey(key.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Up(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.engine.Close)
	return w
}

// connect points the tunnel at the gateway's socket, without a session.
func (w *wireguard) connect(p *testPlane, g grantedTo) {
	w.t.Helper()
	port := p.Bind.Sockets().LocalPort(transport.IPv4)
	err := w.engine.IpcSet(fmt.Sprintf("replace_peers=true\npublic_key=%s\npreshared_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		hex.EncodeToString(g.GatewayPublicKey), hex.EncodeToString(g.PresharedKey), port))
	if err != nil {
		w.t.Fatal(err)
	}
}

// passes sends packets to n.1.2.3 until the gateway puts one on its network.
func (w *wireguard) passes(to *memoryTUN, source netip.Addr, n byte) {
	w.t.Helper()
	w.passesWithin(patience, to, source, n)
}

func (w *wireguard) passesWithin(limit time.Duration, to *memoryTUN, source netip.Addr, n byte) {
	w.t.Helper()
	dst := netip.AddrFrom4([4]byte{n, 1, 2, 3})
	pkt := packettest.UDP(netip.AddrPortFrom(source, 4000), netip.AddrPortFrom(dst, 53), []byte("question"))
	expiry, again := time.After(limit), time.NewTicker(100*time.Millisecond)
	defer again.Stop()
	for {
		w.net.in <- pkt
		select {
		case got := <-to.toResources:
			var v packet.View
			if v.Parse(got); v.Dst == dst {
				return
			}
		case <-again.C:
		case <-expiry:
			w.t.Fatalf("no packet to %s passes", dst)
		}
	}
}

// sayGoodbye tells the gateway that the client is done.
func (w *wireguard) sayGoodbye() { w.net.in <- packet.AppendGoodbye(nil) }

// clientTUN is a TUN device in memory, which counts goodbyes.
type clientTUN struct {
	in       chan []byte
	closed   chan struct{}
	events   chan tun.Event
	once     *sync.Once
	goodbyes *atomic.Int64
}

func newClientTUN() clientTUN {
	return clientTUN{in: make(chan []byte, 64), closed: make(chan struct{}), events: make(chan tun.Event), once: new(sync.Once)}
}

func (d clientTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case pkt := <-d.in:
		sizes[0] = copy(bufs[0][offset:], pkt)
		return 1, nil
	}
}

func (d clientTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if kind, _, ok := packet.ParseControl(b[offset:]); ok && kind == packet.Goodbye {
			d.goodbyes.Add(1)
		}
	}
	return len(bufs), nil
}

func (d clientTUN) File() *os.File           { return nil }
func (d clientTUN) MTU() (int, error)        { return 1280, nil }
func (d clientTUN) Name() (string, error)    { return "memory", nil }
func (d clientTUN) Events() <-chan tun.Event { return d.events }
func (d clientTUN) BatchSize() int           { return 1 }

func (d clientTUN) Close() error {
	d.once.Do(func() { close(d.closed); close(d.events) })
	return nil
}
