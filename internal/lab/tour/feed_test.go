package tour

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firezone-gateway/internal/lab/resource"
)

const (
	feedRate   = 1e6      // bytes per second
	feedPiece  = 16 << 10 // bytes
	feedWindow = 64 << 10 // bytes that may wait in the receiver's kernel
	feedSeed   = 7

	// stallLimit is how long a download may stand still while what happens
	// concerns the portal alone. A machine with other work stops a process for a
	// second or two now and then; a client that has to shake hands again needs
	// five.
	stallLimit = 3 * time.Second
)

// feed is a download through the tunnel that goes on until it is stopped, slow
// enough to leave the machine its time, and with so small a window that it
// stands still when the tunnel does.
type feed struct {
	conn net.Conn
	stop chan struct{}
	once sync.Once
	done chan struct{}

	arrived atomic.Int64 // bytes

	// What came of it, once done is closed.
	bytes   int64
	begin   time.Time
	elapsed time.Duration
	sum     hash.Hash
	stall   time.Duration // the longest wait for one piece
	stallAt time.Duration // after the beginning
	lag     time.Duration // the longest time that a sleep of ours took too long
	err     error
}

// startFeed begins a download by the main client.
func startFeed(t *testing.T, w *World) *feed {
	t.Helper()
	at := files4.at(resource.DefaultPorts.HTTP)
	conn, err := w.host(0).DialContext(t.Context(), "tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).SetReadBuffer(feedWindow); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /file?size=%d&seed=%d HTTP/1.1\r\nHost: %s\r\n\r\n", int64(1)<<40, feedSeed, at); err != nil {
		t.Fatal(err)
	}
	f := &feed{conn: conn, stop: make(chan struct{}), done: make(chan struct{}), sum: sha256.New(), begin: time.Now()}
	go func() {
		defer close(f.done)
		f.err = f.run()
		f.elapsed = time.Since(f.begin)
	}()
	t.Cleanup(func() {
		f.end()
		conn.Close()
	})
	return f
}

func (f *feed) run() error {
	response, err := http.ReadResponse(bufio.NewReader(f.conn), nil)
	if err != nil {
		return err
	}
	piece := make([]byte, feedPiece)
	for {
		select {
		case <-f.stop:
			return nil
		default:
		}
		begin := time.Now()
		n, err := io.ReadFull(response.Body, piece)
		f.sum.Write(piece[:n])
		f.bytes += int64(n)
		f.arrived.Store(f.bytes)
		if err != nil {
			return err
		}
		if d := time.Since(begin); d > f.stall {
			f.stall, f.stallAt = d, begin.Sub(f.begin)
		}
		due := f.begin.Add(time.Duration(float64(f.bytes) / feedRate * float64(time.Second)))
		if d := time.Until(due); d > 0 {
			time.Sleep(d)
			f.lag = max(f.lag, time.Since(due))
		}
	}
}

// received returns how many bytes have arrived so far.
func (f *feed) received() int64 { return f.arrived.Load() }

// end stops the download and waits for the piece in progress, in a dead tunnel
// for stepLimit at most.
func (f *feed) end() {
	f.once.Do(func() { close(f.stop) })
	select {
	case <-f.done:
		return
	case <-time.After(stepLimit):
	}
	// Without effect on a closed connection, and run is done then.
	_ = f.conn.SetReadDeadline(time.Now())
	<-f.done
}

// unharmed stops the download and fails the test unless it arrived as it was
// sent and never stood still for longer than limit, what the machine itself was
// late by not counted.
func (f *feed) unharmed(t *testing.T, limit time.Duration) {
	t.Helper()
	f.end()
	t.Logf("download: %.1f MB in %.1f s, longest pause %s after %.1f s, machine late by %s at most",
		float64(f.bytes)/1e6, f.elapsed.Seconds(), milliseconds(f.stall), f.stallAt.Seconds(), milliseconds(f.lag))
	switch {
	case f.err != nil:
		t.Errorf("download ended after %d bytes: %v", f.bytes, f.err)
	case f.bytes == 0:
		t.Error("nothing was downloaded")
	case f.stall-f.lag > limit:
		t.Errorf("download stood still for %s", milliseconds(f.stall))
	}
	if sum := hex.EncodeToString(f.sum.Sum(nil)); sum != resource.ContentSHA256(f.bytes, feedSeed) {
		t.Error("the checksums differ")
	}
}
