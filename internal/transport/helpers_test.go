package transport

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/drop"

	"github.com/tailscale/wireguard-go/conn"
	"go.uber.org/goleak"
)

const (
	slabSize = 131070 // of the engine
	headroom = 8      // the engine leaves before each message
	patience = 10 * time.Second
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = [families]netip.Addr{IPv4: netip.MustParseAddr("127.0.0.1"), IPv6: netip.IPv6Loopback()}

var silent = slog.New(slog.DiscardHandler)

// skipOrFail is for what a machine may lack, but the continuous build must not.
func skipOrFail(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

func openSockets(t testing.TB, cfg Config) *Sockets {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = silent
	}
	if cfg.RecvBuffer == 0 {
		cfg.RecvBuffer = 4 << 20
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func needFamily(t testing.TB, s *Sockets, f Family) {
	t.Helper()
	if s.sockets[f] == nil {
		skipOrFail(t, "no "+f.String()+" on this machine")
	}
	if c, err := net.Dial("udp", netip.AddrPortFrom(loopback[f], s.LocalPort(f)).String()); err != nil {
		skipOrFail(t, "no "+f.String()+" loopback: "+err.Error())
	} else {
		c.Close()
	}
}

func address(s *Sockets, f Family) netip.AddrPort {
	return netip.AddrPortFrom(loopback[f], s.LocalPort(f))
}

// pathTo returns the direct loopback path from a to b.
func pathTo(a, b *Sockets, f Family) *Path { return a.Path(loopback[f], address(b, f)) }

// recorder keeps what the sinks get.
type recorder struct {
	mu    sync.Mutex
	stun  []record
	relay []record
}

type record struct {
	b     string
	path  *Path
	relay *Relay
	local netip.Addr
}

func (r *recorder) STUN(b []byte, p *Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stun = append(r.stun, record{b: string(b), path: p})
}

func (r *recorder) Relay(relay *Relay, b []byte, local netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.relay = append(r.relay, record{b: string(b), relay: relay, local: local})
}

func (r *recorder) counts() (stun, relay int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.stun), len(r.relay)
}

// discard takes everything and keeps nothing.
type discard struct{}

func (discard) STUN([]byte, *Path)               {}
func (discard) Relay(*Relay, []byte, netip.Addr) {}

// packet is one that the engine would get.
type packet struct {
	b    string
	path *Path
}

// engine calls the receive functions of a Bind as the engine does and passes
// copies of the packets on. It ends with the test.
type engine struct {
	bind  *Bind
	sinks *recorder
	got   chan packet
	ended sync.WaitGroup
}

func startEngine(t testing.TB, s *Sockets, packets int) *engine {
	t.Helper()
	e := &engine{sinks: new(recorder), got: make(chan packet, 1<<16)}
	e.bind = NewBind(s, e.sinks)
	e.open(t, packets)
	t.Cleanup(func() { e.close(t) })
	return e
}

func (e *engine) open(t testing.TB, packets int) {
	t.Helper()
	fns, _, err := e.bind.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fn := range fns {
		e.ended.Go(func() {
			meta := make([]conn.ReceivedPacket, packets)
			for {
				slab := make([]byte, slabSize)
				n, err := fn(slab, meta)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil || n == 0 {
					t.Errorf("receive: %d, %v", n, err)
					return
				}
				for _, m := range meta[:n] {
					e.got <- packet{string(m.Bytes(slab)), m.Endpoint.(*Path)}
				}
			}
		})
	}
}

// close closes the bind and waits for the receive functions.
func (e *engine) close(t testing.TB) {
	t.Helper()
	if err := e.bind.Close(); err != nil {
		t.Error(err)
	}
	done := make(chan struct{})
	go func() { e.ended.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("receive functions do not end")
	}
}

func (e *engine) next(t testing.TB) packet {
	t.Helper()
	select {
	case p := <-e.got:
		return p
	case <-time.After(patience):
		t.Fatal("no packet")
		return packet{}
	}
}

func (e *engine) expect(t testing.TB, want []string) *Path {
	t.Helper()
	var path *Path
	for i, w := range want {
		p := e.next(t)
		if p.b != w {
			t.Fatalf("packet %d of %d: got %d bytes %.12x, want %d bytes %.12x", i, len(want), len(p.b), p.b, len(w), w)
		}
		path = p.path
	}
	return path
}

func (e *engine) expectNothing(t testing.TB) {
	t.Helper()
	select {
	case p := <-e.got:
		t.Fatalf("unexpected packet of %d bytes", len(p.b))
	default:
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(time.Millisecond) // the pace of looking, not a wait for luck
	}
}

func waitDrops(t testing.TB, drops *drop.Counters, reason drop.Reason, want uint64) {
	t.Helper()
	eventually(t, reason.String(), func() bool { return drops.Load(reason) >= want })
	if got := drops.Load(reason); got != want {
		t.Fatalf("%v = %d, want %d", reason, got, want)
	}
}

// transport returns a WireGuard transport message of n bytes with a number in it.
func transport(n, number int) []byte {
	b := make([]byte, n)
	b[0] = 4
	binary.LittleEndian.PutUint32(b[4:], uint32(number))
	for i := 8; i < n; i++ {
		b[i] = byte(i + number)
	}
	return b
}

// batch returns messages of these sizes, with headroom and as they should arrive.
func batch(sizes ...int) (bufs [][]byte, want []string) {
	for i, n := range sizes {
		b := transport(n, i)
		want = append(want, string(b))
		bufs = append(bufs, append(make([]byte, headroom), b...))
	}
	return bufs, want
}

func repeat(n, size int) []int {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

func bindingRequest() []byte {
	b := make([]byte, stunHeader)
	b[1] = 1
	binary.BigEndian.PutUint32(b[4:], stunCookie)
	return b
}

func send(t testing.TB, s *Sockets, p *Path, bufs [][]byte) {
	t.Helper()
	if err := s.sendBatch(p, bufs, headroom); err != nil {
		t.Fatal(err)
	}
}
