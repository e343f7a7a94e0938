package tour

import (
	"testing"
	"time"
)

const (
	// attemptLimit is how long one attempt at the portal may take (portal
	// protocol §1.3), and silenceLimit how long a connection may be silent: four
	// heartbeats without an answer, each ten seconds after the other (§1.7). The
	// silence may begin right before one.
	attemptLimit = 15 * time.Second
	silenceLimit = 40 * time.Second
	// loadSlack is what a machine with other work may add to either.
	loadSlack = 10 * time.Second
	heartbeat = 11 * time.Second // some more than the interval
)

// TestTourGivesUpASilentPortal promises that a gateway does not wait for ever
// for somebody who accepts its connection and never says a word, nor for a
// portal that falls silent on an open connection, and that its clients' traffic
// goes on meanwhile. With -short, only the first is asked for.
func TestTourGivesUpASilentPortal(t *testing.T) {
	t.Parallel()
	w, f := behindFront(t, alone(), "ws", portalPort)
	settle(t, w)
	feed := startFeed(t, w)
	after, begin := w.lastEvent(), time.Now()
	if !testing.Short() {
		f.setMood(mute) // for the attempt after the open connection
		f.lose()
		visit := f.awaitVisits(t, 1, silenceLimit+2*loadSlack)[0]
		silent := visit.end.Sub(begin)
		t.Logf("left the open connection after %.1f s of silence", silent.Seconds())
		if silent < silenceLimit-heartbeat || silent > silenceLimit+loadSlack {
			t.Errorf("left the open connection after %v", silent)
		}
	} else {
		f.become(mute)
	}
	known := len(f.ended())
	visits := f.awaitVisits(t, known+1, attemptLimit+2*loadSlack)
	waited := visits[known].end.Sub(visits[known].begin)
	t.Logf("gave the attempt up after %.1f s", waited.Seconds())
	if waited < attemptLimit-time.Second || waited > attemptLimit+loadSlack {
		t.Errorf("gave the attempt up after %v", waited)
	}
	f.become(pass)
	e := w.awaitReturn(t, after, returnLimit)
	t.Logf("joined %.1f s after the portal fell silent", e.At.Sub(begin).Seconds())
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}
