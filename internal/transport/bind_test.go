package transport

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/tailscale/wireguard-go/conn"
)

func TestCloseUnblocksAndOpenContinues(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	e := startEngine(t, z, 128)
	if _, _, err := e.bind.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("second Open = %v", err)
	}
	bufs, want := batch(96)
	for range 3 {
		send(t, a, pathTo(a, z, IPv4), bufs)
		e.expect(t, want)
		e.close(t)
		if err := e.bind.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
		if err := e.bind.Send(bufs, z.Path(netip.Addr{}, address(a, IPv4)), headroom); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send on a closed bind = %v", err)
		}
		send(t, a, pathTo(a, z, IPv4), bufs) // waits in the socket
		e.open(t, 128)
		e.expect(t, want)
	}
}

func TestReceiveFunctionsOfAnEarlierOpenEnd(t *testing.T) {
	s := openSockets(t, Config{})
	b := NewBind(s, new(recorder))
	old, port, err := b.Open(0)
	if err != nil || port != s.LocalPort(IPv4) || len(old) != 2 {
		t.Fatal(len(old), port, err)
	}
	b.Close()
	if _, _, err = b.Open(0); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, fn := range old {
		if _, err := fn(make([]byte, slabSize), make([]conn.ReceivedPacket, 128)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("receive = %v", err)
		}
	}
}

func TestRebindWhileReceiving(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	e := startEngine(t, z, 128)
	endpoint := NewEndpoint(nil)
	key := [32]byte{3}
	z.Peers().Add(key, endpoint)
	bufs, want := batch(repeat(30, 1312)...)
	for round := range 6 {
		send(t, a, pathTo(a, z, IPv4), bufs)
		p := e.expect(t, want)
		if p.Local() != address(z, IPv4) {
			t.Errorf("round %d: local is %v, want %v", round, p.Local(), address(z, IPv4))
		}
		p.FromPeer(key)
		if endpoint.Path() != p {
			t.Error("the endpoint does not follow")
		}
		next := openSockets(t, Config{Peers: z.Peers()})
		if round%2 == 0 { // the two orders in which an owner may do it
			if old := e.bind.Swap(next); old != z {
				t.Error("Swap returns other sockets")
			}
			z.Close()
		} else {
			z.Close()
			e.bind.Swap(next)
		}
		z = next
		if e.bind.Sockets() != z || e.bind.Swap(z) != z {
			t.Error("the bind has other sockets")
		}
	}
	send(t, a, pathTo(a, z, IPv4), bufs)
	e.expect(t, want)
}

func TestSwapBringsAndTakesAFamily(t *testing.T) {
	a := openSockets(t, Config{})
	needFamily(t, a, IPv6)
	only4, err := open(Config{Logger: silent}, lacking(IPv6, errors.New("none")))
	if err != nil {
		t.Fatal(err)
	}
	defer only4.Close()
	e := startEngine(t, only4, 128)
	both := openSockets(t, Config{})
	e.bind.Swap(both)
	bufs, want := batch(96)
	send(t, a, pathTo(a, both, IPv6), bufs)
	e.expect(t, want)
	e.bind.Swap(only4)
	send(t, a, pathTo(a, only4, IPv4), bufs)
	e.expect(t, want)
}

func TestReplyComesFromTheAddressThatWasAsked(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	ea, ez := startEngine(t, a, 128), startEngine(t, z, 128)
	second := netip.MustParseAddr("127.0.0.2")
	bufs, want := batch(96, 96, 96)
	send(t, a, a.Path(loopback[IPv4], netip.AddrPortFrom(second, z.LocalPort(IPv4))), bufs)
	p := ez.expect(t, want)
	if p.Local().Addr() != second {
		t.Fatalf("asked at %v", p.Local())
	}
	for _, reply := range [][][]byte{bufs, bufs[:1]} {
		if err := ez.bind.Send(reply, p, headroom); err != nil {
			t.Fatal(err)
		}
		if got := ea.expect(t, want[:len(reply)]); got.Remote().Addr() != second {
			t.Errorf("answer from %v", got.Remote())
		}
	}
	if err := z.SendTo([]byte(want[0]), p); err != nil {
		t.Fatal(err)
	}
	if got := ea.expect(t, want[:1]); got.Remote().Addr() != second {
		t.Errorf("answer from %v", got.Remote())
	}
}

func TestParseEndpoint(t *testing.T) {
	b := NewBind(openSockets(t, Config{}), new(recorder))
	ep, err := b.ParseEndpoint("192.0.2.1:5")
	if err != nil || ep.DstToString() != "192.0.2.1:5" {
		t.Errorf("ParseEndpoint = %v, %v", ep, err)
	}
	if _, err := b.ParseEndpoint("example"); err == nil {
		t.Error("a name is accepted")
	}
	if b.BatchSize() != 128 {
		t.Errorf("BatchSize = %d", b.BatchSize())
	}
}

func TestForeignEndpointsAreRefused(t *testing.T) {
	b := NewBind(openSockets(t, Config{}), new(recorder))
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Send([][]byte{make([]byte, 40)}, &conn.StdNetEndpoint{}, headroom); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("Send = %v", err)
	}
	if err := b.Send(nil, NewEndpoint(nil), headroom); err != nil {
		t.Errorf("Send of nothing = %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	e := startEngine(t, z, 128)
	b := NewBind(a, new(recorder))
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := pathTo(a, z, IPv4)
	var wg sync.WaitGroup
	const senders, rounds = 4, 50
	for range senders {
		wg.Go(func() {
			for range rounds {
				bufs, _ := batch(1312, 1312, 96)
				if err := b.Send(bufs, p, headroom); err != nil {
					t.Error(err)
				}
				if err := a.SendTo(bindingRequest(), p); err != nil {
					t.Error(err)
				}
				r := a.AddRelay(netip.MustParseAddrPort("192.0.2.1:3478"))
				z.RemoveRelay(r)
				a.RemoveRelay(r)
				a.Stats()
			}
		})
	}
	for range senders * rounds * 3 {
		e.next(t)
	}
	wg.Wait()
	eventually(t, "STUN", func() bool { n, _ := e.sinks.counts(); return n == senders*rounds })
}
