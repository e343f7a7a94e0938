package tunnel

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"
	"go.uber.org/goleak"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second
	// engineOffset is where the engine puts decrypted packets in their buffers.
	engineOffset = 16
	slabSize     = 131070 // of the engine
)

var (
	gateway4 = netip.MustParseAddr("100.64.0.1")
	gateway6 = netip.MustParseAddr("fd00:2021:1111::1")
	server4  = netip.MustParseAddr("10.1.0.5")
	server6  = netip.MustParseAddr("2001:db8:1::5")
	expired4 = netip.MustParseAddr("10.2.0.5")
	other4   = netip.MustParseAddr("10.9.0.5")
	other6   = netip.MustParseAddr("2001:db8:9::5")
	foreign4 = netip.MustParseAddr("192.168.7.7")
	foreign6 = netip.MustParseAddr("2001:db8:7::7")
	nobody4  = netip.MustParseAddr("100.65.255.255")
)

// clock is the time that unit tests pass in.
var clock = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func address4(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)})
}

func address6(i int) netip.Addr {
	a := gateway6.As16()
	a[13], a[14], a[15] = 1, byte(i>>8), byte(i)
	return netip.AddrFrom16(a)
}

func keyOf(i int) (k [32]byte) {
	binary.LittleEndian.PutUint32(k[:], uint32(i)*2654435761)
	binary.BigEndian.PutUint32(k[28:], uint32(i))
	return k
}

// usualGrants admit UDP 1000-1999, TCP 443 and ICMP on the servers' networks;
// that of expired4 ends at clock.
func usualGrants() []policy.Grant {
	filters := []policy.Filter{
		{Protocol: policy.FilterUDP, Ports: policy.PortRange{First: 1000, Last: 1999}},
		{Protocol: policy.FilterTCP, Ports: policy.PortRange{First: 443, Last: 443}},
		{Protocol: policy.FilterICMP},
	}
	cidr := func(id, network string) policy.Resource {
		return policy.Resource{ID: id, Kind: policy.CIDR, Network: netip.MustParsePrefix(network), Filters: filters}
	}
	return []policy.Grant{
		{Resource: cidr("a", "10.1.0.0/24")},
		{Resource: cidr("b", "2001:db8:1::/64")},
		{Resource: cidr("c", "10.2.0.0/24"), ExpiresAt: clock},
	}
}

func snapshot(i int, grants ...policy.Grant) *policy.Snapshot {
	return policy.Compile(policy.Peer{
		ClientV4: address4(i), ClientV6: address6(i), GatewayV4: gateway4, GatewayV6: gateway6,
	}, grants, 1)
}

// heardBy are callbacks that note what they hear.
type heardBy struct {
	control  chan string
	sessions chan Session
	paths    chan *transport.Path
}

func newHeardBy() *heardBy {
	return &heardBy{make(chan string, 8), make(chan Session, 64), make(chan *transport.Path, 64)}
}

func (h *heardBy) callbacks() Callbacks {
	return Callbacks{
		Control: func(pkt []byte) bool {
			select {
			case h.control <- string(pkt):
				return true
			default:
				return false
			}
		},
		Session: func(s Session) { h.sessions <- s },
		Path:    func(p *transport.Path) { h.paths <- p },
	}
}

func configOf(i int, h *heardBy, grants ...policy.Grant) ClientConfig {
	return ClientConfig{
		PublicKey: keyOf(i), TunnelV4: address4(i), TunnelV6: address6(i),
		Policy: snapshot(i, grants...), Callbacks: h.callbacks(),
	}
}

// plainTunnel returns a tunnel without an engine.
func plainTunnel() *Tunnel {
	return newTunnel(Config{
		Peers: &transport.Peers{}, Logger: slog.New(slog.DiscardHandler), OnDeviceLost: func(error) {},
	})
}

// connect adds a client as if it had a session.
func connect(t testing.TB, tun *Tunnel, cfg ClientConfig) *Client {
	t.Helper()
	c, err := tun.Add(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.session.Store(uint32(SessionEstablished))
	c.heard.Store(true)
	return c
}

func udp(src, dst netip.Addr, sport, dport uint16, payload int) []byte {
	return packettest.UDP(netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), make([]byte, payload))
}

// decrypted returns packets as the engine hands them to WriteTo.
func decrypted(packets ...[]byte) [][]byte {
	bufs := make([][]byte, len(packets))
	for i, p := range packets {
		bufs[i] = append(make([]byte, engineOffset), p...)
	}
	return bufs
}

// spacing is the room that package tun leaves around packets.
const spacing = enginetun.ReadPacketSpacing + packet.MaxGrowth

// fromTUN returns packets as a TUN device hands them over.
func fromTUN(packets ...[]byte) (slab []byte, descriptors []enginetun.ReadPacket) {
	slab = make([]byte, spacing)
	for _, p := range packets {
		descriptors = append(descriptors, enginetun.ReadPacket{Offset: len(slab), Size: len(p)})
		slab = append(slab, p...)
		slab = append(slab, make([]byte, spacing)...)
	}
	return slab, descriptors
}

// injectedPacket is one that the engine would send.
type injectedPacket struct {
	client *Client
	b      []byte
}

// drain takes what waits in the injector the way the engine does.
func drain(t testing.TB, tun *Tunnel) []injectedPacket {
	t.Helper()
	var out []injectedPacket
	for tun.inject.used > 0 || len(tun.inject.parting) > 0 {
		slab := make([]byte, slabSize)
		descriptors := make([]enginetun.ReadPacket, batchSize)
		n, err := tun.inject.Read(slab, descriptors)
		if err != nil || n == 0 {
			t.Fatalf("read: %d, %v", n, err)
		}
		for _, d := range descriptors[:n] {
			pkt := slab[d.Offset : d.Offset+d.Size]
			if dst := destination(pkt); !dst.IsUnspecified() {
				t.Fatalf("the engine would look up %v", dst)
			}
			c := tun.inject.claim(pkt)
			out = append(out, injectedPacket{c, pkt})
		}
	}
	return out
}

func source(pkt []byte) netip.Addr {
	if pkt[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(pkt[12:16]))
	}
	return netip.AddrFrom16([16]byte(pkt[8:24]))
}

func destination(pkt []byte) netip.Addr {
	if pkt[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(pkt[16:20]))
	}
	return netip.AddrFrom16([16]byte(pkt[24:40]))
}

// icmpOf returns type and code of an ICMP message.
func icmpOf(t testing.TB, pkt []byte) (typ, code byte) {
	t.Helper()
	var v packet.View
	if r := v.Parse(pkt); r != drop.None || (v.Protocol != packet.ICMP && v.Protocol != packet.ICMPv6) {
		t.Fatalf("no ICMP message: %v, %x", r, pkt)
	}
	return pkt[v.Transport], pkt[v.Transport+1]
}

// wantDrops checks that nothing but what is given was counted.
func wantDrops(t testing.TB, what string, got *drop.Counters, want map[drop.Reason]uint64) {
	t.Helper()
	for r := drop.None; r < drop.Count; r++ {
		if got.Load(r) != want[r] {
			t.Errorf("%s: %v = %d, want %d", what, r, got.Load(r), want[r])
		}
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
