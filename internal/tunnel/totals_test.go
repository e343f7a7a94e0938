package tunnel

import (
	"testing"

	"firezone-gateway/internal/drop"
)

func TestTotalsOutliveTheirClients(t *testing.T) {
	r := newRig(t)
	if got := r.Totals(); got != (Totals{}) {
		t.Errorf("without clients: %+v", got)
	}
	leaving, staying := r.join(t, 1, usualGrants()...), r.join(t, 2, usualGrants()...)
	r.exchange(t, leaving, 1)
	r.exchange(t, staying, 1)
	leaving.client.Drops().Add(drop.Filtered, 3)
	before := r.Totals()
	if before.ToResourcePackets != 2 || before.ToClientPackets != 2 || before.ToResourceBytes == 0 || before.ToClientBytes == 0 ||
		before.Handshakes != 2 || before.Drops[drop.Filtered] != 3 {
		t.Errorf("counted %+v", before)
	}
	r.Remove(leaving.client)
	r.Remove(leaving.client)
	if after := r.Totals(); after != before {
		t.Errorf("after one has gone %+v, before %+v", after, before)
	}
}
