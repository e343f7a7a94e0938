package transport

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"
	"github.com/tailscale/wireguard-go/tun/tuntest"
)

var (
	gatewayIP = netip.MustParseAddr("100.64.0.1")
	clientIP  = netip.MustParseAddr("100.64.0.2")
)

// tunnel is a gateway with our bind and a client with the engine's own.
type tunnel struct {
	sockets              *Sockets
	endpoint             *Endpoint
	changes              chan *Path
	gateway, client      *device.Device
	gatewayTUN, otherTUN *tuntest.ChannelTUN
}

// startTunnel starts both; the client sends to at, which leads to the gateway.
func startTunnel(t *testing.T, s *Sockets, at netip.AddrPort) *tunnel {
	t.Helper()
	x := &tunnel{sockets: s, changes: make(chan *Path, 16), gatewayTUN: tuntest.NewChannelTUN(), otherTUN: tuntest.NewChannelTUN()}
	x.endpoint = NewEndpoint(func(p *Path) { x.changes <- p })
	gatewayKey, clientKey := newKey(t), newKey(t)
	quiet := device.NewLogger(device.LogLevelSilent, "")

	known := device.NoisePublicKey(clientKey.PublicKey().Bytes())
	s.Peers().Add(known, x.endpoint)
	x.gateway = device.NewDevice(x.gatewayTUN.TUN(), NewBind(s, new(recorder)), quiet)
	t.Cleanup(x.gateway.Close)
	x.gateway.SetPeerLookupFunc(func(key device.NoisePublicKey) (*device.NewPeerConfig, bool) {
		return &device.NewPeerConfig{AllowedIPs: []netip.Prefix{netip.PrefixFrom(clientIP, 32)}, Endpoint: x.endpoint}, key == known
	})
	if err := x.gateway.SetPrivateKey(device.NoisePrivateKey(gatewayKey.Bytes())); err != nil {
		t.Fatal(err)
	}
	x.client = device.NewDevice(x.otherTUN.TUN(), conn.NewStdNetBind(), quiet)
	t.Cleanup(x.client.Close)
	configure := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%v\nallowed_ip=%v/32\n", hex.EncodeToString(clientKey.Bytes()),
		hex.EncodeToString(gatewayKey.PublicKey().Bytes()), at, gatewayIP)
	if err := x.client.IpcSet(configure); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*device.Device{x.gateway, x.client} {
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func newKey(t *testing.T) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// exchange sends one packet from the client and one back.
func (x *tunnel) exchange(t *testing.T) {
	t.Helper()
	pass(t, x.otherTUN, x.gatewayTUN, tuntest.Ping(gatewayIP, clientIP))
	pass(t, x.gatewayTUN, x.otherTUN, tuntest.Ping(clientIP, gatewayIP))
}

func pass(t *testing.T, from, to *tuntest.ChannelTUN, b []byte) {
	t.Helper()
	from.Outbound <- b
	select {
	case got := <-to.Inbound:
		if string(got) != string(b) {
			t.Errorf("got %x, want %x", got, b)
		}
	case <-time.After(patience):
		t.Fatal("no packet comes through the tunnel")
	}
}

func (x *tunnel) nextPath(t *testing.T) *Path {
	t.Helper()
	select {
	case p := <-x.changes:
		return p
	case <-time.After(patience):
		t.Fatal("the path does not change")
		return nil
	}
}

func TestEngineFollowsARoamingClient(t *testing.T) {
	s := openSockets(t, Config{})
	x := startTunnel(t, s, address(s, IPv4))
	x.exchange(t)
	first := x.nextPath(t)
	if first.Local() != address(s, IPv4) || x.endpoint.Path() != first {
		t.Errorf("path is %v", first)
	}
	if err := x.client.IpcSet("listen_port=0\n"); err != nil {
		t.Fatal(err)
	}
	x.exchange(t)
	if second := x.nextPath(t); second.Same(first) || x.endpoint.Path() != second {
		t.Errorf("path is %v, was %v", second, first)
	}
	for range 3 { // what the engine does on events of the TUN device
		if err := x.gateway.Down(); err != nil {
			t.Fatal(err)
		}
		if err := x.gateway.Up(); err != nil {
			t.Fatal(err)
		}
	}
	if got := x.gateway.Bind().(*Bind).Sockets(); got != s {
		t.Error("the engine closed the sockets")
	}
}

func TestEngineThroughARelay(t *testing.T) {
	s := openSockets(t, Config{})
	control, relayed := dial(t, s), listenRelayed(t)
	r := s.AddRelay(localOf(control))
	x := startTunnel(t, s, localOf(relayed))
	stop := relay(t, control, relayed, 0x4000, func(peer netip.AddrPort) { r.SetChannel(0x4000, peer, localOf(relayed)) })
	defer stop()
	x.exchange(t)
	p := x.nextPath(t)
	if p.Relay() != r || p.Channel() != 0x4000 || p.Local() != localOf(relayed) {
		t.Errorf("path is %v", p)
	}
	for range 10 {
		x.exchange(t)
	}
}

func listenRelayed(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback[IPv4], 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// relay forwards between the gateway, which is behind control, and one peer of
// relayed, which it reports to bind before its first datagram.
func relay(t *testing.T, control, relayed *net.UDPConn, channel uint16, bind func(netip.AddrPort)) (stop func()) {
	var ended sync.WaitGroup
	peers := make(chan netip.AddrPort, 1)
	ended.Go(func() {
		known := false
		b := make([]byte, 2000)
		for {
			n, from, err := relayed.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if !known {
				known = true
				bind(from)
				peers <- from
			}
			if _, err := control.Write(channelData(channel, b[:n])); err != nil {
				return
			}
		}
	})
	ended.Go(func() {
		b := make([]byte, 2000)
		var peer netip.AddrPort
		for {
			n, err := control.Read(b)
			if err != nil {
				return
			}
			if !peer.IsValid() {
				peer = <-peers
			}
			if Classify(b[:n]) != KindChannelData {
				t.Errorf("the relay gets %d bytes that are no ChannelData", n)
				continue
			}
			if _, err := relayed.WriteToUDPAddrPort(b[channelHeader:n], peer); err != nil {
				return
			}
		}
	})
	return func() {
		control.Close()
		relayed.Close()
		ended.Wait()
	}
}
