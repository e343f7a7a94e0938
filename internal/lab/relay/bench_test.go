package relay_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/relay"
)

const (
	// benchPacket is the payload of each datagram, benchBurst how many of them
	// a sender hands to the kernel at once, benchWindow how many bursts may be
	// on their way: they have to fit into a socket's buffer.
	benchPacket = 1280
	benchBurst  = 48
	benchWindow = 8
	benchLoss   = time.Second
)

// BenchmarkRelay moves datagrams between a client and a peer on the loopback
// interface, both with segmentation offload. CPU time is that of the whole
// process: subtract what the same traffic takes without a relay.
func BenchmarkRelay(b *testing.B) {
	b.Run("to-peer", func(b *testing.B) { benchmark(b, newBenchRig(b), true, false) })
	b.Run("to-client", func(b *testing.B) { benchmark(b, newBenchRig(b), false, true) })
	b.Run("both", func(b *testing.B) { benchmark(b, newBenchRig(b), true, true) })
	b.Run("without-relay", func(b *testing.B) {
		client, peer := benchSocket(b), benchSocket(b)
		r := benchRig{
			toPeer: &flow{from: client, to: peer, address: peer.LocalAddr().(*net.UDPAddr).AddrPort(), burst: make([]byte, benchBurst*benchPacket), size: benchPacket},
		}
		benchmark(b, r, true, false)
	})
}

type benchRig struct{ toPeer, toClient *flow }

func newBenchRig(b *testing.B) benchRig {
	server, err := relay.Start(relay.Options{Secret: secret, IPv4: loopback, ListenPacket: net.ListenPacket, Now: func() time.Time { return startTime }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	conn, peer := benchSocket(b), benchSocket(b)
	c := newClientOn(b, connected{conn, server.Addrs()[0]})
	c.learnNonce()
	relayed := c.allocate()[0]
	if response := c.ask(stun.MethodChannelBind, channel4000, peerAddress(peer.LocalAddr())); response.Type.Class != stun.ClassSuccessResponse {
		b.Fatalf("bind: %v", response)
	}
	_ = conn.SetReadDeadline(time.Time{})
	framed := make([]byte, benchBurst*(benchPacket+4))
	for i := range benchBurst {
		header := framed[i*(benchPacket+4):]
		binary.BigEndian.PutUint16(header, 0x4000)
		binary.BigEndian.PutUint16(header[2:], benchPacket)
	}
	return benchRig{
		toPeer:   &flow{from: conn, to: peer, address: server.Addrs()[0], burst: framed, size: benchPacket + 4},
		toClient: &flow{from: peer, to: conn, address: relayed, burst: make([]byte, benchBurst*benchPacket), size: benchPacket},
	}
}

// flow is the datagrams of one direction.
type flow struct {
	from, to  *net.UDPConn
	address   netip.AddrPort // that the sender sends to
	burst     []byte
	size      int // of each datagram of the burst
	delivered atomic.Int64
}

func benchmark(b *testing.B, r benchRig, toPeer, toClient bool) {
	var flows []*flow
	if toPeer {
		flows = append(flows, r.toPeer)
	}
	if toClient {
		flows = append(flows, r.toClient)
	}
	for _, f := range flows {
		go f.receive()
	}
	before := cpuTime(b)
	var sent int64
	for b.Loop() {
		for _, f := range flows {
			sendBurst(b, f.from, f.burst, f.size, f.address, true)
		}
		sent++
		for _, f := range flows {
			f.await(b, (sent-benchWindow)*benchBurst)
		}
	}
	for _, f := range flows {
		f.await(b, sent*benchBurst)
	}
	gigabits := float64(sent*int64(len(flows))*benchBurst*benchPacket*8) / 1e9
	b.ReportMetric(gigabits*1000/b.Elapsed().Seconds(), "Mbit/s")
	b.ReportMetric((cpuTime(b)-before).Seconds()/gigabits, "CPU-s/Gbit")
	b.ReportMetric(0, "ns/op")
}

// receive counts datagrams until the socket is closed.
func (f *flow) receive() {
	buffer, control := make([]byte, 1<<16), make([]byte, 64)
	for {
		n, oobn, _, _, err := f.to.ReadMsgUDPAddrPort(buffer, control)
		if err != nil {
			return
		}
		size := n
		if oobn >= unix.CmsgLen(4) {
			size = int(binary.NativeEndian.Uint32(control[unix.CmsgLen(0):]))
		}
		f.delivered.Add(int64((n + size - 1) / max(size, 1)))
	}
}

// await waits until so many datagrams have arrived.
func (f *flow) await(b *testing.B, n int64) {
	if f.delivered.Load() >= n {
		return
	}
	for deadline := time.Now().Add(benchLoss); f.delivered.Load() < n; time.Sleep(20 * time.Microsecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d datagrams have arrived", f.delivered.Load(), n)
		}
	}
}

func benchSocket(b *testing.B) *net.UDPConn {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	raw, err := conn.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	}); err != nil {
		b.Fatal(err)
	}
	return conn
}

// connected is an unconnected socket that speaks to one address.
type connected struct {
	*net.UDPConn
	to netip.AddrPort
}

func (c connected) Write(p []byte) (int, error) { return c.WriteToUDPAddrPort(p, c.to) }

func cpuTime(b *testing.B) time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
