package transport

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	"golang.org/x/sys/unix"
)

// observer is a socket of another program, which sees the ECN field.
type observer struct {
	*net.UDPConn
	family Family
}

func observe(t testing.TB, f Family) observer {
	t.Helper()
	network := [families]string{IPv4: "udp4", IPv6: "udp6"}[f]
	c, err := net.ListenUDP(network, &net.UDPAddr{IP: loopback[f].AsSlice()})
	if err != nil {
		skipOrFail(t, "no "+f.String()+" loopback: "+err.Error())
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = requestECN(int(fd), f) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return observer{c, f}
}

// next returns the next datagram and the bits of TOS or traffic class.
func (o observer) next(t testing.TB) (string, byte) {
	t.Helper()
	if err := o.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 2000), make([]byte, 128)
	n, m, _, _, err := o.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range messages {
		switch {
		case c.Header.Level == unix.IPPROTO_IP && c.Header.Type == unix.IP_TOS:
			return string(b[:n]), c.Data[0]
		case c.Header.Level == unix.IPPROTO_IPV6 && c.Header.Type == unix.IPV6_TCLASS:
			return string(b[:n]), byte(binary.NativeEndian.Uint32(c.Data))
		}
	}
	t.Fatal("the kernel tells no TOS")
	return "", 0
}

// send sends b to s with these bits.
func (o observer) send(t testing.TB, s *Sockets, b []byte, tos int) {
	t.Helper()
	raw, err := o.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if o.family == IPv6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, tos) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if _, err := o.WriteToUDPAddrPort(b, address(s, o.family)); err != nil {
		t.Fatal(err)
	}
}

func TestDataCarriesTheECNFieldOfItsPacket(t *testing.T) {
	type datagram struct {
		b    []byte
		ecn  byte // in the headroom
		want byte
	}
	response := make([]byte, responseLength)
	response[0] = messageResponse
	fields := []byte{0, 1, 1, 1, 2, 2, 0, 0, 3, 3, 0}
	var datagrams []datagram
	for i, f := range fields {
		datagrams = append(datagrams, datagram{transport(1312, i), 0xfc | f, f})
	}
	for i, f := range fields {
		datagrams = append(datagrams, datagram{transport(1312, i), f, f}, datagram{transport(48, i), f, f})
	}
	datagrams = append(datagrams,
		datagram{transport(minTransportLength, 0), 3, 0}, // a keepalive in a recycled buffer
		datagram{response, 2, 0},
		datagram{transport(1312, 7), 1, 1}, datagram{transport(1312, 8), 1, 1},
	)
	for _, f := range []Family{IPv4, IPv6} {
		for _, relayed := range []bool{false, true} {
			for _, gso := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v, relayed %v, GSO %v", f, relayed, gso), func(t *testing.T) {
					s, o := openSockets(t, Config{DisableGSO: !gso}), observe(t, f)
					needFamily(t, s, f)
					b := NewBind(s, discard{})
					if _, _, err := b.Open(0); err != nil {
						t.Fatal(err)
					}
					defer b.Close()
					p, prefix := s.Path(loopback[f], localOf(o.UDPConn)), 0
					if relayed {
						p, prefix = s.AddRelay(localOf(o.UDPConn)).SetChannel(MinChannel, address(s, f), address(s, f)), channelHeader
					}
					var bufs [][]byte
					for _, d := range datagrams {
						buf := append(make([]byte, headroom), d.b...)
						buf[headroom-ECNAhead] = d.ecn
						bufs = append(bufs, buf)
					}
					if err := b.Send(bufs, p, headroom); err != nil {
						t.Fatal(err)
					}
					for i, d := range datagrams {
						got, tos := o.next(t)
						if got[prefix:] != string(d.b) || tos != d.want {
							t.Fatalf("datagram %d of %d bytes has TOS %#x, want %d bytes with %#x", i, len(got)-prefix, tos, len(d.b), d.want)
						}
					}
				})
			}
		}
	}
}

func TestControlDatagramsAreNotECT(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		s, o := openSockets(t, Config{}), observe(t, f)
		needFamily(t, s, f)
		p := s.Path(loopback[f], localOf(o.UDPConn))
		if err := s.SendTo(bindingRequest(), p); err != nil {
			t.Fatal(err)
		}
		if err := s.SendToServer(bindingRequest(), localOf(o.UDPConn)); err != nil {
			t.Fatal(err)
		}
		bufs := [][]byte{append(make([]byte, 4), transport(96, 0)...)} // no room for a field
		if err := s.sendBatch(p, bufs, 4); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, tos := o.next(t); tos != 0 {
				t.Errorf("%v: TOS is %#x", f, tos)
			}
		}
	}
}

// TestOneReceiveDoesNotMixCongestionMarks is what congestedPath builds on.
func TestOneReceiveDoesNotMixCongestionMarks(t *testing.T) {
	const relayedPayload = 96
	marks := []int{0, 0, 3, 3, 3, 1, 2, 3, 0, 0xfc, 0xff, 0}
	for _, f := range []Family{IPv4, IPv6} {
		for _, packets := range []int{1, 2, 128} {
			t.Run(fmt.Sprintf("%v, %d packets at a time", f, packets), func(t *testing.T) {
				s, o := openSockets(t, Config{}), observe(t, f)
				needFamily(t, s, f)
				key := [32]byte{5}
				endpoint := NewEndpoint(nil)
				s.Peers().Add(key, endpoint)
				server := observe(t, f)
				s.AddRelay(localOf(server.UDPConn)).SetChannel(MinChannel, address(s, f), address(s, f))
				b := NewBind(s, discard{})
				fns, _, err := b.Open(0)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				var want []string
				var congested []bool
				send := func(from observer, b, inner []byte, tos int) {
					from.send(t, s, b, tos)
					want, congested = append(want, string(inner)), append(congested, tos&3 == 3)
				}
				for i, tos := range slices.Concat(marks, marks) {
					data, relayed := transport(1312, i), transport(relayedPayload, i)
					send(o, data, data, tos)
					send(server, channelData(MinChannel, relayed), relayed, tos)
				}
				slab, received := make([]byte, slabSize), make([]conn.ReceivedPacket, packets)
				for len(want) > 0 {
					n, err := fns[f](slab, received)
					if err != nil {
						t.Fatal(err)
					}
					for i, p := range received[:n] {
						if string(p.Bytes(slab)) != want[i] || congested[i] != congested[0] {
							t.Fatalf("packet %d of %d: %d bytes, marked %v", i, n, p.Size, congested[i])
						}
					}
					last := received[n-1].Endpoint
					last.(conn.PeerAwareEndpoint).FromPeer(key)
					if endpoint.Congested() != congested[0] {
						t.Fatalf("congested is %v, want %v", endpoint.Congested(), congested[0])
					}
					if p := endpoint.Path(); p.Remote() != localOf(o.UDPConn) && p.Relay() == nil {
						t.Fatalf("path is %v", p)
					}
					// The engine answers on the endpoint of a packet.
					if err := b.Send([][]byte{append(make([]byte, headroom), transport(40, 0)...)}, last, headroom); err != nil {
						t.Fatal(err)
					}
					want, congested = want[n:], congested[n:]
				}
			})
		}
	}
}

// TestCoalescedMessagesKeepTheirMark has the segments of one message marked and
// those of the next not, in both modes of the receiver.
func TestCoalescedMessagesKeepTheirMark(t *testing.T) {
	a, z := openSockets(t, Config{}), openSockets(t, Config{})
	key := [32]byte{5}
	endpoint := NewEndpoint(nil)
	z.Peers().Add(key, endpoint)
	e := NewBind(z, discard{})
	fns, _, err := e.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	slab, received := newSlab()
	for round := range 6 {
		var want []string
		var congested []bool
		for run, field := range []byte{0, 3, 1, 3, 3, 0} {
			bufs, w := batch(repeat(20+run, 1000)...)
			for _, b := range bufs {
				b[headroom-ECNAhead] = field
				congested = append(congested, field == 3)
			}
			send(t, a, pathTo(a, z, IPv4), bufs)
			want = append(want, w...)
		}
		for len(want) > 0 {
			n, err := fns[IPv4](slab, received)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range received[:n] {
				p.Endpoint.(conn.PeerAwareEndpoint).FromPeer(key)
				if string(p.Bytes(slab)) != want[i] || endpoint.Congested() != congested[i] {
					t.Fatalf("round %d, packet %d of %d: %d bytes, marked %v", round, i, n, p.Size, endpoint.Congested())
				}
			}
			want, congested = want[n:], congested[n:]
		}
	}
}

func TestHandshakesHaveTheirPathAsEndpoint(t *testing.T) {
	s, o := openSockets(t, Config{}), observe(t, IPv4)
	b := NewBind(s, discard{})
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	initiation := make([]byte, initiationLength)
	initiation[0] = 1
	o.send(t, s, initiation, ecnCE)
	slab, received := newSlab()
	if n, err := fns[IPv4](slab, received); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, ok := received[0].Endpoint.(*Path); !ok {
		t.Errorf("the endpoint is a %T", received[0].Endpoint)
	}
}
