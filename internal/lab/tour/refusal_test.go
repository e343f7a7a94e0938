package tour

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/lab/portal"
)

// TestTourWaitsAsLongAsThePortalAsks promises that a gateway that is turned away
// with Retry-After comes back after that time, not earlier and not much later.
func TestTourWaitsAsLongAsThePortalAsks(t *testing.T) {
	t.Parallel()
	// Longer than the gateway would wait on its own after two failures.
	const wait, late = 4 * time.Second, 2 * time.Second
	w := newWorld(t, alone())
	settle(t, w)
	feed := startFeed(t, w)
	after := w.lastEvent()
	w.setFaults(t, portal.Faults{Roles: []portal.Role{portal.Gateway}, Refuse: &portal.Refusal{
		Status: http.StatusServiceUnavailable, Code: "rate_limit", Times: 2,
		Header: http.Header{"Retry-After": {fmt.Sprint(wait.Seconds())}},
	}})
	w.sendAway(t)
	attempt := w.awaitEvent(t, "no attempt", after, returnLimit, refusedConnect)
	for _, match := range []func(portal.Event) bool{refusedConnect, joined} {
		next := w.awaitEvent(t, "no further attempt", attempt.Seq, returnLimit, match)
		waited := next.At.Sub(attempt.At)
		t.Logf("asked to wait %v, waited %.3f s (%s)", wait, waited.Seconds(), next.Kind)
		// The portal notes a join some round trips after the attempt.
		if waited < wait-50*time.Millisecond || waited > wait+late {
			t.Errorf("waited %v", waited)
		}
		attempt = next
	}
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}

// TestTourReturnsAfterAConflict promises that a gateway whose connection broke
// unnoticed by the portal, which therefore takes it for a second one with the
// same identity, tries until the portal lets it in.
func TestTourReturnsAfterAConflict(t *testing.T) {
	t.Parallel()
	w, f := behindFront(t, alone(), "ws", portalPort)
	settle(t, w)
	feed := startFeed(t, w)
	after := w.lastEvent()
	f.orphan()
	for range 2 {
		e := w.awaitEvent(t, "no attempt", after, returnLimit, refusedConnect)
		if e.Status != http.StatusConflict {
			t.Fatalf("refused with %d %s", e.Status, e.Detail)
		}
		after = e.Seq
	}
	begin := time.Now()
	f.release()
	e := w.awaitReturn(t, after, returnLimit)
	t.Logf("refused twice with 409, joined %.1f s after the portal gave the old connection up", e.At.Sub(begin).Seconds())
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}

// TestTourEndsWithARejectedToken promises that a gateway whose token is no
// longer good ends in order: clients hear a goodbye, the log says why, and the
// exit code is 1, at work as at the start.
func TestTourEndsWithARejectedToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, alone())
	settle(t, w)
	goodbyes, after := w.clients[0].Goodbyes(), w.lastEvent()
	w.setFaults(t, portal.Faults{Roles: []portal.Role{portal.Gateway}, Refuse: &portal.Refusal{
		Status: http.StatusUnauthorized, Code: "invalid_token",
	}})
	w.sendAway(t)
	ended := func(what string) {
		t.Helper()
		begin := time.Now()
		refused := w.awaitEvent(t, "no attempt", after, returnLimit, refusedConnect)
		select {
		case <-w.gateway.Done():
		case <-time.After(returnLimit):
			t.Fatalf("%s: the gateway goes on without a valid token", what)
		}
		code, err := w.gateway.Stop(stopGrace)
		if err != nil {
			t.Fatal(err)
		}
		said := w.gateway.Tail(1)
		t.Logf("%s: ended %s after the refusal, with exit code %d: %s", what, milliseconds(time.Since(refused.At)), code, said)
		if code != 1 {
			t.Errorf("%s: exit code %d", what, code)
		}
		if last := strings.Join(said, ""); !strings.Contains(last, "token invalid") || strings.Contains(last, w.token) {
			t.Errorf("%s: last words are %q", what, said)
		}
		if events := w.portal.Events(refused.Seq); len(events) > 0 && events[len(events)-1].Kind == portal.ConnectRefused {
			t.Errorf("%s: tried again after the refusal", what)
		}
		if d := time.Since(begin); d > returnLimit {
			t.Errorf("%s: took %v", what, d)
		}
	}
	ended("at work")
	if err := await(within(t, pingPatience), "no goodbye at the client", func() bool { return w.clients[0].Goodbyes() > goodbyes }); err != nil {
		t.Error(err)
	}
	after = w.lastEvent()
	if err := w.startGateway(); err != nil {
		t.Fatal(err)
	}
	ended("at the start")
}
