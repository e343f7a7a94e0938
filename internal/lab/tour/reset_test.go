package tour

import (
	"syscall"
	"testing"
	"time"
)

const (
	// resetBound is how long after SIGHUP a client may be without traffic.
	resetBound = 2 * time.Second
	// resetStall is how long a TCP flow may stand still over that: its sender
	// tries again at growing distances (RFC 6298).
	resetStall = 3 * resetBound
)

// TestTourBeginsAnewOnSIGHUP promises that a reset in the middle of a download
// gives the gateway another key, tells clients and portal goodbye, and costs
// traffic no more than two seconds.
func TestTourBeginsAnewOnSIGHUP(t *testing.T) {
	t.Parallel()
	o := alone()
	o.scene.persistent = true
	w := newWorld(t, o)
	first := w.awaitEvent(t, "gateway did not join", 0, stepLimit, joined)
	settle(t, w)
	feed := startFeed(t, w)
	for feed.received() < 1e6 {
		if err := pause(within(t, stepLimit), pingInterval); err != nil {
			t.Fatal(err)
		}
	}

	after, goodbyes, begin := w.lastEvent(), w.clients[0].Goodbyes(), time.Now()
	if err := w.gateway.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, stepLimit)
	if err := await(ctx, "no goodbye at the client", func() bool { return w.clients[0].Goodbyes() > goodbyes }); err != nil {
		t.Fatal(err)
	}
	goodbye := time.Since(begin)
	closed := w.awaitEvent(t, "no Close at the portal", after, stepLimit, left)
	if closed.Status != closeNormal {
		t.Errorf("the portal saw Close %d", closed.Status)
	}
	again := w.awaitEvent(t, "gateway did not come back", after, stepLimit, joined)
	if again.PublicKey == first.PublicKey || again.GatewayID != first.GatewayID {
		t.Errorf("gateway %s with key %s came back as %s with %s", first.GatewayID, first.PublicKey, again.GatewayID, again.PublicKey)
	}
	w.awaitTraffic(t, files4)
	w.awaitTraffic(t, files6)
	back := time.Since(begin)
	t.Logf("goodbye after %s, Close %d, joined with another key after %s, traffic after %s",
		milliseconds(goodbye), closed.Status, milliseconds(again.At.Sub(begin)), milliseconds(back))
	limit, stall := resetBound, resetStall
	if raceDetector {
		limit, stall = 2*limit, 2*stall
	}
	if back > limit {
		t.Errorf("traffic came back after %v", back)
	}
	feed.unharmed(t, stall)
	require(t, w, pingAnswered, pathIsDirect, gatewayLeaves)
}
