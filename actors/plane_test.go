package actors

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tun"
)

// journal keeps what is logged.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
	at  string // whoever logs this text panics, once; guarded by mu
}

// breakAt has the next actor that logs text panic there.
func (j *journal) breakAt(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.at = text
}

func (j *journal) breaks(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.at == "" || j.at != text {
		return false
	}
	j.at = ""
	return true
}

// fragile is the handler of a journal.
type fragile struct {
	slog.Handler
	j *journal
}

func (f fragile) Handle(ctx context.Context, r slog.Record) error {
	if f.j.breaks(r.Message) {
		panic("told to panic at " + r.Message)
	}
	return f.Handler.Handle(ctx, r)
}

func (f fragile) WithAttrs(attrs []slog.Attr) slog.Handler {
	return fragile{f.Handler.WithAttrs(attrs), f.j}
}

func (f fragile) WithGroup(name string) slog.Handler { return fragile{f.Handler.WithGroup(name), f.j} }

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) logger(t testing.TB) *slog.Logger {
	t.Helper()
	log, err := telemetry.NewLogger(j, telemetry.FormatHuman, "debug,gateway=info")
	if err != nil {
		t.Fatal(err)
	}
	return slog.New(fragile{log.Handler(), j})
}

// testPlane is a Plane on loopback, whose TUN devices are in memory.
type testPlane struct {
	*Plane
	log  *journal
	host *memoryHost
}

// listenOnLoopback serves what belongs on a tunnel address.
func listenOnLoopback(cfg dns.ServerConfig) (*dns.Server, error) {
	cfg.Addr = netip.MustParseAddrPort("127.0.0.1:0")
	return dns.Listen(cfg)
}

// newTestPlane logs in to portalURL, if a test gets that far.
func newTestPlane(t testing.TB, portalURL string) *testPlane {
	t.Helper()
	if portalURL == "" {
		portalURL = "ws://127.0.0.1:9"
	}
	log := &journal{}
	p, err := newPlane(PlaneConfig{
		Login: login(t, portalURL), MaxPartitionTime: time.Hour, Logger: log.logger(t), Drops: &drop.Counters{},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close the plane: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	h := &memoryHost{opened: make(chan *memoryTUN, 64), configured: make(chan tun.Network, 64)}
	p.host = host{
		sockets: transport.Open, open: h.open, configure: h.configure,
		forward:   func(string, tun.Families) error { return nil },
		missing:   h.missing,
		listenDNS: listenOnLoopback,
	}
	return &testPlane{Plane: p, log: log, host: h}
}

func login(t testing.TB, baseURL string) portal.LoginURL {
	t.Helper()
	l, err := portal.NewLoginURL(portal.Login{
		BaseURL: baseURL, Token: "s3cret-login-token", ID: "gateway-under-test", Name: "gateway",
		UserAgent: "Debian/12.0.0 gateway/1.5.3 (x86_64; 6.1.0)",
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// memoryHost stands for the machine.
type memoryHost struct {
	opened     chan *memoryTUN
	configured chan tun.Network

	mu     sync.Mutex
	fail   error                    // of open, guarded by mu
	undone func() ([]string, error) // what others did, guarded by mu
}

func (h *memoryHost) setUndone(f func() ([]string, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.undone = f
}

func (h *memoryHost) missing(tun.Network, bool) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.undone == nil {
		return nil, nil
	}
	return h.undone()
}

func (h *memoryHost) open(tun.Config) (tunDevice, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return nil, h.fail
	}
	d := newMemoryTUN()
	h.opened <- d
	return d, nil
}

func (h *memoryHost) configure(n tun.Network) (tun.Families, error) {
	h.configured <- n
	return tun.Families{V4: true, V6: true}, nil
}

// memoryTUN is a TUN device whose network is a pair of channels.
type memoryTUN struct {
	toClients   chan []byte
	toResources chan []byte
	closed      chan struct{}
	gone        chan struct{}
	once        sync.Once
}

func newMemoryTUN() *memoryTUN {
	return &memoryTUN{
		toClients: make(chan []byte), toResources: make(chan []byte, 64),
		closed: make(chan struct{}), gone: make(chan struct{}),
	}
}

func (d *memoryTUN) Read(slab []byte, packets []enginetun.ReadPacket) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case pkt := <-d.toClients:
		packets[0] = enginetun.ReadPacket{Offset: enginetun.ReadPacketSpacing, Size: len(pkt)}
		copy(slab[enginetun.ReadPacketSpacing:], pkt)
		return 1, nil
	}
}

func (d *memoryTUN) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		select {
		case d.toResources <- append([]byte(nil), b[offset:]...):
		case <-d.closed:
			return i, os.ErrClosed
		}
	}
	return len(bufs), nil
}

func (d *memoryTUN) File() *os.File                 { return nil }
func (d *memoryTUN) MTU() (int, error)              { return 1280, nil }
func (d *memoryTUN) Name() (string, error)          { return "memory", nil }
func (d *memoryTUN) Events() <-chan enginetun.Event { return nil }
func (d *memoryTUN) BatchSize() int                 { return 1 }
func (d *memoryTUN) Gone() <-chan struct{}          { return d.gone }
func (d *memoryTUN) Close() error                   { d.once.Do(func() { close(d.closed) }); return nil }
