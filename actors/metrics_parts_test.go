package actors

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/messages"
)

func TestLedgerOnlyGrows(t *testing.T) {
	type thing struct{ n uint64 }
	l := newLedger(1, func(k *thing, into []uint64) { into[0] += k.n })
	a, b, c := &thing{1}, &thing{10}, &thing{100}
	for _, tc := range []struct {
		name  string
		there []*thing
		first func()
		want  uint64
	}{
		{"nothing is there", nil, func() {}, 0},
		{"two are", []*thing{a, b}, func() {}, 11},
		{"one counts on", []*thing{a, b}, func() { a.n = 2 }, 12},
		{"one goes, after it has counted on", []*thing{b}, func() { a.n = 5 }, 15},
		{"one that has gone counts no more", []*thing{b}, func() { a.n = 1000 }, 15},
		{"another comes as one goes", []*thing{c}, func() {}, 115},
		{"all have gone", nil, func() {}, 115},
		{"and stay away", nil, func() {}, 115},
	} {
		tc.first()
		got := l.total(func(yield func(*thing)) {
			for _, k := range tc.there {
				yield(k)
			}
		})
		if got[0] != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got[0], tc.want)
		}
	}
}

func TestLinkRecordTellsItsHistory(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	joined, lost := portal.RouteV2, portal.RouteUnknown
	type change struct {
		route portal.Route
		at    int
	}
	for _, tc := range []struct {
		name          string
		changes       []change
		now           int
		joins, losses uint64
		apart         time.Duration
	}{
		{"never joined", nil, 100, 0, 0, 0},
		{"joined", []change{{joined, 5}}, 100, 1, 0, 0},
		{"away", []change{{joined, 5}, {lost, 10}}, 17, 1, 1, 7 * time.Second},
		{"back", []change{{joined, 5}, {lost, 10}, {joined, 13}}, 100, 2, 1, 3 * time.Second},
		{"away again", []change{{joined, 5}, {lost, 10}, {joined, 13}, {lost, 20}}, 21, 2, 2, 4 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r linkRecord
			for _, c := range tc.changes {
				r.store(portalLink{c.route, at(c.at)})
				if got := r.load(); got != (portalLink{c.route, at(c.at)}) {
					t.Errorf("remembered %+v", got)
				}
			}
			joins, losses, apart := r.history(at(tc.now))
			if joins != tc.joins || losses != tc.losses || apart != tc.apart {
				t.Errorf("joined %d, lost %d, away for %v", joins, losses, apart)
			}
		})
	}
}

func TestSocketPairs(t *testing.T) {
	r := newTestPlane(t, "")
	sockets := r.Bind.Sockets()
	host, relayed := addr("198.51.100.7:1234"), addr("203.0.113.9:49999")
	candidates := []ice.Candidate{{Type: ice.Host, Addr: host}, {Type: ice.Relay, Addr: relayed}}
	relay := sockets.AddRelay(addr("192.0.2.1:3478"))
	local := netip.MustParseAddr("127.0.0.1")
	for _, tc := range []struct {
		want string
		path *transport.Path
	}{
		{"PeerToPeer", sockets.Path(local, host)},
		{"PeerToRelay", sockets.Path(local, relayed)},
		{"RelayToPeer", relay.SetChannel(0x4000, host, addr("192.0.2.1:50000"))},
		{"RelayToRelay", relay.SetChannel(0x4001, relayed, addr("192.0.2.1:50000"))},
	} {
		if got := socketPair(tc.path, candidates); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.path, got, tc.want)
		}
	}
}

func TestAHostPathServesWithoutAnAllocation(t *testing.T) {
	shared := []ice.Candidate{hostShared}
	for _, tc := range []struct {
		name   string
		relays []messages.RelayChanged
		want   bool
	}{
		{"no relay", nil, false},
		{"a relay that has told nothing", []messages.RelayChanged{{Usable: true}}, false},
		{"a relay that has told our address", []messages.RelayChanged{{Usable: true, Shared: shared}}, true},
		{"a relay that is given up", []messages.RelayChanged{{Shared: shared}}, false},
		{"the second of two", []messages.RelayChanged{{Usable: true}, {Usable: true, Shared: shared}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newTestPlane(t, "")
			p.joined.Store(true)
			p.tunUp.Store(true)
			p.offers.store(messages.RelaysChanged{Relays: tc.relays})
			if got := !slices.Contains(p.Missing(), "relay"); got != tc.want {
				t.Errorf("missing %v", p.Missing())
			}
			p.relayUp.Store(true)
			if len(p.Missing()) != 0 {
				t.Errorf("with an allocation %v is missing", p.Missing())
			}
		})
	}
}
