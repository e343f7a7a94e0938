package relay_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"github.com/pion/turn/v2"
	"go.uber.org/goleak"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/relay"
)

const arrival = 5 * time.Second

var (
	loopback  = netip.MustParseAddr("127.0.0.1")
	secret    = strings.Repeat("0123456789abcdef", 4)
	startTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

func TestMain(m *testing.M) {
	// The test that needs namespaces says why it cannot have them.
	_ = labnet.EnsureIsolated()
	goleak.VerifyTestMain(m)
}

func TestPlainClientRelays(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback, Lenient: true})
	peer := listenUDP(t)
	username, password := relay.Credentials(secret, "key", startTime.Add(time.Hour))
	relayed, err := allocate(t, server, username, password)
	if err != nil {
		t.Fatal(err)
	}
	if port := relayed.LocalAddr().(*net.UDPAddr).Port; port < 49152 {
		t.Errorf("relayed port %d", port)
	}
	if s := server.Stats(); s.Allocations != 1 || s.Allocated != 1 || s.Unauthorized != 0 {
		t.Errorf("after the allocation: %+v", s)
	}

	buffer := make([]byte, 64)
	if _, err := relayed.WriteTo([]byte("there"), peer.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	n, from, err := peer.ReadFrom(buffer)
	if err != nil || string(buffer[:n]) != "there" || from.String() != relayed.LocalAddr().String() {
		t.Fatalf("peer gets %q from %v, error %v", buffer[:n], from, err)
	}
	if _, err := peer.WriteTo([]byte("and back"), from); err != nil {
		t.Fatal(err)
	}
	_ = relayed.SetReadDeadline(time.Now().Add(arrival))
	n, from, err = relayed.ReadFrom(buffer)
	if err != nil || string(buffer[:n]) != "and back" || from.String() != peer.LocalAddr().String() {
		t.Fatalf("client gets %q from %v, error %v", buffer[:n], from, err)
	}
	eventually(t, "one datagram each way is not counted", func() bool {
		s := server.Stats()
		return s.ToPeers == relay.Traffic{Packets: 1, Bytes: 5} && s.FromPeers == relay.Traffic{Packets: 1, Bytes: 8}
	})

	if err := relayed.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "closed allocation stays", func() bool { return server.Stats().Allocations == 0 })
}

func TestPlainClientIsRefused(t *testing.T) {
	valid := startTime.Add(time.Hour)
	username, password := relay.Credentials(secret, "key", valid)
	expiredName, expiredPassword := relay.Credentials(secret, "key", startTime.Add(-time.Second))
	otherName, otherPassword := relay.Credentials(relay.NewSecret(), "key", valid)
	for _, test := range []struct{ name, username, password string }{
		{"with the password of another relay", otherName, otherPassword},
		{"with a password cut short", username, password[1:]},
		{"with a later expiry than was signed", strings.Replace(username, username[:4], "9999", 1), password},
		{"with expired credentials", expiredName, expiredPassword},
		{"with a username that is none", "alice", password},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := start(t, relay.Options{IPv4: loopback})
			_, err := allocate(t, server, test.username, test.password)
			if err == nil || !strings.Contains(err.Error(), "401") {
				t.Errorf("error %v, want 401", err)
			}
			if s := server.Stats(); s.Allocated != 0 || s.Unauthorized != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestCloseEndsOpenAllocations(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback, Lenient: true})
	username, password := relay.Credentials(secret, "key", startTime.Add(time.Hour))
	for range 3 {
		if _, err := allocate(t, server, username, password); err != nil {
			t.Fatal(err)
		}
	}
	if n := server.Stats().Allocations; n != 3 {
		t.Errorf("%d allocations", n)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if n := server.Stats().Allocations; n != 0 {
		t.Errorf("%d allocations survive", n)
	}
}

// A relay may have an allocation for each of a thousand simulated clients.
func TestIdleAllocationsAreSmall(t *testing.T) {
	const many, each = 50, 100 << 10 // bytes: less than a tenth of what a batch takes
	server := start(t, relay.Options{IPv4: loopback})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what was pooled is gone now
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range many {
		c := newClient(t, server)
		username, password := relay.Credentials(secret, strconv.Itoa(i), startTime.Add(time.Hour))
		c.username, c.integrity = username, stun.NewLongTermIntegrity(username, relay.Realm, password)
		c.learnNonce()
		c.allocate()
	}
	if s := server.Stats(); s.Allocations != many {
		t.Fatalf("%+v", s)
	}
	eventually(t, "idle allocations keep their buffers", func() bool { return heap()-before < many*each })
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	if _, err := relay.Start(relay.Options{Secret: secret, ListenPacket: net.ListenPacket}); err == nil {
		t.Error("a relay without address starts")
	}
	var opened []net.PacketConn
	refused := errors.New("no second socket")
	_, err := relay.Start(relay.Options{
		Secret: secret, IPv4: loopback, IPv6: netip.IPv6Loopback(),
		ListenPacket: func(network, address string) (net.PacketConn, error) {
			if len(opened) > 0 {
				return nil, refused
			}
			conn, err := net.ListenPacket(network, address)
			opened = append(opened, conn)
			return conn, err
		},
	})
	if !errors.Is(err, refused) {
		t.Errorf("error %v", err)
	}
	if err := opened[0].Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("first socket was left open: %v", err)
	}
}

func TestSecretsStayOutOfTheLog(t *testing.T) {
	var text syncBuffer
	server := start(t, relay.Options{IPv4: loopback, Log: slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	username, password := relay.Credentials(secret, "key", startTime.Add(time.Hour))
	if _, err := allocate(t, server, username, password); err != nil {
		t.Fatal(err)
	}
	if _, err := allocate(t, server, username, "wrong"); err == nil {
		t.Fatal("wrong password is accepted")
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	log := text.String()
	if !strings.Contains(log, "scope=turn") {
		t.Errorf("nothing of the server's in the log: %q", log)
	}
	for _, word := range []string{secret, password} {
		if strings.Contains(log, word) {
			t.Errorf("secret in the log: %s", log)
		}
	}
}

// start runs a relay on the loopback, at the time startTime without a clock.
func start(t *testing.T, o relay.Options) *relay.Server {
	t.Helper()
	o.Secret = secret
	if o.Now == nil {
		o.Now = func() time.Time { return startTime }
	}
	if o.ListenPacket == nil {
		o.ListenPacket = func(network, address string) (net.PacketConn, error) {
			return new(net.ListenConfig).ListenPacket(context.Background(), network, address)
		}
	}
	server, err := relay.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() }) // closed twice in some tests
	return server
}

// allocate asks for an allocation with pion's own client.
func allocate(t *testing.T, server *relay.Server, username, password string) (net.PacketConn, error) {
	t.Helper()
	conn := listenUDP(t)
	address := server.Addrs()[0].String()
	client, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr: address, TURNServerAddr: address, Conn: conn,
		Username: username, Password: password, Realm: relay.Realm,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.Listen(); err != nil {
		t.Fatal(err)
	}
	relayed, err := client.Allocate()
	if err == nil {
		t.Cleanup(func() { _ = relayed.Close() }) // closed twice in some tests
	}
	return relayed, err
}

func listenUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(arrival))
	return conn
}

func eventually(t *testing.T, complaint string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(arrival); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(complaint)
		}
	}
}

type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
