package transport

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"firezone-gateway/internal/drop"
)

// dial returns a connected socket of another program on this machine.
func dial(t testing.TB, s *Sockets) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(address(s, IPv4)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func localOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func channelData(channel uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, channel)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

func TestDemultiplexing(t *testing.T) {
	const channel = 0x4001
	peer := netip.MustParseAddrPort("198.51.100.7:1234")
	relayed := netip.MustParseAddrPort("203.0.113.1:50000")
	keepalive, stun := transport(32, 1), bindingRequest()
	type taker int
	const (
		engineDirect taker = iota
		engineRelayed
		stunDirect
		stunRelayed
		control
		nobody
	)
	for _, tt := range []struct {
		name  string
		relay bool // sent from the relay's address
		b     []byte
		want  taker
		drop  drop.Reason
	}{
		{"WireGuard from a peer", false, keepalive, engineDirect, 0},
		{"WireGuard from a relay's own address", true, keepalive, engineDirect, 0},
		{"WireGuard in a channel", true, channelData(channel, keepalive), engineRelayed, 0},
		{"STUN from a peer", false, stun, stunDirect, 0},
		{"STUN from a relay", true, stun, control, 0},
		{"STUN in a channel", true, channelData(channel, stun), stunRelayed, 0},
		{"a channel that is not bound", true, channelData(channel+1, keepalive), nobody, drop.ChannelUnknown},
		{"ChannelData from somebody who is no relay", false, channelData(channel, keepalive), nobody, drop.ChannelUnknown},
		{"padded ChannelData", true, append(channelData(channel, keepalive), 0), nobody, drop.DatagramUnknown},
		{"ChannelData in a channel", true, channelData(channel, channelData(channel, keepalive)), nobody, drop.DatagramUnknown},
		{"an empty channel message", true, channelData(channel, nil), nobody, drop.DatagramUnknown},
		{"an empty datagram", false, nil, nobody, drop.DatagramUnknown},
		{"noise", false, []byte("GET / HTTP/1.1\r\n\r\n"), nobody, drop.DatagramUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			drops := new(drop.Counters)
			s := openSockets(t, Config{Drops: drops})
			e := startEngine(t, s, 128)
			server := dial(t, s)
			r := s.AddRelay(netip.MustParseAddrPort("[2001:db8::1]:3478"), localOf(server))
			p := r.SetChannel(channel, peer, relayed)
			from := server
			if !tt.relay {
				from = dial(t, s)
			}
			if _, err := from.Write(tt.b); err != nil {
				t.Fatal(err)
			}
			stunSeen, relaySeen := 0, 0
			switch tt.want {
			case engineDirect:
				if got := e.next(t); got.b != string(tt.b) || got.path.Relay() != nil || got.path.Remote() != localOf(from) {
					t.Errorf("got %d bytes on %v", len(got.b), got.path)
				}
			case engineRelayed:
				if got := e.next(t); got.b != string(keepalive) || got.path != p {
					t.Errorf("got %d bytes on %v", len(got.b), got.path)
				}
			case stunDirect, stunRelayed:
				stunSeen = 1
				eventually(t, "STUN", func() bool { n, _ := e.sinks.counts(); return n == 1 })
				got := e.sinks.stun[0]
				if got.b != string(stun) || (got.path == p) != (tt.want == stunRelayed) {
					t.Errorf("got %d bytes on %v", len(got.b), got.path)
				}
			case control:
				relaySeen = 1
				eventually(t, "control", func() bool { _, n := e.sinks.counts(); return n == 1 })
				if got := e.sinks.relay[0]; got.b != string(stun) || got.relay != r || got.local != loopback[IPv4] {
					t.Errorf("got %+v", got)
				}
			case nobody:
				waitDrops(t, drops, tt.drop, 1)
			}
			e.close(t)
			e.expectNothing(t)
			if n, m := e.sinks.counts(); n != stunSeen || m != relaySeen {
				t.Errorf("sinks got %d and %d messages", n, m)
			}
		})
	}
}

func TestRemovedRelayIsAStranger(t *testing.T) {
	drops := new(drop.Counters)
	s := openSockets(t, Config{Drops: drops})
	e := startEngine(t, s, 128)
	server := dial(t, s)
	r := s.AddRelay(localOf(server))
	r.SetChannel(0x4000, netip.MustParseAddrPort("198.51.100.7:1"), netip.MustParseAddrPort("203.0.113.1:2"))
	write := func(b []byte) {
		if _, err := server.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	write(channelData(0x4000, transport(32, 0)))
	if p := e.next(t).path; p.Relay() != r {
		t.Fatalf("path is %v", p)
	}
	r.ClearChannel(0x4000)
	write(channelData(0x4000, transport(32, 0)))
	waitDrops(t, drops, drop.ChannelUnknown, 1)
	s.RemoveRelay(r)
	write(bindingRequest())
	eventually(t, "STUN", func() bool { n, _ := e.sinks.counts(); return n == 1 })
	if _, n := e.sinks.counts(); n != 0 {
		t.Errorf("removed relay got %d messages", n)
	}
}

// The owner of the first may have vanished without a word.
func TestARelayTakesThePlaceOfThoseWithItsAddress(t *testing.T) {
	s := openSockets(t, Config{})
	e := startEngine(t, s, 128)
	server := dial(t, s)
	peer, relayed := netip.MustParseAddrPort("198.51.100.7:1"), netip.MustParseAddrPort("203.0.113.1:2")
	s.AddRelay(netip.MustParseAddrPort("192.0.2.9:3478"), localOf(server)).SetChannel(0x4000, peer, relayed)
	other := s.AddRelay(netip.MustParseAddrPort("192.0.2.8:3478"))
	r := s.AddRelay(localOf(server))
	r.SetChannel(0x4000, peer, relayed)
	if _, err := server.Write(channelData(0x4000, transport(32, 0))); err != nil {
		t.Fatal(err)
	}
	if p := e.next(t).path; p.Relay() != r {
		t.Errorf("path is %v", p)
	}
	if known := *s.relays.Load(); len(known) != 2 || known[0] != other {
		t.Errorf("%d relays are known", len(known))
	}
}

func TestRelayedSending(t *testing.T) {
	for _, gso := range []bool{true, false} {
		s := openSockets(t, Config{DisableGSO: !gso})
		server := dial(t, s)
		r := s.AddRelay(localOf(server))
		peer := netip.MustParseAddrPort("[2001:db8::7]:1234")
		p := r.SetChannel(0x4abc, peer, netip.MustParseAddrPort("[2001:db8::1]:50000"))
		bufs, want := batch(96, 96, 1312, 1312, 32)
		send(t, s, p, bufs)
		if err := s.SendTo(bindingRequest(), p); err != nil {
			t.Fatal(err)
		}
		if err := s.SendToServer(bindingRequest(), localOf(server)); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			want[i] = string(channelData(0x4abc, []byte(want[i])))
		}
		want = append(want, string(channelData(0x4abc, bindingRequest())), string(bindingRequest()))
		b := make([]byte, 2000)
		for i, w := range want {
			n, err := server.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if string(b[:n]) != w {
				t.Errorf("GSO %v, datagram %d: %d bytes %.8x, want %d bytes", gso, i, n, b[:n], len(w))
			}
		}
		if p.DstIP() != peer.Addr() || string(p.DstToBytes()) != string(append(peer.Addr().AsSlice(), 1234>>8, 1234&0xff)) {
			t.Error("the engine does not see the address of the peer")
		}
		if err := s.sendBatch(p, [][]byte{make([]byte, 40)}, 3); err == nil {
			t.Error("sending without headroom succeeds")
		}
	}
}

func TestChannelTable(t *testing.T) {
	s := openSockets(t, Config{})
	a, b := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:3478")
	r := s.AddRelay(a, b)
	peer, relayed := netip.MustParseAddrPort("198.51.100.7:1"), netip.MustParseAddrPort("203.0.113.1:2")
	for _, n := range []uint16{0, MinChannel - 1, MaxChannel + 1, 0xffff} {
		if r.SetChannel(n, peer, relayed) != nil || r.Path(n) != nil {
			t.Errorf("channel %#x exists", n)
		}
		r.ClearChannel(n)
	}
	p := r.SetChannel(MaxChannel, peer, relayed)
	if p.family != IPv4 || r.SetChannel(MaxChannel, peer, relayed) != p {
		t.Error("setting a channel again makes another path")
	}
	if !r.UseServer(b) || r.UseServer(peer) || r.Server() != b {
		t.Error("UseServer")
	}
	if q := r.SetChannel(MaxChannel, peer, relayed); q == p || q.family != IPv6 || !q.Same(p) {
		t.Error("a channel does not follow the server's address")
	}
}
