package resource_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/lab/resource"
)

const megabyte = 1 << 20

func TestTransfersArriveIntact(t *testing.T) {
	server := serve(t)
	at := netip.AddrPortFrom(server.Address(), server.Ports().HTTP)
	for _, size := range []int64{0, 1, 15, 16, 17, megabyte, 5*megabyte + 3} {
		for name, move := range map[string]func(context.Context, resource.Network, netip.AddrPort, int64, uint64) (resource.Transfer, error){
			"download": resource.Download, "upload": resource.Upload,
		} {
			got, err := move(t.Context(), host{}, at, size, 7)
			if err != nil {
				t.Fatalf("%s of %d bytes: %v", name, size, err)
			}
			if !got.Intact() || got.Bytes != size || got.Received != resource.ContentSHA256(size, 7) || got.Elapsed <= 0 {
				t.Errorf("%s of %d bytes: %+v", name, size, got)
			}
		}
	}
	if requests := server.Stats().Requests; requests != 7*3 {
		t.Errorf("%d requests, want 21", requests)
	}
}

func TestTransferThatDiffersIsNotIntact(t *testing.T) {
	for _, transfer := range []resource.Transfer{{}, {Sent: "a"}, {Received: "a"}, {Sent: "a", Received: "b"}} {
		if transfer.Intact() {
			t.Errorf("%+v counts as intact", transfer)
		}
	}
}

func TestContentDependsOnSeedAndNotOnReads(t *testing.T) {
	whole, err := io.ReadAll(resource.Content(100_000, 1))
	if err != nil {
		t.Fatal(err)
	}
	var pieces bytes.Buffer
	if _, err := io.CopyBuffer(&pieces, struct{ io.Reader }{resource.Content(100_000, 1)}, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(whole, pieces.Bytes()) {
		t.Error("content depends on the size of the reads")
	}
	other, _ := io.ReadAll(resource.Content(100_000, 2))
	if bytes.Equal(whole, other) {
		t.Error("two seeds give the same content")
	}
	sum := sha256.Sum256(whole)
	if got := resource.ContentSHA256(100_000, 1); got != hex.EncodeToString(sum[:]) {
		t.Errorf("checksum %s is not that of the content", got)
	}
}

func TestHTTPRefusesWhatItCannotServe(t *testing.T) {
	server := serve(t)
	base := fmt.Sprintf("http://%v", netip.AddrPortFrom(server.Address(), server.Ports().HTTP))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, test := range []struct {
		name, method, path string
		status             int
	}{
		{"no size", "GET", "/file", 400},
		{"size below zero", "GET", "/file?size=-1", 400},
		{"size beyond the limit", "GET", "/file?size=1099511627777", 400},
		{"seed that is no number", "GET", "/file?size=1&seed=x", 400},
		{"checksum without size", "GET", "/file/sha256", 400},
		{"unknown path", "GET", "/elsewhere", 404},
		{"upload by the wrong method", "DELETE", "/upload", 405},
		{"upload of nothing", "POST", "/upload", 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), test.method, base+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != test.status {
				t.Errorf("status %d, want %d", response.StatusCode, test.status)
			}
		})
	}
}

func TestTCPEchoReturnsTheStream(t *testing.T) {
	server := serve(t)
	conn, err := net.Dial("tcp", netip.AddrPortFrom(server.Address(), server.Ports().TCPEcho).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, resource.Content(megabyte, 3))
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	want, _ := io.ReadAll(resource.Content(megabyte, 3))
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes come back of %d, error %v", len(got), len(want), err)
	}
	if n := server.Stats().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestTCPThroughputCountsWhatArrived(t *testing.T) {
	server := serve(t)
	ports := map[resource.Direction]uint16{
		resource.ToResource: server.Ports().Sink, resource.FromResource: server.Ports().Source,
	}
	for direction, port := range ports {
		at := netip.AddrPortFrom(server.Address(), port)
		const asked = 200 * time.Millisecond
		begin := time.Now()
		got, err := resource.TCPThroughput(t.Context(), host{}, at, direction, asked)
		if err != nil || got.BitsPerSecond() < 10e6 {
			t.Errorf("%v: %.0f bit/s over loopback, error %v", direction, got.BitsPerSecond(), err)
		}
		if took := time.Since(begin); got.Elapsed < asked || got.Elapsed > took {
			t.Errorf("%v: %v of %v were the stream's, which was to last %v", direction, got.Elapsed, took, asked)
		}
		t.Logf("%v: %.1f Gbit/s", direction, got.BitsPerSecond()/1e9)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := resource.TCPThroughput(ctx, host{}, at, direction, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v past the deadline: %v", direction, err)
		}
		cancel()
	}
}

func TestThroughputFailsWithoutServer(t *testing.T) {
	server := serve(t)
	ports := server.Ports()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(server.Address(), ports.Sink)
	if _, err := resource.TCPThroughput(t.Context(), host{}, at, resource.ToResource, time.Second); err == nil {
		t.Error("no error")
	}
	at = netip.AddrPortFrom(server.Address(), ports.HTTP)
	if _, err := resource.Download(t.Context(), host{}, at, 1, 1); err == nil {
		t.Error("no error")
	}
	if _, err := resource.Upload(t.Context(), host{}, at, 1, 1); err == nil {
		t.Error("no error")
	}
}

func TestCloseEndsConnectionsInTheMiddle(t *testing.T) {
	server := serve(t)
	conn, err := net.Dial("tcp", netip.AddrPortFrom(server.Address(), server.Ports().Source).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, megabyte)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("connection survives its server")
	}
}

func TestServeThatFailsHalfwayLeavesNothing(t *testing.T) {
	_, err := resource.Serve(broken{}, netip.MustParseAddr("127.0.0.1"), resource.Ports{}, slog.New(slog.DiscardHandler))
	if !errors.Is(err, errNoSocket) {
		t.Errorf("error %v", err)
	}
}

func BenchmarkContent(b *testing.B) {
	buffer := make([]byte, 256<<10)
	stream := resource.Content(1<<62, 1)
	b.SetBytes(int64(len(buffer)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := stream.Read(buffer); err != nil {
			b.Fatal(err)
		}
	}
}

func serve(t testing.TB) *resource.Server {
	t.Helper()
	server, err := resource.Serve(host{}, netip.MustParseAddr("127.0.0.1"), resource.Ports{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}
