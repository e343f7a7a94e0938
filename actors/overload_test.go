package actors

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

func TestABucketAdmitsABurstAndThenARate(t *testing.T) {
	const start = int64(1_700_000_000e9)
	b := newBucket(3, time.Second)
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{
		{0, true}, {0, true}, {0, true}, {0, false},
		{999 * time.Millisecond, false}, {time.Second, true}, {time.Second, false},
		{3 * time.Second, true}, {3 * time.Second, true}, {3 * time.Second, false},
		{time.Hour, true}, {time.Hour, true}, {time.Hour, true}, {time.Hour, false}, // no more than the burst
		{time.Hour - time.Minute, false}, // a clock that is set back admits nothing for free
	} {
		if got := b.take(start + int64(step.after)); got != step.want {
			t.Fatalf("after %v: %v", step.after, got)
		}
	}
	b = newBucket(100, time.Second)
	var admitted sync.Map
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			if b.take(start) {
				admitted.Store(i, true)
			}
		})
	}
	all.Wait()
	n := 0
	admitted.Range(func(any, any) bool { n++; return true })
	if n != 100 {
		t.Errorf("%d admitted at once", n)
	}
	if n := testing.AllocsPerRun(100, func() { b.take(start) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// One client that floods has its own packets dropped, which are counted as its own.
func TestControlPacketsOfOneClientAreLimited(t *testing.T) {
	r := newFamily(t)
	rates := map[string]*peer{}
	r.plane.players.peer = func(env peerEnv) actorkit.Actor {
		p := newPeer(env)
		rates[env.id] = p
		return faulty{p}
	}
	var clients [2]*tunnel.Client
	var callbacks [2]tunnel.Callbacks
	for i, c := range []byte{1, 2} {
		r.portalSays(authorization(c, 10))
		eventually(t, func() bool { return admits(t, r.plane, c, 10) }, "client %d is connected", c)
		clients[i], _ = r.plane.Tunnel.Lookup(authorization(c, 0).Client.PublicKey)
		for _, pid := range r.childrenOf(r.pid) {
			if actorkit.Path(pid) == "gateway/peers/"+clientID(c) {
				r.look(pid, func(ctx actorkit.Context) { callbacks[i] = rates[clientID(c)].callbacks(ctx) })
			}
		}
	}
	const flood = 5000
	begin := time.Now()
	for range flood {
		callbacks[0].Control([]byte("x"))
	}
	passed := flood - clients[0].Drops().Load(drop.ControlLimited)
	if limit := controlBurst + uint64(time.Since(begin)/controlInterval) + 1; passed < controlBurst || passed > limit {
		t.Errorf("%d of %d pass, at most %d may", passed, flood, limit)
	}
	for range controlBurst / 2 {
		callbacks[1].Control([]byte("x"))
	}
	if n := clients[1].Drops().Load(drop.ControlLimited); n != 0 {
		t.Errorf("%d of another client's are dropped", n)
	}
}

// A flood of authorizations is applied in its order, by each client's actor, also
// when peers fails in the middle of it.
func TestAFloodOfAuthorizationsKeepsItsOrder(t *testing.T) {
	const clients, each = 20, 200
	r := newPeersRig(t)
	for c := byte(1); c <= clients; c++ {
		r.plane.store.put(clientID(c), stateOf(c, 10))
	}
	said := map[string][]string{}
	got := map[string][]string{}
	for n := range each {
		for c := byte(1); c <= clients; c++ {
			a := authorization(c, byte(n))
			said[clientID(c)] = append(said[clientID(c)], a.Resource.ID)
			r.system.Send(r.pid, authorizationOf(a, n))
		}
		if n == each/2 {
			r.system.Send(r.pid, boom{})
		}
	}
	for count := 0; count < clients*each; {
		select {
		case m := <-r.children:
			switch msg := m.msg.(type) {
			case messages.Authorize:
				got[m.id] = append(got[m.id], msg.Authorization.Resource.ID)
				count++
			case messages.Revoke:
				got[m.id] = append(got[m.id], msg.ResourceID)
				count++
			}
		case <-time.After(patience):
			t.Fatalf("%d of %d have come", count, clients*each)
		}
	}
	for id, want := range said {
		if !slices.Equal(got[id], want) {
			t.Errorf("%s got another order", id)
		}
	}
}

// authorizationOf is what the portal says in the n-th turn: every third takes back.
func authorizationOf(a portal.Authorize, n int) messages.FromPortal {
	if n%3 == 2 {
		return said(portal.RejectAccess{ClientID: a.Client.ID, ResourceID: a.Resource.ID})
	}
	return said(a)
}

// A client that knows the gateway's key can have it work on handshakes. Under load
// the engine demands a cookie, which shows that the sender is where it says, and
// admits twenty handshakes a second of each address.
func TestAFloodOfHandshakesKeepsNobodyOut(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	bad, good := newWireGuard(t), newWireGuard(t)
	g := dialClient(t, r.lab, "bad", bad.key.PublicKey().Bytes()).access(id)
	initiation := captureInitiation(t, bad, g)

	flood, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}, net.UDPAddrFromAddrPort(
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.plane.Bind.Sockets().LocalPort(transport.IPv4))))
	if err != nil {
		t.Fatal(err)
	}
	var cookies, sent atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		answer := make([]byte, 2048)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for range 64 {
				if _, err := flood.Write(initiation); err == nil {
					sent.Add(1)
				}
			}
			_ = flood.SetReadDeadline(time.Now().Add(time.Millisecond))
			for {
				n, err := flood.Read(answer)
				if err != nil {
					break
				}
				if n == 64 && answer[0] == 3 {
					cookies.Add(1)
				}
			}
		}
	}()
	// The flood is one when the engine cannot keep up with it.
	eventually(t, func() bool { return cookies.Load() > 0 }, "a cookie")
	begin := time.Now()
	c := dialClient(t, r.lab, "good", good.key.PublicKey().Bytes())
	good.connect(r.plane, c.access(id))
	// A client that is asked for a cookie begins again after five seconds, and a busy
	// machine may let it miss a few turns.
	good.passesWithin(6*patience, r.tun, c.ipv4, 10)
	took := time.Since(begin)
	// The flood goes on, and so does the client.
	for range 20 {
		good.passesWithin(6*patience, r.tun, c.ipv4, 10)
	}
	close(stop)
	<-done
	if err := flood.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d initiations, %d answered by a cookie; another client connected within %v", sent.Load(), cookies.Load(), took)
}

// captureInitiation returns the first message of a client's handshake.
func captureInitiation(t *testing.T, w *wireguard, g grantedTo) []byte {
	t.Helper()
	listener, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := w.engine.IpcSet(fmt.Sprintf("replace_peers=true\npublic_key=%s\npreshared_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\npersistent_keepalive_interval=1\n",
		hex.EncodeToString(g.GatewayPublicKey), hex.EncodeToString(g.PresharedKey), listener.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	_ = listener.SetReadDeadline(time.Now().Add(patience))
	n, err := listener.Read(buf)
	if err != nil {
		t.Fatal("no initiation: ", err)
	}
	return buf[:n]
}
