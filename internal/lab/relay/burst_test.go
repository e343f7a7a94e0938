package relay_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/relay"
)

// What comes as one message, as from senders with segmentation offload, and
// what comes singly goes out the same: each payload whole and in order.
func TestBurstsCrossTheRelayInOrder(t *testing.T) {
	const rounds, burst, size = 5, 20, 1200
	server := start(t, relay.Options{IPv4: loopback})
	conn := listenUDP(t)
	c := newClientOn(t, connected{conn, server.Addrs()[0]})
	c.learnNonce()
	relayed := c.allocate()[0]
	peers := []*net.UDPConn{listenUDP(t), listenUDP(t)}
	for i, peer := range peers {
		c.bound(0x4000+uint16(i), peer.LocalAddr())
	}
	for _, together := range []bool{false, true} {
		for range rounds {
			var out []byte
			for i := range burst {
				// Two to each peer in turn; the last one is short.
				payload := numbered(i, size)
				if i == burst-1 {
					payload = numbered(i, 10)
				}
				out = append(out, channelData(0x4000+uint16(i/2%2), payload)...)
			}
			sendBurst(t, conn, out, size+4, server.Addrs()[0], together)
			for i := range burst {
				buffer := make([]byte, 2*size)
				n, from, err := peers[i/2%2].ReadFromUDPAddrPort(buffer)
				want := numbered(i, size)
				if i == burst-1 {
					want = numbered(i, 10)
				}
				if err != nil || from != relayed || string(buffer[:n]) != want {
					t.Fatalf("together %v: peer gets %d bytes %.9q from %v, error %v, want %.9q", together, n, buffer[:n], from, err, want)
				}
			}
			for i, peer := range peers {
				var back []byte
				for k := range burst {
					back = append(back, numbered(100*i+k, size)...)
				}
				sendBurst(t, peer, back, size, relayed, together)
				for k := range burst {
					if frame, want := c.read(), channelData(0x4000+uint16(i), numbered(100*i+k, size)); string(frame) != string(want) {
						t.Fatalf("together %v: client gets %d bytes %.13q, want %.13q", together, len(frame), frame, want)
					}
				}
			}
		}
	}
	const each = 2 * rounds * burst
	eventually(t, "not every datagram is counted", func() bool {
		s := server.Stats()
		return s.ToPeers == relay.Traffic{Packets: each, Bytes: each*size - 2*rounds*(size-10)} &&
			s.FromPeers == relay.Traffic{Packets: 2 * each, Bytes: 2 * each * size}
	})
}

// The kernel puts a request between data of the same length.
func TestRequestsInTheMiddleOfABurstAreAnswered(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	conn := listenUDP(t)
	c := newClientOn(t, connected{conn, server.Addrs()[0]})
	c.learnNonce()
	c.allocate()
	old, fresh := listenUDP(t), listenUDP(t)
	c.bound(0x4000, old.LocalAddr())
	request := c.request(stun.MethodChannelBind, channelNumber(0x4001), peerAddress(fresh.LocalAddr()))
	size := len(request.Raw)
	var out []byte
	out = append(out, channelData(0x4000, numbered(1, size-4))...)
	out = append(out, request.Raw...)
	// A channel works as soon as the request for it has been sent.
	out = append(out, channelData(0x4001, numbered(2, size-4))...)
	sendBurst(t, conn, out, size, server.Addrs()[0], true)
	for i, peer := range []*net.UDPConn{old, fresh} {
		buffer := make([]byte, 2*size)
		if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != numbered(i+1, size-4) {
			t.Errorf("peer %d gets %q, error %v", i+1, buffer[:n], err)
		}
	}
	response := &stun.Message{Raw: c.read()}
	if err := response.Decode(); err != nil || response.TransactionID != request.TransactionID || response.Type.Class != stun.ClassSuccessResponse {
		t.Errorf("answer %v, error %v", response, err)
	}
}

func TestSocketsThatAreNoneAreRefused(t *testing.T) {
	_, err := relay.Start(relay.Options{Secret: secret, IPv4: loopback, ListenPacket: func(network, address string) (net.PacketConn, error) {
		conn, err := net.ListenPacket(network, address)
		return struct{ net.PacketConn }{conn}, err
	}})
	if err == nil {
		t.Error("the relay starts")
	}
}

// numbered returns a payload of the given size that begins with a number.
func numbered(i, size int) string {
	text := fmt.Sprintf("%09d", i)
	return text + strings.Repeat("x", size-len(text))
}

// sendBurst sends datagrams of the given size, the last one of what is left, in
// one system call or singly.
func sendBurst(t testing.TB, conn *net.UDPConn, b []byte, size int, to netip.AddrPort, together bool) {
	t.Helper()
	if together {
		if _, _, err := conn.WriteMsgUDPAddrPort(b, segmented(size), to); err != nil {
			t.Fatal(err)
		}
		return
	}
	for len(b) > 0 {
		n := min(size, len(b))
		if _, err := conn.WriteToUDPAddrPort(b[:n], to); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
}

// segmented returns the control message of udp(7) that makes the kernel cut
// what is sent into datagrams.
func segmented(size int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	hdr := unix.Cmsghdr{Level: unix.SOL_UDP, Type: unix.UDP_SEGMENT}
	hdr.SetLen(unix.CmsgLen(2))
	if _, err := binary.Encode(b, binary.NativeEndian, hdr); err != nil {
		panic(err) // the header has a fixed size
	}
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return b
}
