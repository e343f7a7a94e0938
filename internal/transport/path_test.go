package transport

import (
	"net/netip"
	"sync"
	"testing"

	"firezone-gateway/internal/drop"

	"github.com/tailscale/wireguard-go/conn"
)

func TestEndpointFollowsTheAuthenticatedPath(t *testing.T) {
	s := openSockets(t, Config{})
	var changes []*Path
	e := NewEndpoint(func(p *Path) { changes = append(changes, p) })
	key, other := [32]byte{1}, [32]byte{1, 2}
	s.Peers().Add(key, e)
	a := s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:1"))
	again := s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:1"))
	b := s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:2"))

	if e.Path() != nil || e.DstIP().IsValid() || e.DstToBytes() != nil || e.DstToString() != "" || e.SrcToString() != "" || e.SrcIP().IsValid() {
		t.Error("a new endpoint has a path")
	}
	for _, p := range []*Path{a, a, again, b, a} {
		p.FromPeer(other)
		p.FromPeer(key)
		if e.Path() != p {
			t.Fatalf("path is %v, want %v", e.Path(), p)
		}
	}
	if len(changes) != 3 || changes[0] != a || changes[1] != b || changes[2] != a {
		t.Errorf("changes: %v", changes)
	}
	if e.DstToString() != "192.0.2.1:1" || e.DstIP() != a.DstIP() || e.SrcIP() != loopback[IPv4] {
		t.Errorf("endpoint is at %s", e.DstToString())
	}
}

func TestEndpointIsMovedOnlyAfterTheClientWasHeard(t *testing.T) {
	s := openSockets(t, Config{})
	changes := 0
	e := NewEndpoint(func(*Path) { changes++ })
	s.Peers().Add([32]byte{1}, e)
	a, b := s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:1")), s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:2"))
	if e.Move(a); e.Path() != nil {
		t.Error("moved before the client was heard")
	}
	a.FromPeer([32]byte{1})
	if e.Move(b); e.Path() != b || changes != 2 {
		t.Errorf("path %v after %d changes", e.Path(), changes)
	}
	if a.FromPeer([32]byte{1}); e.Path() != a {
		t.Error("authenticated traffic is not followed any more")
	}
}

func TestPathServesWhoeverIsRegistered(t *testing.T) {
	s := openSockets(t, Config{})
	p := s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:1"))
	key, otherKey := [32]byte{1}, [32]byte{65}
	first, second, other := NewEndpoint(nil), NewEndpoint(nil), NewEndpoint(nil)

	p.FromPeer(key) // nobody yet
	s.Peers().Add(key, first)
	s.Peers().Add(otherKey, other)
	p.FromPeer(key)
	p.FromPeer(otherKey)
	if first.Path() != p || other.Path() != p {
		t.Error("two clients on one path are not told apart")
	}
	p.FromPeer(key)
	s.Peers().Add(key, second)
	p.FromPeer(key)
	if second.Path() != p {
		t.Error("the cache hides a new registration")
	}
	s.Peers().Remove(key)
	q := s.Path(loopback[IPv4], netip.MustParseAddrPort("192.0.2.1:2"))
	q.FromPeer(key)
	q.InitiationMessagePublicKey(key)
	if second.Path() != p || second.route(messageResponse) != p {
		t.Error("a removed client moves")
	}
}

func TestInitiationPathIsForResponsesOnly(t *testing.T) {
	drops := new(drop.Counters)
	s := openSockets(t, Config{Drops: drops})
	b := NewBind(s, new(recorder))
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	key := [32]byte{7}
	e := NewEndpoint(nil)
	s.Peers().Add(key, e)
	authenticated, claimed := dial(t, s), dial(t, s)
	message := func(kind byte, n int) [][]byte {
		m := make([]byte, headroom+n)
		m[headroom] = kind
		return [][]byte{m}
	}
	sendOn := func(ep conn.Endpoint, kind byte, n int) {
		if err := b.Send(message(kind, n), ep, headroom); err != nil {
			t.Fatal(err)
		}
	}
	sendOn(e, 2, responseLength)
	if got := drops.Load(drop.NoPath); got != 1 {
		t.Fatalf("NoPath = %d, want 1", got)
	}
	claim := s.Path(loopback[IPv4], localOf(claimed))
	claim.InitiationMessagePublicKey(key)
	sendOn(e, 4, 32)
	if got := drops.Load(drop.NoPath); got != 2 {
		t.Fatalf("NoPath = %d, want 2: data went to an unverified path", got)
	}
	s.Path(loopback[IPv4], localOf(authenticated)).FromPeer(key)

	sendOn(e, 1, initiationLength)
	sendOn(e, 2, responseLength)
	sendOn(e, 4, 32)
	sendOn(claim, 3, cookieReplyLength)
	for _, r := range []struct {
		at   *Path
		want []int
	}{
		{s.Path(netip.Addr{}, localOf(authenticated)), []int{initiationLength, 32}},
		{claim, []int{responseLength, cookieReplyLength}},
	} {
		c := authenticated
		if r.at == claim {
			c = claimed
		}
		buf := make([]byte, 2000)
		for _, want := range r.want {
			if n, err := c.Read(buf); err != nil || n != want {
				t.Errorf("got %d bytes, %v, want %d", n, err, want)
			}
		}
	}
}

func TestPeersUnderConcurrency(t *testing.T) {
	s := openSockets(t, Config{})
	peers := s.Peers()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			p := s.Path(loopback[IPv4], netip.AddrPortFrom(loopback[IPv4], uint16(g+1)))
			for i := range 2000 {
				key := [32]byte{byte(i), byte(g % 2)}
				switch i % 4 {
				case 0, 1:
					peers.Add(key, NewEndpoint(func(*Path) {}))
				case 2:
					peers.Remove(key)
				}
				p.FromPeer(key)
				p.InitiationMessagePublicKey(key)
			}
		})
	}
	wg.Wait()
	// The key space of both halves is known; after a final Add all must be found.
	for i := range 256 {
		key := [32]byte{byte(i)}
		e := NewEndpoint(nil)
		peers.Add(key, e)
		if m := peers.lookup(key); m == nil || m.endpoint != e {
			t.Fatalf("key %d is lost", i)
		}
	}
}

func TestPathsAreInternedAndBounded(t *testing.T) {
	s := openSockets(t, Config{})
	r := newReceiver(NewBind(s, new(recorder)), IPv4)
	r.adopt(s)
	source := func(i int) *source {
		var src source
		src.origin.remote = [16]byte{192, 0, byte(i >> 8), byte(i)}
		src.origin.port = 1
		return &src
	}
	first := r.path(source(0))
	if r.path(source(0)) != first {
		t.Error("a path is not interned")
	}
	for i := range maxPaths + 100 {
		r.path(source(i))
	}
	if len(r.paths) != maxPaths {
		t.Errorf("%d paths, want %d", len(r.paths), maxPaths)
	}
}
