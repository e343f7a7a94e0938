package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"
	wgconn "golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/transport"
)

// memoryTUN is a TUN device whose network is a pair of channels.
type memoryTUN struct {
	toEngine, fromEngine chan []byte
	closed               chan struct{}
	once                 sync.Once
}

func newMemoryTUN() *memoryTUN {
	return &memoryTUN{make(chan []byte), make(chan []byte, 4096), make(chan struct{}), sync.Once{}}
}

func (m *memoryTUN) close() { m.once.Do(func() { close(m.closed) }) }

func (m *memoryTUN) write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		select {
		case <-m.closed:
			return i, os.ErrClosed
		default:
		}
		select {
		case m.fromEngine <- append([]byte(nil), b[offset:]...):
		case <-m.closed:
			return i, os.ErrClosed
		}
	}
	return len(bufs), nil
}

// send gives a packet to the engine.
func (m *memoryTUN) send(t testing.TB, pkt []byte) {
	t.Helper()
	select {
	case m.toEngine <- pkt:
	case <-m.closed:
		t.Fatal("the device is closed")
	case <-time.After(patience):
		t.Fatal("the engine does not read")
	}
}

// receive returns the next packet from the engine.
func (m *memoryTUN) receive(t testing.TB) []byte {
	t.Helper()
	select {
	case pkt := <-m.fromEngine:
		return pkt
	case <-time.After(patience):
		t.Fatal("no packet comes")
		return nil
	}
}

func (m *memoryTUN) expect(t testing.TB, want []byte) {
	t.Helper()
	if got := m.receive(t); string(got) != string(want) {
		t.Fatalf("got %x, want %x", got, want)
	}
}

func (m *memoryTUN) expectNothing(t testing.TB) {
	t.Helper()
	select {
	case pkt := <-m.fromEngine:
		t.Fatalf("unexpected packet %x", pkt)
	default:
	}
}

// gatewayTUN is a memoryTUN for the gateway's engine.
type gatewayTUN struct{ *memoryTUN }

func newGatewayTUN() gatewayTUN { return gatewayTUN{newMemoryTUN()} }

func (g gatewayTUN) Read(slab []byte, packets []enginetun.ReadPacket) (int, error) {
	select {
	case <-g.closed:
		return 0, os.ErrClosed
	case pkt := <-g.toEngine:
		packets[0] = enginetun.ReadPacket{Offset: spacing, Size: len(pkt)}
		copy(slab[spacing:], pkt)
		return 1, nil
	}
}

func (g gatewayTUN) Write(bufs [][]byte, offset int) (int, error) { return g.write(bufs, offset) }
func (g gatewayTUN) File() *os.File                               { return nil }
func (g gatewayTUN) MTU() (int, error)                            { return 1280, nil }
func (g gatewayTUN) Name() (string, error)                        { return "memory", nil }
func (g gatewayTUN) Events() <-chan enginetun.Event               { return nil }
func (g gatewayTUN) BatchSize() int                               { return batchSize }
func (g gatewayTUN) Close() error                                 { g.close(); return nil }

// remoteTUN is a memoryTUN for the clients' engine.
type remoteTUN struct {
	*memoryTUN
	events chan wgtun.Event
}

func (r remoteTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-r.closed:
		return 0, os.ErrClosed
	case pkt := <-r.toEngine:
		sizes[0] = copy(bufs[0][offset:], pkt)
		return 1, nil
	}
}

func (r remoteTUN) Write(bufs [][]byte, offset int) (int, error) { return r.write(bufs, offset) }
func (r remoteTUN) File() *os.File                               { return nil }
func (r remoteTUN) MTU() (int, error)                            { return 1280, nil }
func (r remoteTUN) Name() (string, error)                        { return "memory", nil }
func (r remoteTUN) Events() <-chan wgtun.Event                   { return r.events }
func (r remoteTUN) BatchSize() int                               { return 1 }
func (r remoteTUN) Close() error {
	r.once.Do(func() { close(r.closed); close(r.events) })
	return nil
}

// rig is a gateway's packet path on loopback.
type rig struct {
	*Tunnel
	sockets *transport.Sockets
	tun     gatewayTUN
	key     *ecdh.PrivateKey
	lost    chan error
}

type noSinks struct{}

func (noSinks) STUN([]byte, *transport.Path)               {}
func (noSinks) Relay(*transport.Relay, []byte, netip.Addr) {}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigWith(t, slog.New(slog.DiscardHandler))
}

// newRigWith has the engine's log in logger.
func newRigWith(t testing.TB, logger *slog.Logger) *rig {
	t.Helper()
	r := &rig{tun: newGatewayTUN(), key: newKey(t), lost: make(chan error, 8)}
	silent := slog.New(slog.DiscardHandler)
	peers := &transport.Peers{}
	var err error
	if r.sockets, err = transport.Open(transport.Config{Logger: silent, Peers: peers}); err != nil {
		t.Fatal(err)
	}
	r.Tunnel, err = New(Config{
		PrivateKey: [32]byte(r.key.Bytes()), Bind: transport.NewBind(r.sockets, noSinks{}), Peers: peers,
		Logger: logger, OnDeviceLost: func(err error) { r.lost <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.AttachTUN(r.tun)
	return r
}

func (r *rig) close() {
	r.Close()
	r.sockets.Close()
}

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// remote is a client of the rig: its own engine, and what the gateway hears.
type remote struct {
	n      int
	key    *ecdh.PrivateKey
	device *wgdevice.Device
	tun    remoteTUN
	heard  *heardBy
	client *Client // in the gateway, nil if not admitted
}

func (m *remote) config(psk byte, grants ...policy.Grant) ClientConfig {
	cfg := configOf(m.n, m.heard, grants...)
	cfg.PublicKey = [32]byte(m.key.PublicKey().Bytes())
	cfg.PresharedKey = preshared(psk)
	return cfg
}

// preshared returns the key that clients and gateway derive from one byte.
func preshared(b byte) (psk [32]byte) {
	for i := range psk {
		psk[i] = b
	}
	return psk
}

// start brings up the engine of client n, which the gateway need not know.
func (r *rig) start(t testing.TB, n int, key *ecdh.PrivateKey, psk byte) *remote {
	t.Helper()
	m := &remote{n: n, key: key, heard: newHeardBy(), tun: remoteTUN{newMemoryTUN(), make(chan wgtun.Event)}}
	m.device = wgdevice.NewDevice(m.tun, wgconn.NewDefaultBind(), wgdevice.NewLogger(wgdevice.LogLevelSilent, ""))
	t.Cleanup(m.device.Close)
	secret := preshared(psk)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.sockets.LocalPort(transport.IPv4))
	if err := m.device.IpcSet(fmt.Sprintf(
		"private_key=%x\npublic_key=%x\npreshared_key=%x\nendpoint=%v\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		key.Bytes(), r.key.PublicKey().Bytes(), secret[:], at)); err != nil {
		t.Fatal(err)
	}
	if err := m.device.Up(); err != nil {
		t.Fatal(err)
	}
	return m
}

// join starts client n and admits it.
func (r *rig) join(t testing.TB, n int, grants ...policy.Grant) *remote {
	t.Helper()
	m := r.start(t, n, newKey(t), byte(n))
	r.admit(t, m, byte(n), grants...)
	return m
}

func (r *rig) admit(t testing.TB, m *remote, psk byte, grants ...policy.Grant) {
	t.Helper()
	var err error
	if m.client, err = r.Add(m.config(psk, grants...)); err != nil {
		t.Fatal(err)
	}
}

// connected reports whether the client's own engine has completed a handshake.
func (m *remote) connected(t testing.TB) bool {
	t.Helper()
	state, err := m.device.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	return !strings.Contains(state, "last_handshake_time_sec=0\n")
}

// request is packet number id from the client to a granted server, reply the one
// that comes back.
func (m *remote) request(id uint16) []byte {
	return udp(address4(m.n), server4, id, 1000, 20)
}

func (m *remote) reply(id uint16) []byte {
	return udp(server4, address4(m.n), 1000, id, 20)
}

// exchange sends one packet each way.
func (r *rig) exchange(t testing.TB, m *remote, id uint16) {
	t.Helper()
	m.tun.send(t, m.request(id))
	r.tun.expect(t, m.request(id))
	r.tun.send(t, m.reply(id))
	m.tun.expect(t, m.reply(id))
}
