package tour

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// nonsense are answers to a login that no portal gives.
var nonsense = []struct {
	name string
	mood mood
}{
	{"bytes that are no HTTP", babble("\x00\xff\x16\x03\x01\x02\x00SSH-2.0-nothing\r\n")},
	{"nothing at all", babble("")},
	{"half a status line", babble("HTTP/1.1 10")},
	{"a page", babble("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<h1>Hello</h1")},
	{"a redirection", babble("HTTP/1.1 302 Found\r\nLocation: http://203.0.113.2:1/\r\nContent-Length: 0\r\n\r\n")},
	{"an upgrade to something else", babble("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")},
	{"an upgrade for somebody else", babble("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n")},
	{"a chunked error without end", babble("HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx")},
	{"a Retry-After in nobody's calendar", babble("HTTP/1.1 503 Busy\r\nRetry-After: -99999999999999999999\r\nContent-Length: 0\r\n\r\n")},
}

// TestTourSurvivesGarbageInThePlaceOfAPortal promises that whatever answers at
// the portal's address, the gateway tries again until it is the portal, and that
// clients notice nothing.
func TestTourSurvivesGarbageInThePlaceOfAPortal(t *testing.T) {
	t.Parallel()
	w, f := behindFront(t, alone(), "ws", portalPort)
	settle(t, w)
	feed := startFeed(t, w)
	for _, c := range nonsense {
		after := w.lastEvent()
		f.become(c.mood)
		begin := f.awaitVisits(t, 1, returnLimit)[0].begin
		f.become(pass)
		e := w.awaitReturn(t, after, returnLimit)
		t.Logf("%s: back %.1f s after the attempt", c.name, e.At.Sub(begin).Seconds())
	}
	feed.unharmed(t, stallLimit)
	w.mustAccess(t, filtered)
	require(t, w, filtersHold, pingAnswered, gatewayLeaves)
}

const (
	// floodSize is more than an honest portal's answer to a login ever has, and
	// less than what would harm the machine. In bytes.
	floodSize = 128 << 20
	// floodBound is what the gateway may keep of it.
	floodBound = 32 << 20
)

// TestTourKeepsItsMemoryWhenFlooded promises that somebody in the portal's place
// who does not stop to answer cannot fill the gateway's memory.
func TestTourKeepsItsMemoryWhenFlooded(t *testing.T) {
	t.Parallel()
	w, f := behindFront(t, alone(), "ws", portalPort)
	settle(t, w)
	line := "X-Nothing: " + strings.Repeat("n", 1000) + "\r\n"
	for _, c := range []struct {
		name string
		mood mood
	}{
		{"a status line without end", flood("HTTP/1.1 500 ", strings.Repeat("no", 32<<10), floodSize)},
		{"headers without end", flood("HTTP/1.1 500 Oops\r\n", line, floodSize)},
		{"a header line without end", flood("HTTP/1.1 500 Oops\r\nX-Nothing: ", strings.Repeat("no", 32<<10), floodSize)},
		{"a body without end", flood("HTTP/1.1 500 Oops\r\n\r\n", strings.Repeat("no", 32<<10), floodSize)},
	} {
		before := w.resetPeak(t)
		after := w.lastEvent()
		f.become(c.mood)
		visit := f.awaitVisits(t, 1, returnLimit)[0]
		f.become(pass)
		w.awaitReturn(t, after, returnLimit)
		usage, err := w.gateway.Usage()
		if err != nil {
			t.Fatal(err)
		}
		grown := max(usage.PeakRSS, before) - before
		t.Logf("%s: given up after %.1f s, peak memory %d MiB more", c.name, visit.end.Sub(visit.begin).Seconds(), grown>>20)
		if grown > floodBound {
			t.Errorf("%s: peak memory grew by %d MiB", c.name, grown>>20)
		}
	}
	require(t, w, pingAnswered, gatewayLeaves)
}

// resetPeak makes the kernel forget the daemon's peak memory, and returns what it
// has in use.
func (w *World) resetPeak(t *testing.T) uint64 {
	t.Helper()
	const peakOnly = "5" // proc_pid_clear_refs(5)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", w.gateway.PID()), []byte(peakOnly), 0); err != nil {
		t.Fatal(err)
	}
	usage, err := w.gateway.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return usage.PeakRSS
}

// TestTourCountsGarbageFrames promises that frames that make no sense neither
// end the connection to the portal nor go unnoticed, and that what makes sense
// after them is done.
func TestTourCountsGarbageFrames(t *testing.T) {
	t.Parallel()
	w, f := behindFront(t, alone(), "ws", portalPort)
	settle(t, w)
	feed := startFeed(t, w)
	after := w.lastEvent()
	const frames = 200 // fewer than the portal queues
	for i := range frames {
		if err := w.portal.PushRaw("", fmt.Appendf(nil, "\x00%d no JSON {[\"", i)); err != nil {
			t.Fatal(err)
		}
	}
	w.mustAccess(t, filtered)
	for _, e := range w.portal.Events(after) {
		if left(e) || joined(e) {
			t.Errorf("the connection ended: %+v", e)
		}
	}
	// Bytes that are no frame cannot be skipped. They end the connection.
	after = w.lastEvent()
	f.inject([]byte("\xff\xff\xff\xff this is no frame"))
	begin := time.Now()
	w.awaitEvent(t, "the connection goes on", after, returnLimit, left)
	e := w.awaitReturn(t, after, returnLimit)
	t.Logf("%d frames skipped on one connection; back %.1f s after bytes that were no frame", frames, e.At.Sub(begin).Seconds())
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, filtersHold, gatewayLeaves)
	want := fmt.Sprintf("reason=frame_malformed count=%d", frames)
	for _, line := range w.gateway.Tail(50) {
		if strings.Contains(line, "frame_malformed") && strings.Contains(line, "in total") {
			t.Log(strings.TrimSpace(line))
			if !strings.Contains(line, want) {
				t.Errorf("not %s", want)
			}
			return
		}
	}
	t.Error("the gateway did not count the frames")
}
