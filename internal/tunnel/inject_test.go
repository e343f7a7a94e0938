package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

func (q *injector) pushBytes(c *Client, b []byte) bool {
	return q.push(c, func(dst []byte) []byte { return append(dst, b...) })
}

func TestInjectorKeepsOrderAndRestoresDestinations(t *testing.T) {
	tun := plainTunnel()
	a, b := connect(t, tun, configOf(1, newHeardBy())), connect(t, tun, configOf(2, newHeardBy()))
	mapped := netip.AddrFrom16(foreign4.As16())
	sent := []injectedPacket{
		{a, packettest.Ping(server4, foreign4, 1, nil)},
		{b, packettest.Ping(server6, foreign6, 2, nil)},
		{a, packet.AppendControl(nil, packet.DomainStatus, []byte("{}"))},
		{b, packettest.Ping(server6, mapped, 3, nil)},
		{b, packettest.Ping(server4, netip.IPv4Unspecified(), 3, make([]byte, 1200))},
	}
	for _, p := range sent {
		if !tun.inject.pushBytes(p.client, p.b) {
			t.Fatal("refused")
		}
	}
	got := drain(t, tun)
	if len(got) != len(sent) {
		t.Fatalf("%d packets, want %d", len(got), len(sent))
	}
	for i, p := range sent {
		if got[i].client != p.client || !bytes.Equal(got[i].b, p.b) {
			t.Errorf("packet %d is %x, want %x", i, got[i].b, p.b)
		}
	}
	if tun.inject.claim(make([]byte, 40)) != nil {
		t.Error("more packets claimed than handed out")
	}
}

func TestInjectorIsBounded(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy()))
	for round := range 3 { // around the end of the ring
		for i := range injectSlots {
			if !tun.inject.pushBytes(c, packettest.Ping(gateway4, address4(1), uint16(i), nil)) {
				t.Fatalf("packet %d refused", i)
			}
		}
		for range 5 {
			if tun.inject.pushBytes(c, packettest.Ping(gateway4, address4(1), 0, nil)) {
				t.Fatal("accepted beyond the bound")
			}
		}
		wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.InjectOverflow: uint64(5 * (round + 1))})
		got := drain(t, tun)
		if len(got) != injectSlots {
			t.Fatalf("%d packets came out", len(got))
		}
		for i, p := range got {
			if want := packettest.Ping(gateway4, address4(1), uint16(i), nil); !bytes.Equal(p.b, want) {
				t.Fatalf("packet %d is %x, want %x", i, p.b, want)
			}
		}
	}
}

func TestInjectorTakesNothingEmptyOrTooLarge(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy()))
	if tun.inject.pushBytes(c, nil) || tun.inject.pushBytes(c, make([]byte, packet.MaxSize+1)) {
		t.Error("accepted")
	}
	if tun.inject.used != 0 {
		t.Error("queued")
	}
}

func TestInjectorFillsTheSlabAndNoMore(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy()))
	large := packettest.Ping(gateway4, address4(1), 9, make([]byte, packet.MaxSize-28))
	for range injectSlots {
		tun.inject.pushBytes(c, large)
	}
	total := 0
	for tun.inject.used > 0 {
		slab := bytes.Repeat([]byte{0xee}, slabSize)
		packets := make([]enginetun.ReadPacket, batchSize)
		n, err := tun.inject.Read(slab, packets)
		if err != nil || n == 0 {
			t.Fatalf("read: %d, %v", n, err)
		}
		end := 0
		for _, p := range packets[:n] {
			if p.Offset-end < enginetun.ReadPacketSpacing {
				t.Fatalf("%d bytes before a packet", p.Offset-end)
			}
			end = p.Offset + p.Size
		}
		if len(slab)-end < enginetun.ReadPacketSpacing {
			t.Fatalf("%d bytes behind the last packet", len(slab)-end)
		}
		total += n
	}
	if total != injectSlots {
		t.Errorf("%d packets came out", total)
	}
}

func TestInjectorCloseWakesRead(t *testing.T) {
	q := newInjector()
	ended := make(chan error)
	go func() {
		_, err := q.Read(make([]byte, slabSize), make([]enginetun.ReadPacket, batchSize))
		ended <- err
	}()
	q.close()
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("read ends with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("read goes on")
	}
	if q.pushBytes(newClient(configOf(1, newHeardBy())), packet.AppendGoodbye(nil)) {
		t.Error("accepted after close")
	}
}

func TestGoodbyesAreNotBoundedByTheQueue(t *testing.T) {
	tun := plainTunnel()
	const n = 3 * injectSlots
	clients := make([]*Client, n)
	for i := range clients {
		clients[i] = connect(t, tun, configOf(i+1, newHeardBy()))
	}
	for range injectSlots {
		tun.inject.pushBytes(clients[0], packettest.Ping(gateway4, address4(1), 1, nil))
	}
	for _, c := range clients {
		for range 2 { // the second goodbye is the first one
			if !tun.part(c) {
				t.Fatal("not connected")
			}
		}
	}
	got := drain(t, tun)
	if len(got) != injectSlots+n {
		t.Fatalf("%d packets came out", len(got))
	}
	for i, p := range got[injectSlots:] {
		if p.client != clients[i] || !bytes.Equal(p.b, packet.AppendGoodbye(nil)) {
			t.Fatalf("goodbye %d is %x", i, p.b)
		}
	}
}

func TestGoodbyeIsKnownByItsMark(t *testing.T) {
	tun := plainTunnel()
	a, b := connect(t, tun, configOf(1, newHeardBy())), connect(t, tun, configOf(2, newHeardBy()))
	tun.inject.pushBytes(a, packet.AppendControl(nil, packet.DomainStatus, nil)) // looks the same on the wire
	tun.part(a)
	tun.part(b)
	slab := make([]byte, slabSize)
	packets := make([]enginetun.ReadPacket, batchSize)
	if n, err := tun.inject.Read(slab, packets); n != 3 || err != nil {
		t.Fatalf("read: %d, %v", n, err)
	}
	message := func(i int) [][]byte {
		p := packets[i]
		return [][]byte{slab[p.Offset-markBefore : p.Offset+p.Size+16]}
	}
	for _, c := range []struct {
		client  *Client
		message int
		want    bool
	}{{a, 0, false}, {a, 1, true}, {a, 2, false}, {b, 0, false}, {b, 1, false}, {b, 2, true}} {
		if got := c.client.holdsGoodbye(message(c.message), headroom); got != c.want {
			t.Errorf("message %d of client %d: %v", c.message, c.client.cfg.TunnelV4.As4()[3], got)
		}
	}
	if newClient(configOf(3, newHeardBy())).holdsGoodbye([][]byte{make([]byte, 100)}, headroom) {
		t.Error("a client without a goodbye")
	}
}

func TestGoodbyeThatIsNeverSent(t *testing.T) {
	tun := plainTunnel()
	connect(t, tun, configOf(1, newHeardBy()))
	c := connect(t, tun, configOf(2, newHeardBy()))
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := tun.Goodbye(stopped, c); !errors.Is(err, context.Canceled) {
		t.Errorf("goodbye: %v", err)
	}
	if err := tun.GoodbyeAll(stopped); !errors.Is(err, context.Canceled) {
		t.Errorf("goodbye to all: %v", err)
	}
	c.goodbyeSent()
	if err := tun.Goodbye(stopped, c); err != nil {
		t.Errorf("goodbye that was sent: %v", err)
	}
}

func TestGoodbyeWithoutASession(t *testing.T) {
	tun := plainTunnel()
	c, err := tun.Add(configOf(1, newHeardBy()))
	if err != nil {
		t.Fatal(err)
	}
	if err := tun.Goodbye(t.Context(), c); err != nil {
		t.Error(err)
	}
	if len(drain(t, tun)) != 0 || !c.closing.Load() {
		t.Error("told, or not closed")
	}
}

func TestSendDomainStatus(t *testing.T) {
	tun := plainTunnel()
	c := connect(t, tun, configOf(1, newHeardBy()))
	e := packet.DomainStatusEvent{Resource: "27f4f4d2-6a1f-4a84-9b1b-3f3f2e2d1c0b", Domain: "example.com", Status: packet.Active}
	if !tun.SendDomainStatus(c, e) {
		t.Fatal("not queued")
	}
	got := drain(t, tun)
	want, err := packet.AppendDomainStatus(nil, e)
	if err != nil || len(got) != 1 || got[0].client != c || !bytes.Equal(got[0].b, want) {
		t.Errorf("queued %v, want %x (%v)", got, want, err)
	}
	e.Domain = fmt.Sprintf("%01300d", 0)
	if tun.SendDomainStatus(c, e) {
		t.Error("queued what does not fit")
	}
	c.session.Store(uint32(SessionExpired))
	if e.Domain = "example.com"; tun.SendDomainStatus(c, e) {
		t.Error("queued without a session")
	}
	wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.NotConnected: 1})
}
