package resource_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/lab/resource"
)

func TestUDPEchoKeepsItsPaceAndLosesNothing(t *testing.T) {
	server := serve(t)
	at := netip.AddrPortFrom(server.Address(), server.Ports().UDPEcho)
	load := resource.EchoLoad{BitsPerSecond: 50e6, Duration: 500 * time.Millisecond, Size: 1200}
	report, err := resource.UDPEcho(t.Context(), host{}, at, load)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", report)
	want := int(load.BitsPerSecond * load.Duration.Seconds() / 8 / float64(load.Size))
	if report.Sent < want-1 || report.Sent > want+1 {
		t.Errorf("%d datagrams sent, want %d", report.Sent, want)
	}
	if report.Lost != 0 || report.Received != report.Sent || report.Repeated != 0 || report.Foreign != 0 {
		t.Errorf("loss on the loopback: %+v", report)
	}
	if report.Elapsed < 9*load.Duration/10 {
		t.Errorf("sent in %v, planned %v", report.Elapsed, load.Duration)
	}
	if report.Min <= 0 || report.Min > report.Median || report.Median > report.P99 || report.P99 > report.Max {
		t.Errorf("round-trip times out of order: %+v", report)
	}
	if echoed := server.Stats().Echoed; echoed != uint64(report.Sent) {
		t.Errorf("server counts %d, client %d", echoed, report.Sent)
	}
}

func TestUDPEchoAccountsForEachDatagram(t *testing.T) {
	// A server that misbehaves in every way: of ten datagrams it keeps one,
	// spoils one, shortens one and repeats one.
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	defer func() { conn.Close(); <-ended }()
	go func() {
		defer close(ended)
		buffer := make([]byte, 2048)
		for i := 0; ; i++ {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			switch i % 10 {
			case 0:
				continue
			case 1:
				buffer[20] ^= 1
			case 2:
				n--
			case 3:
				_, _ = conn.WriteToUDPAddrPort(buffer[:n], from)
			}
			_, _ = conn.WriteToUDPAddrPort(buffer[:n], from)
		}
	}()

	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	load := resource.EchoLoad{BitsPerSecond: 1e6, Duration: 80 * time.Millisecond, Size: 100, Patience: 300 * time.Millisecond}
	report, err := resource.UDPEcho(t.Context(), host{}, at, load)
	if err != nil {
		t.Fatal(err)
	}
	if report.Sent != 100 || report.Received != 70 || report.Lost != 30 || report.Foreign != 20 || report.Repeated != 10 {
		t.Errorf("%+v", report)
	}
}

func TestUDPEchoOfASilentServerIsAllLoss(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	load := resource.EchoLoad{BitsPerSecond: 1e6, Duration: 50 * time.Millisecond, Size: 125, Patience: 50 * time.Millisecond}
	report, err := resource.UDPEcho(t.Context(), host{}, at, load)
	if err != nil || report.Sent != 50 || report.Lost != 50 || report.Max != 0 {
		t.Errorf("silent: %+v, error %v", report, err)
	}
	conn.Close()
	report, err = resource.UDPEcho(t.Context(), host{}, at, load)
	if err != nil || report.Lost != 50 {
		t.Errorf("closed port: %+v, error %v", report, err)
	}
}

func TestUDPEchoEndsWithItsContext(t *testing.T) {
	server := serve(t)
	at := netip.AddrPortFrom(server.Address(), server.Ports().UDPEcho)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	load := resource.EchoLoad{BitsPerSecond: 1e5, Duration: time.Minute, Size: 100}
	if _, err := resource.UDPEcho(ctx, host{}, at, load); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestUDPEchoRefusesImpossibleLoads(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:7")
	for name, load := range map[string]resource.EchoLoad{
		"size too small": {BitsPerSecond: 1e6, Duration: time.Second, Size: 23},
		"size too large": {BitsPerSecond: 1e6, Duration: time.Second, Size: 65508},
		"no rate":        {Duration: time.Second, Size: 100},
		"no time":        {BitsPerSecond: 1e6, Size: 100},
		"too many":       {BitsPerSecond: 1e12, Duration: time.Hour, Size: 100},
	} {
		if _, err := resource.UDPEcho(t.Context(), host{}, at, load); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func BenchmarkUDPEchoServer(b *testing.B) {
	server := serve(b)
	conn, err := net.Dial("udp", netip.AddrPortFrom(server.Address(), server.Ports().UDPEcho).String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	packet := make([]byte, 1200)
	b.SetBytes(32 * int64(len(packet)))
	b.ReportAllocs()
	for b.Loop() {
		// Windows of 32 keep both ends busy without loss.
		for range 32 {
			if _, err := conn.Write(packet); err != nil {
				b.Fatal(err)
			}
		}
		for range 32 {
			if _, err := conn.Read(packet); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(32*float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}
