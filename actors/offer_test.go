package actors

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/messages"
)

func TestNewOffer(t *testing.T) {
	relayed := ice.Candidate{Type: ice.Relay, Addr: addr("127.0.0.9:50001")}
	moved := ice.Candidate{Type: ice.Relay, Addr: addr("127.0.0.9:50002")}
	type list = []ice.Candidate
	for _, tc := range []struct {
		name               string
		known, current     list
		all                bool
		after, gone, fresh list
	}{
		{"everything is new to a client that knows nothing", nil, list{hostShared, relayed}, false, list{hostShared, relayed}, nil, list{hostShared, relayed}},
		{"what is known is not announced", list{hostShared}, list{hostShared, srflx}, false, list{hostShared, srflx}, nil, list{srflx}},
		{"unless everything is wanted", list{hostShared}, list{hostShared, srflx}, true, list{hostShared, srflx}, nil, list{hostShared, srflx}},
		{"a relayed address that is gone is taken back", list{hostShared, relayed}, list{hostShared, moved}, false, list{hostShared, moved}, list{relayed}, list{moved}},
		{"no other is", list{hostShared, srflx}, nil, false, list{hostShared, srflx}, nil, nil},
		{"one that comes back is known", list{hostShared, srflx}, list{srflx}, false, list{hostShared, srflx}, nil, nil},
		{"nothing of nothing", nil, nil, true, nil, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := newOffer(tc.known, tc.current, tc.all)
			if !slices.Equal(o.known, tc.after) || !slices.Equal(o.gone, tc.gone) || !slices.Equal(o.fresh, tc.fresh) {
				t.Errorf("%+v", o)
			}
		})
	}
}

// A reflexive address that changes for ever does not fill the memory, and what
// exists is never forgotten.
func TestTheOfferIsBounded(t *testing.T) {
	var known []ice.Candidate
	for i := range 10 * maxSignalled {
		current := []ice.Candidate{hostShared, {Type: ice.ServerReflexive, Addr: addr(fmt.Sprintf("127.0.0.3:%d", 1000+i))}}
		o := newOffer(known, current, false)
		if i > 0 && len(o.fresh) != 1 {
			t.Fatalf("%d announced", len(o.fresh))
		}
		known = o.known
		if len(known) > maxSignalled || !contains(known, hostShared) || !contains(known, current[1]) {
			t.Fatalf("known %v", known)
		}
	}
}

// T-25.
func TestLocalCandidatesAreSharedButForTheRelayed(t *testing.T) {
	relays := offers(1, relayOffer("a", "127.0.0.8:1"), relayOffer("b", "127.0.0.9:1"))
	other := ice.Candidate{Type: ice.ServerReflexive, Addr: addr("127.0.0.4:1")}
	relays.Relays[1].Shared = append(relays.Relays[1].Shared, other)
	got := localCandidates(relays, "b")
	want := []netip.AddrPort{hostShared.Addr, srflx.Addr, other.Addr, addr("127.0.0.9:1")}
	if len(got) != len(want) {
		t.Fatalf("candidates %v", got)
	}
	for i, c := range got {
		if c.Addr != want[i] || i > 0 && c.Priority >= got[i-1].Priority {
			t.Errorf("%d. is %+v, want %v", i, c, want[i])
		}
	}
	// One of another family than the relay's address is less worth (§2.4).
	relays.Relays[1].Server, relays.Relays[1].Relayed = addr("127.0.0.9:3478"), []netip.AddrPort{addr("[::9]:1"), addr("127.0.0.9:1")}
	got = localCandidates(relays, "b")
	if four, six := got[len(got)-2], got[len(got)-1]; four.Addr != addr("127.0.0.9:1") || six.Addr != addr("[::9]:1") || four.Priority != 37748479 || six.Priority != 37748735-1000<<8 {
		t.Errorf("relayed %+v, %+v", four, six)
	}
	var many messages.RelayChanged
	for i := range 3 * maxShared {
		many.Shared = append(many.Shared, ice.Candidate{Type: ice.Host, Addr: addr(fmt.Sprintf("127.0.0.1:%d", 1+i))})
	}
	if n := len(localCandidates(offers(1, many), "")); n != maxShared {
		t.Errorf("%d candidates of a relay that makes them up", n)
	}
}

func TestPickRelaySpreadsClientsOverUsableRelays(t *testing.T) {
	failed := relayOffer("failed", "127.0.0.7:1")
	failed.Usable = false
	picked := map[string]int{}
	for i := range 200 {
		id, ok := pickRelay(offers(1, failed, relayOffer("empty", ""), relayOffer("a", "127.0.0.8:1"), relayOffer("b", "127.0.0.9:1")), fmt.Sprint(i))
		if !ok {
			t.Fatal("none is picked")
		}
		picked[id]++
	}
	if len(picked) != 2 || picked["a"] < 50 || picked["b"] < 50 {
		t.Errorf("picked %v", picked)
	}
	if id, ok := pickRelay(offers(1, failed, relayOffer("empty", "")), "c"); !ok || id != "empty" {
		t.Errorf("picked %q of those without an allocation", id)
	}
	if _, ok := pickRelay(offers(1, failed), "c"); ok {
		t.Error("a relay that failed is picked")
	}
}
