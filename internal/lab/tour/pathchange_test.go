package tour

import (
	"testing"
	"time"

	"firezone-gateway/internal/lab/natbox"
	"firezone-gateway/internal/lab/resource"
)

const (
	// fallLimit is how long a client takes to leave a direct path that is blocked:
	// the original gives a pair up after 12 checks, 15.25 s (transport §2.7).
	fallLimit = 20 * time.Second
	// resumeSlack is what may come on top of TCP's own pause, see resumeLimit.
	resumeSlack = 3 * time.Second
	// climbLimit is how long it may take to return: our side checks a silent path
	// at least every 25 s.
	climbLimit = 40 * time.Second
)

// resumeLimit is how long a download may stand still whose path was dead for as
// long as dead: TCP tries again when twice the time since the first loss has
// passed, so that its last attempt in vain may have been just before the path
// worked.
func resumeLimit(dead time.Duration) time.Duration { return 2*dead + resumeSlack }

// original are the options of a World with one relay, whose client looks for
// paths as the original does.
func original() Options {
	o := relayed()
	o.scene.relays = 1
	return o
}

// TestTourFallsToTheRelayAndClimbsBack promises that a download outlives the
// blocking of its direct path, by the relay, and takes the direct one again when
// nothing blocks it, without anybody's doing.
func TestTourFallsToTheRelayAndClimbsBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		blocked time.Duration // from when the path is relayed
	}{
		{"blocked for seconds", 3 * time.Second},
		{"blocked for more than a minute", 60 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && c.blocked > 10*time.Second {
				t.Skip("takes more than a minute, -short")
			}
			w := newWorld(t, original())
			settle(t, w)
			w.awaitDirect(t, pathPatience)
			feed := startFeed(t, w)
			feed.awaitBytes(t, 1e6)

			begin := time.Now()
			w.block(t, true)
			w.awaitRelayed(t)
			fell := time.Since(begin)
			if fell > fallLimit {
				t.Errorf("client on the relay after %.1f s", fell.Seconds())
			}
			feed.awaitBytes(t, 1e6)
			t.Logf("client on the relay %.1f s after the block, 1 MB more after %.1f s", fell.Seconds(), time.Since(begin).Seconds())
			if err := pause(t.Context(), c.blocked); err != nil {
				t.Fatal(err)
			}

			begin = time.Now()
			w.block(t, false)
			w.awaitDirect(t, climbLimit)
			t.Logf("client on the direct path %.1f s after the end of the block", time.Since(begin).Seconds())
			before := w.relay.Stats()
			feed.awaitBytes(t, 2e6)
			after := w.relay.Stats()
			if moved := after.ToPeers.Bytes - before.ToPeers.Bytes + after.FromPeers.Bytes - before.FromPeers.Bytes; moved > 1e6 {
				t.Errorf("%d bytes still went through the relay", moved)
			}
			feed.unharmed(t, resumeLimit(fell))
			require(t, w, pingAnswered, pathIsDirect, gatewayLeaves)
		})
	}
}

// TestTourBearsABadLine promises that what was sent arrives over a line with 1 %
// loss, 100 ms round trip and 5 % of the packets out of order, both ways.
func TestTourBearsABadLine(t *testing.T) {
	t.Parallel()
	o := original()
	o.scene.clientLine = natbox.Line{Latency: 50 * time.Millisecond, Loss: 0.01, Reorder: 0.05}
	w := newWorld(t, o)
	settle(t, w)
	w.awaitDirect(t, pathPatience)
	size := int64(2e6)
	for name, move := range map[string]mover{"download": resource.Download, "upload": resource.Upload} {
		ctx := within(t, 2*time.Minute)
		m, err := w.transfer(ctx, move, size, 9)
		if err != nil {
			t.Errorf("%s: %v (%s)", name, err, m.Text)
			continue
		}
		t.Logf("%s: %s", name, m.Text)
	}
	rtt, err := w.reaches(t.Context(), 0, places[files4].address)
	for range 10 { // one in fifty is lost on the way
		if err == nil {
			break
		}
		rtt, err = w.reaches(t.Context(), 0, places[files4].address)
	}
	if err != nil || rtt < 50*time.Millisecond {
		t.Errorf("round trip in %v, error %v: the line is not as bad as it should be", rtt, err)
	}
	require(t, w, gatewayLeaves)
}
