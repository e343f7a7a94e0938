package tour

import (
	"fmt"
	"testing"

	"firezone-gateway/internal/lab/portal"
)

// TestTourServesLegacyClientsInAnyOrder promises that a client of the oldest
// kind has access to both its resources whether the permission for the second
// follows the request for its connection or overtakes it.
func TestTourServesLegacyClientsInAnyOrder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		order portal.Legacy
		sent  []string
	}{
		{"in order", portal.LegacyInOrder, []string{"request_connection", "allow_access"}},
		{"overtaken", portal.LegacyOvertaken, []string{"allow_access", "request_connection"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := alone()
			o.V1, o.scene.legacy = true, c.order
			w := newWorld(t, o)
			require(t, w, gatewayJoins)
			if err := w.connect(within(t, stepLimit), 0); err != nil {
				t.Fatal(err)
			}
			after := w.lastEvent()
			if c.order == portal.LegacyInOrder {
				w.mustAccess(t, files4)
				w.mustAccess(t, files6)
			} else {
				w.accessTogether(t, files4, files6)
			}
			var sent []string
			for _, e := range w.portal.Events(after) {
				switch e.Kind {
				case portal.AuthorizationPushed:
					sent = append(sent, e.Detail)
				case portal.InvalidRef, portal.UnknownMessage, portal.LateAck, portal.AuthorizationFailed:
					t.Errorf("the portal did not expect this: %+v", e)
				}
			}
			if fmt.Sprint(sent) != fmt.Sprint(c.sent) {
				t.Fatalf("the portal sent %v", sent)
			}
			t.Logf("sent %v", sent)
			// Nobody acknowledges allow_access: the client may be faster.
			w.mustAccess(t, revocable)
			for _, r := range []role{files4, files6, revocable} {
				w.awaitTraffic(t, r)
			}
			require(t, w, pingAnswered, download, noGrantRefused, pathIsDirect, revocationCuts, gatewayLeaves)
		})
	}
}

// accessTogether asks for one resource, and for the other before the portal has
// answered.
func (w *World) accessTogether(t *testing.T, first, second role) {
	t.Helper()
	after, ctx := w.lastEvent(), within(t, stepLimit)
	granted := make(chan error, 1)
	go func() { granted <- w.access(ctx, 0, first) }()
	w.awaitEvent(t, "no request", after, stepLimit, func(e portal.Event) bool {
		return e.Kind == portal.AuthorizationRequested && e.ResourceID == w.resources[first].ID
	})
	w.mustAccess(t, second)
	if err := <-granted; err != nil {
		t.Fatal(err)
	}
}
