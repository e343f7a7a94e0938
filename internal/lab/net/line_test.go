package labnet_test

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/natbox"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

func TestALineAddsItsLatencyInEachDirection(t *testing.T) {
	const latency = 40 * time.Millisecond
	for _, kind := range []labnet.NATKind{labnet.NoNAT, labnet.PortRestricted, labnet.DoubleNAT} {
		t.Run(kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: kind, ClientLine: natbox.Line{Latency: latency}})
			for _, address := range []netip.Addr{d.Portal.IPv4, d.Portal.IPv6} {
				reply, err := ping(t, d.Clients[0].Host, address, arrival)
				if err != nil || reply.Error != nil {
					t.Fatalf("ping %v: error %v, ICMP %v", address, err, reply.Error)
				}
				if reply.RTT < 2*latency {
					t.Errorf("round trip to %v took %v", address, reply.RTT)
				}
			}
			// The other site's line is not concerned.
			if reply, err := ping(t, d.Gateway.Host, d.Portal.IPv4, arrival); err != nil || reply.RTT > 2*latency {
				t.Errorf("the gateway's round trip took %v, error %v", reply.RTT, err)
			}
		})
	}
}

func TestLinesBecomeWorseAndBetter(t *testing.T) {
	d := deploy(t, labnet.Options{ClientNAT: labnet.PortRestricted, Adjustable: true})
	site := d.Clients[0]
	inside, outside := listen(t, site.Host, site.Host.IPv4), listen(t, d.Portal, d.Portal.IPv4)
	set := func(line natbox.Line) {
		t.Helper()
		if err := site.SetLine(line); err != nil {
			t.Fatal(err)
		}
	}
	send(t, inside, outside)
	mapping := receive(t, outside, arrival)
	set(natbox.Line{Loss: 1})
	sendTo(t, outside, mapping)
	expectSilence(t, inside, "a datagram through a dead line")
	send(t, inside, outside)
	expectSilence(t, outside, "a datagram through a dead line")
	set(natbox.Line{})
	sendTo(t, outside, mapping)
	receive(t, inside, arrival)

	if err := site.SetLine(natbox.Line{Loss: 2}); err == nil {
		t.Error("an impossible line is accepted")
	}
	if err := d.Gateway.SetLine(natbox.Line{MTU: 1300}); err != nil {
		t.Errorf("MTU: %v", err)
	}
	plain := deploy(t, labnet.Options{ClientNAT: labnet.PortRestricted})
	if err := plain.Clients[0].SetLine(natbox.Line{Loss: 0.5}); !errors.Is(err, labnet.ErrNotAdjustable) {
		t.Errorf("a line of the kernel's is shaped: %v", err)
	}
}

func TestALineReordersAndLoses(t *testing.T) {
	const n = 400
	d := deploy(t, labnet.Options{
		ClientNAT: labnet.PortRestricted, ClientLine: natbox.Line{Latency: 20 * time.Millisecond, Loss: 0.1, Reorder: 0.1},
	})
	site := d.Clients[0]
	inside, outside := listen(t, site.Host, site.Host.IPv4), listen(t, d.Portal, d.Portal.IPv4)
	if err := outside.SetReadBuffer(1 << 21); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := inside.WriteToUDPAddrPort([]byte{byte(i >> 8), byte(i)}, local(outside)); err != nil {
			t.Fatal(err)
		}
	}
	var order []int
	for {
		b := make([]byte, 8)
		_ = outside.SetReadDeadline(time.Now().Add(silence))
		if _, _, err := outside.ReadFromUDPAddrPort(b); err != nil {
			break
		}
		order = append(order, int(b[0])<<8|int(b[1]))
	}
	if lost := n - len(order); lost < n/25 || lost > n/4 {
		t.Errorf("%d of %d are lost, want about a tenth", lost, n)
	}
	if slices.IsSorted(order) {
		t.Error("the order is kept")
	}
}

// What is too long is refused with the MTU to the sender, and what may be
// fragmented arrives, whoever translates.
func TestPathsTellTheirMTU(t *testing.T) {
	const mtu, size = 1300, 1400
	for _, c := range []struct {
		kind       labnet.NATKind
		adjustable bool
	}{
		{labnet.NoNAT, false}, {labnet.NoNAT, true}, {labnet.PortRestricted, false}, {labnet.PortRestricted, true}, {labnet.Symmetric, false},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: c.kind, Adjustable: c.adjustable, ClientLine: natbox.Line{MTU: mtu}})
			site := d.Clients[0]
			for _, ends := range [][2]netip.Addr{{site.Host.IPv4, d.Portal.IPv4}, {site.Host.IPv6, d.Portal.IPv6}} {
				inside, outside := listen(t, site.Host, ends[0]), listen(t, d.Portal, ends[1])
				send(t, inside, outside)
				back := receive(t, outside, arrival)
				for _, way := range []struct {
					from, to *net.UDPConn
					at       netip.AddrPort
				}{{inside, outside, local(outside)}, {outside, inside, back}} {
					forbidFragments(t, way.from, true)
					eventually(t, "the sender is not told the MTU", func() bool {
						_, err := way.from.WriteToUDPAddrPort(make([]byte, size), way.at)
						return errors.Is(err, unix.EMSGSIZE)
					})
					forbidFragments(t, way.from, false)
					if _, err := way.from.WriteToUDPAddrPort(make([]byte, size), way.at); err != nil {
						t.Fatal(err)
					}
					if got := receiveSize(t, way.to); got != size {
						t.Errorf("%d bytes arrive, want %d", got, size)
					}
				}
			}
		})
	}
}

// forbidFragments makes the kernel refuse datagrams beyond the path's MTU, or
// cut them to pieces.
func forbidFragments(t *testing.T, conn *net.UDPConn, forbid bool) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	mode4, mode6 := unix.IP_PMTUDISC_WANT, unix.IPV6_PMTUDISC_WANT
	if forbid {
		mode4, mode6 = unix.IP_PMTUDISC_DO, unix.IPV6_PMTUDISC_DO
	}
	_ = raw.Control(func(fd uintptr) {
		if local(conn).Addr().Is4() {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode4)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode6)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func receiveSize(t *testing.T, conn *net.UDPConn) int {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(arrival))
	n, _, err := conn.ReadFromUDPAddrPort(make([]byte, 4096))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// BenchmarkTCP measures what one stream gets through a router.
func BenchmarkTCP(b *testing.B) {
	if errIsolation != nil {
		b.Skip(errIsolation)
	}
	for _, c := range []struct {
		name    string
		options labnet.Options
	}{
		{"kernel", labnet.Options{ClientNAT: labnet.PortRestricted}},
		{"box", labnet.Options{ClientNAT: labnet.Symmetric}},
		{"box, 10 ms", labnet.Options{ClientNAT: labnet.Symmetric, ClientLine: natbox.Line{Latency: 10 * time.Millisecond}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			d, err := labnet.NewDeployment(c.options)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			server, err := resource.Serve(d.Portal, d.Portal.IPv4, resource.DefaultPorts, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer server.Close()
			for b.Loop() {
				stream, err := resource.TCPThroughput(b.Context(), d.Clients[0].Host,
					netip.AddrPortFrom(d.Portal.IPv4, resource.DefaultPorts.Sink), resource.ToResource, time.Second)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(stream.BitsPerSecond()/1e6, "Mbit/s")
			}
		})
	}
}
