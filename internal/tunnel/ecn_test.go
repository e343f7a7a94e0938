package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/device"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/transport"
)

const (
	ect1 = 0b01
	ect0 = 0b10
)

// withTOS returns a copy of the packet with these bits of TOS or traffic class.
func withTOS(pkt []byte, tos byte) []byte {
	pkt = bytes.Clone(pkt)
	if pkt[0]>>4 == 6 {
		pkt[0], pkt[1] = pkt[0]&0xf0|tos>>4, tos<<4|pkt[1]&0x0f
		return pkt
	}
	pkt[1] = tos
	clear(pkt[10:12])
	binary.BigEndian.PutUint16(pkt[10:], packet.Sum(0).Bytes(pkt[:20]).Checksum())
	return pkt
}

func tosOf(pkt []byte) byte {
	if pkt[0]>>4 == 6 {
		return pkt[0]<<4 | pkt[1]>>4
	}
	return pkt[1]
}

func TestCongestionIsMarkedOnPacketsThatTakePart(t *testing.T) {
	for _, c := range []struct {
		name       string
		from, want byte
	}{
		{"who takes no part is left alone", 0, 0},
		{"the second codepoint becomes CE", ect1, ecnCE},
		{"the first codepoint becomes CE", ect0, ecnCE},
		{"CE stays", ecnCE, ecnCE},
		{"the other bits stay without ECN", 0xfc, 0xfc},
		{"the other bits stay with the second codepoint", 0xfc | ect1, 0xff},
		{"the other bits stay with the first codepoint", 0x54 | ect0, 0x57},
	} {
		t.Run(c.name, func(t *testing.T) {
			for port := range uint16(300) { // sums of all kinds
				p4, p6 := udp(address4(1), server4, port, 1000, 20), udp(address6(1), server6, port, 1000, 20)
				binary.BigEndian.PutUint16(p4[4:], port*219) // identification
				binary.BigEndian.PutUint16(p6[2:], port*219) // flow label
				bufs := decrypted(withTOS(p4, c.from), withTOS(p6, c.from))
				markCongested(bufs, engineOffset)
				checkKept(t, bufs, [][]byte{withTOS(p4, c.want), withTOS(p6, c.want)})
			}
		})
	}
}

func TestPacketsToClientsExposeTheirECNField(t *testing.T) {
	tun := plainTunnel()
	connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
	var packets [][]byte
	for tos := range 256 {
		packets = append(packets,
			withTOS(udp(server4, address4(1), 1000, 1, 9), byte(tos)),
			withTOS(udp(server6, address6(1), 1000, 1, 9), byte(tos)),
			udp(other4, address4(1), 1000, 1, 9)) // dropped
	}
	for len(packets) > 0 {
		batch := packets[:min(batchSize, len(packets))]
		packets = packets[len(batch):]
		slab, descriptors := fromTUN(batch...)
		for i := range slab[:descriptors[0].Offset] {
			slab[i] = 0xff // what an earlier batch has left
		}
		n := tun.toClient(slab, descriptors, make([]addressee, batchSize), clock.UnixNano())
		if n != len(batch)-len(batch)/3 && n != len(batch)-len(batch)/3-1 {
			t.Fatalf("%d of %d packets kept", n, len(batch))
		}
		for _, p := range descriptors[:n] {
			got, want := slab[p.Offset-engineOffset-transport.ECNAhead], tosOf(slab[p.Offset:])&3
			if got != want {
				t.Fatalf("field is %b, want %b", got, want)
			}
		}
	}
}

func TestPacketsOfTheGatewayAreNotECT(t *testing.T) {
	tun := plainTunnel()
	for i := range 64 { // marks are random
		c := connect(t, tun, configOf(i+1, newHeardBy()))
		if !tun.inject.pushBytes(c, packettest.Ping(server4, address4(i+1), 1, nil)) {
			t.Fatal("refused")
		}
		tun.part(c)
		if c.mark.Load() == 0 {
			t.Fatal("a goodbye cannot be told from other messages")
		}
	}
	slab, descriptors := fromTUN(make([][]byte, batchSize)...)
	slab = append(slab, make([]byte, slabSize-len(slab))...)
	for i := range slab {
		slab[i] = 0xff
	}
	n, err := tun.inject.Read(slab, descriptors)
	if n != batchSize || err != nil {
		t.Fatal(n, err)
	}
	for i, p := range descriptors {
		if field := slab[p.Offset-engineOffset-transport.ECNAhead] & 3; field != 0 {
			t.Errorf("packet %d of %d bytes has field %b", i, p.Size, field)
		}
	}
}

// router forwards datagrams between one client and the gateway. It can mark
// what goes to the gateway and remembers the mark of what comes from there.
type router struct {
	outside, inside *net.UDPConn
	mark            atomic.Int32
	fromGateway     chan datagram
}

type datagram struct {
	size int
	tos  byte
}

func newRouter(t *testing.T, r *rig) *router {
	t.Helper()
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	x := &router{outside: listen(), inside: listen(), fromGateway: make(chan datagram, 1024)}
	raw, err := x.inside.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	gateway := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.sockets.LocalPort(transport.IPv4))
	clients := make(chan netip.AddrPort, 1)
	var ended sync.WaitGroup
	ended.Go(func() {
		b := make([]byte, 2000)
		for first := true; ; first = false {
			n, from, err := x.outside.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if first {
				clients <- from
			}
			if _, _, err := x.inside.WriteMsgUDPAddrPort(b[:n], tosMessage(x.mark.Load()), gateway); err != nil {
				return
			}
		}
	})
	ended.Go(func() {
		b, oob := make([]byte, 2000), make([]byte, 64)
		var client netip.AddrPort
		for {
			n, m, _, _, err := x.inside.ReadMsgUDPAddrPort(b, oob)
			if err != nil {
				return
			}
			if !client.IsValid() {
				client = <-clients
			}
			d := datagram{size: n}
			if c, err := unix.ParseSocketControlMessage(oob[:m]); err == nil && len(c) == 1 {
				d.tos = c[0].Data[0]
			}
			x.fromGateway <- d
			if _, err := x.outside.WriteToUDPAddrPort(b[:n], client); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		x.outside.Close()
		x.inside.Close()
		ended.Wait()
	})
	return x
}

// nextData returns the next datagram from the gateway that carries a packet.
func (x *router) nextData(t *testing.T) datagram {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case d := <-x.fromGateway:
			if d.size > device.MessageKeepaliveSize && d.size != device.MessageResponseSize {
				return d
			}
		case <-deadline:
			t.Fatal("no datagram")
		}
	}
}

func tosMessage(tos int32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(4)))
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_IP)
	binary.NativeEndian.PutUint32(b[12:], unix.IP_TOS)
	binary.NativeEndian.PutUint32(b[16:], uint32(tos))
	return b
}

// TestECNThroughTheEngine follows the field both ways through encryption and
// decryption.
func TestECNThroughTheEngine(t *testing.T) {
	r := newRig(t)
	x := newRouter(t, r)
	m := r.join(t, 1, usualGrants()...)
	if err := m.device.IpcSet(fmt.Sprintf("public_key=%x\nendpoint=%v\n",
		r.key.PublicKey().Bytes(), x.outside.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	r.exchange(t, m, 1)
	for id, c := range []struct{ outer, inner, want byte }{
		{0, 0, 0}, {ecnCE, 0, 0}, {ecnCE, ect0, ecnCE}, {0, ect0, ect0}, {ecnCE, ect1, ecnCE},
		{ect0, ect1, ect1}, {ect1, ect0, ect0}, {ect0, 0, 0}, {0, ecnCE, ecnCE}, {ecnCE, ecnCE, ecnCE}, {ect1, ect1, ect1},
	} {
		x.mark.Store(int32(c.outer))
		for _, pkt := range [][]byte{m.request(uint16(id)), udp(address6(1), server6, uint16(id), 1000, 20)} {
			m.tun.send(t, withTOS(pkt, c.inner))
			r.tun.expect(t, withTOS(pkt, c.want))
		}
	}
	x.nextData(t) // of the first exchange
	for id, tos := range []byte{0, ect1, ect0, ecnCE, 0xb8, 0xb8 | ect0, 0} {
		for _, pkt := range [][]byte{m.reply(uint16(id)), udp(server6, address6(1), 1000, uint16(id), 20)} {
			r.tun.send(t, withTOS(pkt, tos))
			m.tun.expect(t, withTOS(pkt, tos))
			if d := x.nextData(t); d.tos != tos&3 {
				t.Errorf("datagram of %d bytes for TOS %#x has %#x", d.size, tos, d.tos)
			}
		}
	}
	wantDrops(t, "client", m.client.Drops(), map[drop.Reason]uint64{})
}
