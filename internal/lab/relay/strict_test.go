package relay_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun/v3"

	"firezone-gateway/internal/lab/relay"
)

// ready returns a client with an allocation, and its relayed address.
func ready(t *testing.T, server *relay.Server) (*client, *net.UDPAddr) {
	t.Helper()
	c := newClient(t, server)
	c.learnNonce()
	return c, net.UDPAddrFromAddrPort(c.allocate()[0])
}

func TestNothingButChannelsMovesData(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, relayed := ready(t, server)
	peer := listenUDP(t)
	if response := c.ask(stun.MethodCreatePermission, peerAddress(peer.LocalAddr())); response.Type.Class != stun.ClassSuccessResponse || c.integrity.Check(response) != nil {
		t.Errorf("permission: %v", response)
	}
	c.write(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication),
		peerAddress(peer.LocalAddr()), stun.RawAttribute{Type: stun.AttrData, Value: []byte("lost")}).Raw)
	if _, err := peer.WriteTo([]byte("lost as well"), relayed); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the datagrams are not counted", func() bool {
		s := server.Stats()
		return s.Indications == 1 && s.Unbound == 1
	})
	c.bound(0x4000, peer.LocalAddr())
	c.write(channelData(0x4000, "first"))
	buffer := make([]byte, 64)
	if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != "first" {
		t.Errorf("peer gets %q first, error %v", buffer[:n], err)
	}
	if _, err := peer.WriteTo([]byte("back"), relayed); err != nil {
		t.Fatal(err)
	}
	if frame := c.read(); string(frame) != string(channelData(0x4000, "back")) {
		t.Errorf("client gets %q first", frame)
	}
}

func TestChannelDataHasToFitExactly(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	peer := listenUDP(t)
	c.bound(0x4000, peer.LocalAddr())
	bad := []string{
		"@", "@\x00\x00", // no header
		"@\x00\x00\x09x",            // cut short
		"@\x00\x00\x05abcde\x00",    // padded
		"\x50\x00\x00\x01x",         // number too high
		"\x7f\xff\x00\x04data",      // of RFC 5766
		"@\x00\x00\x00\x00\x00\x00", // padding only
	}
	for _, datagram := range bad {
		c.write([]byte(datagram))
	}
	c.write(channelData(0x4001, "no such channel"))
	c.write(channelData(0x4000, ""))
	c.write(channelData(0x4000, "good"))
	buffer := make([]byte, 64)
	for _, want := range []string{"", "good"} {
		if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != want {
			t.Errorf("peer gets %q, want %q, error %v", buffer[:n], want, err)
		}
	}
	if s := server.Stats(); s.Misframed != uint64(len(bad)) || s.Unbound != 1 {
		t.Errorf("%+v, want %d misframed", s, len(bad))
	}
}

func TestLenientRelayCutsPaddingOff(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback, Lenient: true})
	c, _ := ready(t, server)
	peer := listenUDP(t)
	c.bound(0x4000, peer.LocalAddr())
	c.write(append(channelData(0x4000, "abcde"), 0, 0, 0))
	buffer := make([]byte, 64)
	if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != "abcde" {
		t.Errorf("peer gets %q, error %v", buffer[:n], err)
	}
}

func TestBindingsThatAreRefused(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	one, other := listenUDP(t).LocalAddr(), listenUDP(t).LocalAddr()
	c.bound(0x4000, one)
	c.bound(0x4000, one)
	c.bound(0x4fff, other)
	for _, test := range []struct {
		name     string
		response *stun.Message
	}{
		{"number of another peer", c.bind(0x4000, other)},
		{"peer with another number", c.bind(0x4001, one)},
		{"number above the range", c.bind(0x5000, listenUDP(t).LocalAddr())},
		{"number below the range", c.bind(0x3fff, listenUDP(t).LocalAddr())},
		{"no peer", c.ask(stun.MethodChannelBind, channel4000)},
		{"no number", c.ask(stun.MethodChannelBind, peerAddress(one))},
		{"allocation of TCP", c.ask(stun.MethodAllocate, stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{6, 0, 0, 0}})},
		{"allocation of nothing", c.ask(stun.MethodAllocate)},
		{"method that there is not", c.ask(stun.MethodConnect)},
	} {
		if code(test.response) != stun.CodeBadRequest || c.integrity.Check(test.response) != nil {
			t.Errorf("%s: %v with code %d, want a signed 400", test.name, test.response, code(test.response))
		}
	}
}

func TestAnAllocationEndsWhenItsUserMakesAnother(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	first, _ := ready(t, server)
	peer := listenUDP(t)
	first.bound(0x4000, peer.LocalAddr())
	second, _ := ready(t, server)
	if s := server.Stats(); s.Allocations != 1 || s.Allocated != 2 {
		t.Errorf("%+v", s)
	}
	if response := first.ask(stun.MethodRefresh); code(response) != stun.CodeAllocMismatch {
		t.Errorf("refresh of the first: code %d, want 437", code(response))
	}
	first.write(channelData(0x4000, "lost"))
	first.echo()
	if s := server.Stats(); s.Unbound != 1 || s.ToPeers.Packets != 0 {
		t.Errorf("data on the first: %+v", s)
	}
	first.allocate()
	if response := second.ask(stun.MethodRefresh); code(response) != stun.CodeAllocMismatch {
		t.Errorf("refresh of the second: code %d, want 437", code(response))
	}
	if response := first.ask(stun.MethodRefresh); response.Type.Class != stun.ClassSuccessResponse {
		t.Errorf("refresh of the third: %v", response)
	}
	other := newClient(t, server)
	username, password := relay.Credentials(secret, "another key", startTime.Add(time.Hour))
	other.username, other.integrity = username, stun.NewLongTermIntegrity(username, relay.Realm, password)
	other.learnNonce()
	other.allocate()
	if n := server.Stats().Allocations; n != 2 {
		t.Errorf("%d allocations of two users", n)
	}
}

func TestANonceIsForOneSocket(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	thief := newClient(t, server)
	thief.nonce = c.nonce
	response := thief.ask(stun.MethodAllocate, requestUDP)
	if code(response) != stun.CodeStaleNonce || thief.integrity.Check(response) != nil {
		t.Fatalf("%v with code %d, want a signed 438", response, code(response))
	}
	if err := thief.nonce.GetFrom(response); err != nil {
		t.Fatal(err)
	}
	thief.allocate()
}

func TestChannelsEndAfterTenMinutes(t *testing.T) {
	var elapsed atomic.Int64
	server := start(t, relay.Options{IPv4: loopback, Now: func() time.Time { return startTime.Add(time.Duration(elapsed.Load())) }})
	c, relayed := ready(t, server)
	peer := listenUDP(t)
	c.bound(0x4000, peer.LocalAddr())
	buffer := make([]byte, 64)
	exchange := func() {
		t.Helper()
		c.write(channelData(0x4000, "there"))
		if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != "there" {
			t.Fatalf("peer gets %q, error %v", buffer[:n], err)
		}
		if _, err := peer.WriteTo([]byte("back"), relayed); err != nil {
			t.Fatal(err)
		}
		if frame := c.read(); !strings.HasSuffix(string(frame), "back") {
			t.Fatalf("client gets %q", frame)
		}
	}
	exchange()
	elapsed.Store(int64(10*time.Minute - time.Second))
	exchange()
	elapsed.Store(int64(10 * time.Minute))
	c.write(channelData(0x4000, "late"))
	c.echo()
	if n := server.Stats().Unbound; n != 1 {
		t.Errorf("%d datagrams of the client were dropped, want 1", n)
	}
	c.bound(0x4000, peer.LocalAddr())
	exchange()
	elapsed.Store(int64(20 * time.Minute))
	if _, err := peer.WriteTo([]byte("late"), relayed); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a late datagram of the peer is not dropped", func() bool { return server.Stats().Unbound == 2 })
}
