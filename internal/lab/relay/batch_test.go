package relay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// outlet is a transmitter that keeps count.
type outlet struct {
	*transmitter
	messages, datagrams, payload, refused int
}

func newOutlet() *outlet {
	o := new(outlet)
	o.transmitter = newTransmitter(
		func(datagrams, payload int) { o.messages++; o.datagrams += datagrams; o.payload += payload },
		func(datagrams int) { o.refused += datagrams },
	)
	return o
}

func TestTransmitterPutsEqualDatagramsTogether(t *testing.T) {
	for _, test := range []struct {
		name     string
		sizes    []int
		channel  uint16
		messages int
	}{
		{"one", []int{100}, 0, 1},
		{"equal ones", []int{100, 100, 100}, 0, 1},
		{"a shorter one ends the message", []int{100, 100, 60, 100}, 0, 2},
		{"a longer one begins another", []int{100, 101, 101}, 0, 2},
		{"an empty one stands alone", []int{100, 0, 100}, 0, 3},
		{"empty ones only", []int{0, 0}, 0, 2},
		{"no more than the kernel takes", slices.Repeat([]int{10}, 2*maxSegments+1), 0, 3},
		{"no more than a packet holds", slices.Repeat([]int{1280}, 51), 0, 2},
		{"framed", []int{100, 100, 60, 100, 0}, 0x4000, 2},
		{"empty and framed", []int{0, 0}, 0x4000, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			from, to := pair(t)
			in, err := newReceiver(to)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := rawConn(from)
			if err != nil {
				t.Fatal(err)
			}
			out := newOutlet()
			address := newSockaddr(addrPortOf(to.LocalAddr()), false)
			var want [][]byte
			total := 0
			for i, size := range test.sizes {
				payload := bytes.Repeat([]byte{byte(i)}, size)
				out.add(raw, address, test.channel, payload)
				if test.channel != 0 {
					payload = append([]byte{0x40, 0, byte(size >> 8), byte(size)}, payload...)
				}
				want = append(want, payload)
				total += size
			}
			out.flush()
			if out.messages != test.messages || out.datagrams != len(want) || out.payload != total || out.refused != 0 {
				t.Errorf("%d messages of %d datagrams, %d bytes, %d refused; want %d of %d, %d, 0",
					out.messages, out.datagrams, out.payload, out.refused, test.messages, len(want), total)
			}
			wantDatagrams(t, in, addrPortOf(from.LocalAddr()), want)
		})
	}
}

func TestTransmitterKeepsDestinationsApart(t *testing.T) {
	from, one := pair(t)
	other := listen(t)
	raw, err := rawConn(from)
	if err != nil {
		t.Fatal(err)
	}
	out := newOutlet()
	to := []*sockaddr{newSockaddr(addrPortOf(one.LocalAddr()), false), newSockaddr(addrPortOf(other.LocalAddr()), false)}
	for i := range 6 {
		out.add(raw, to[i/2%2], 0, []byte{byte(i)})
	}
	out.flush()
	for i, want := range [][][]byte{{{0}, {1}, {4}, {5}}, {{2}, {3}}} {
		in, err := newReceiver([]net.PacketConn{one, other}[i])
		if err != nil {
			t.Fatal(err)
		}
		wantDatagrams(t, in, addrPortOf(from.LocalAddr()), want)
	}
	if out.messages != 3 {
		t.Errorf("%d messages", out.messages)
	}
}

// The kernel refuses to segment for a socket without checksums, as it does for
// datagrams that do not fit the route.
func TestTransmitterSendsSinglyWhatIsRefusedTogether(t *testing.T) {
	for _, channel := range []uint16{0, 0x4000} {
		from, to := pair(t)
		in, err := newReceiver(to)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := rawConn(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); err != nil {
			t.Fatal(err)
		}
		out := newOutlet()
		address := newSockaddr(addrPortOf(to.LocalAddr()), false)
		var want [][]byte
		for _, payload := range []string{"aaaa", "bbbb", "cc"} {
			out.add(raw, address, channel, []byte(payload))
			frame := []byte(payload)
			if channel != 0 {
				frame = append([]byte{0x40, 0, 0, byte(len(payload))}, payload...)
			}
			want = append(want, frame)
		}
		out.flush()
		if out.messages != 3 || out.datagrams != 3 || out.payload != 10 || out.refused != 0 {
			t.Errorf("channel %x: %+v", channel, out)
		}
		wantDatagrams(t, in, addrPortOf(from.LocalAddr()), want)
	}
}

func TestTransmitterCountsWhatIsRefused(t *testing.T) {
	from, to := pair(t)
	raw, err := rawConn(from)
	if err != nil {
		t.Fatal(err)
	}
	out := newOutlet()
	out.add(raw, newSockaddr(netip.MustParseAddrPort("127.0.0.1:0"), false), 0, []byte("to no port"))
	out.flush()
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		out.add(raw, newSockaddr(addrPortOf(to.LocalAddr()), false), 0, []byte("closed"))
	}
	out.flush()
	if out.refused != 3 || out.datagrams != 0 {
		t.Errorf("%d refused, %d sent", out.refused, out.datagrams)
	}
}

func TestTheDataPathAllocatesNothing(t *testing.T) {
	from, to := pair(t)
	in, err := newReceiver(to)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := rawConn(from)
	if err != nil {
		t.Fatal(err)
	}
	out := newOutlet()
	address := newSockaddr(addrPortOf(to.LocalAddr()), false)
	payload := make([]byte, 1000)
	if n := testing.AllocsPerRun(100, func() {
		out.add(raw, address, 0x4000, payload)
		out.add(raw, address, 0x4000, payload)
		out.flush()
		if err := in.receive(); err != nil {
			t.Fatal(err)
		}
		for {
			if _, _, ok := in.take(); !ok {
				break
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestReceiverEndsWithItsSocket(t *testing.T) {
	_, to := pair(t)
	in, err := newReceiver(to)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- in.receive() }()
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("no error")
	}
	if _, err := newReceiver(silent{}); err == nil {
		t.Error("what is no socket is received from")
	}
}

func TestAddressesOfBothFamilies(t *testing.T) {
	for _, test := range []struct {
		address string
		six     bool
	}{{"192.0.2.1:3478", false}, {"192.0.2.1:3478", true}, {"[2001:db8::1]:49152", true}} {
		address := netip.MustParseAddrPort(test.address)
		raw := newSockaddr(address, test.six)
		var name unix.RawSockaddrInet6
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&name)), unsafe.Sizeof(name)), raw.raw[:raw.n])
		if got := addressOf(&name); got != address {
			t.Errorf("%v becomes %v", address, got)
		}
	}
}

func TestANonceIsGoodForTenThousandRequests(t *testing.T) {
	client := netip.MustParseAddrPort("192.0.2.1:1")
	message := stun.MustBuild(stun.NewNonce("nonce"))
	var n nonces
	if n.use(client, message) {
		t.Error("a nonce is good before it is issued")
	}
	n.issued(client, message)
	for i := range nonceUses {
		if !n.use(client, message) {
			t.Fatalf("refused after %d requests", i)
		}
	}
	if n.use(client, message) {
		t.Error("good for one request more")
	}
	n.issued(client, stun.MustBuild(stun.NewNonce("another")))
	if n.use(client, message) || !n.use(client, stun.MustBuild(stun.NewNonce("another"))) {
		t.Error("not the latest nonce is good")
	}
	if n.use(client, stun.MustBuild()) {
		t.Error("a request without nonce uses one")
	}
}

func TestNoncesAreBounded(t *testing.T) {
	message := stun.MustBuild(stun.NewNonce("nonce"))
	var n nonces
	for i := range maxNonces + 1 {
		n.issued(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1), message)
	}
	if len(n.valid) != 1 {
		t.Errorf("%d nonces", len(n.valid))
	}
}

// wantDatagrams receives until as many datagrams as wanted have come.
func wantDatagrams(t *testing.T, in *receiver, from netip.AddrPort, want [][]byte) {
	t.Helper()
	for i := 0; i < len(want); {
		if err := in.receive(); err != nil {
			t.Fatalf("after %d of %d datagrams: %v", i, len(want), err)
		}
		for {
			b, sender, ok := in.take()
			if !ok {
				break
			}
			if i == len(want) || !bytes.Equal(b, want[i]) || sender != from {
				t.Fatalf("datagram %d is %s from %v", i, abridged(b), sender)
			}
			i++
		}
	}
}

func abridged(b []byte) string { return fmt.Sprintf("%x (%d bytes)", b[:min(len(b), 16)], len(b)) }

// pair returns two sockets whose reads end some time.
func pair(t *testing.T) (from, to *net.UDPConn) {
	t.Helper()
	return listen(t), listen(t)
}

func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	enlarge(conn)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}
