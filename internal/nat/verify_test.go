package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/packet"
)

// busy is a table with two domains, sessions of each kind, some of them ended, and
// ports that had to make way.
func busy(t testing.TB, seed uint64) *rig {
	r := newRig(t, Config{Seed: seed, MaxRemembered: 8})
	r.assignTo("r1", "a.test", proxies4[:2], []netip.Addr{real4})
	r.assignTo("r2", "b.test", proxies6, []netip.Addr{real6})
	for i := range uint16(20) {
		for _, kind := range kinds {
			r.send(out(kind, 4000+i/2, proxies4[i%2], ack))
			r.send(out(kind, 4000+i, proxies6[i%4], ack))
		}
	}
	r.now += int64(UDPIdle) + second
	r.Sweep(r.now)
	for i := range uint16(10) {
		r.send(out(packet.KindUDP, 5000+i, proxies4[0], 0))
	}
	return r
}

// flows are the sessions as people see them, without their stamps, in order.
func flows(t *Table) (list []string) {
	for s := range t.Sessions() {
		list = append(list, fmt.Sprint(s.Kind, s.Proxy, s.Real, s.Inside, s.Outside))
	}
	slices.Sort(list)
	return list
}

func places(t *Table) (list []string) {
	for m := range t.Mappings() {
		list = append(list, fmt.Sprint(m.Proxy, m.Domain, m.Resources, m.Real))
	}
	slices.Sort(list)
	return list
}

func TestRepairLeavesASoundTableAlone(t *testing.T) {
	r := busy(t, 1)
	before, mapped, stats := flows(r.Table), places(r.Table), r.Stats()
	if got := r.Repair(); got != (Repaired{}) {
		t.Errorf("repaired %+v", got)
	}
	if !slices.Equal(flows(r.Table), before) || !slices.Equal(places(r.Table), mapped) || r.Stats() != stats {
		t.Error("something has changed")
	}
	if got := New(Config{}).Repair(); got != (Repaired{}) {
		t.Errorf("an empty table: repaired %+v", got)
	}
}

// faults are what a writer that failed in the middle, or went mad, leaves behind.
var faults = []struct {
	name string
	do   func(t *Table, m *Mapping, s *session)
}{
	{"mapping to loopback", func(_ *Table, m *Mapping, _ *session) { m.Real = addr("127.0.0.1") }},
	{"mapping to a tunnel address", func(_ *Table, m *Mapping, _ *session) { m.Real = addr("100.64.0.9") }},
	{"mapping for no resource", func(_ *Table, m *Mapping, _ *session) { m.Resources = nil }},
	{"mapping for a resource without name", func(_ *Table, m *Mapping, _ *session) { m.Resources = []string{""} }},
	{"mapping of no domain", func(_ *Table, m *Mapping, _ *session) { m.Domain = "" }},
	{"mapping of an address that is no proxy", func(_ *Table, m *Mapping, _ *session) { m.Proxy = addr("10.9.9.9") }},
	{"mapping under another key", func(_ *Table, m *Mapping, _ *session) { m.key ^= 1 << insideHost }},
	{"mapping that is gone", func(t *Table, m *Mapping, _ *session) { t.mappings.delete(t.insideHash(m.key), m) }},
	{"mapping filed twice", func(t *Table, m *Mapping, _ *session) { copied := *m; t.replace(nil, &copied) }},
	{"session known from inside only", func(t *Table, _ *Mapping, s *session) { t.outside.delete(t.outsideHash(s.outsideKey()), s) }},
	{"session known from outside only", func(t *Table, _ *Mapping, s *session) { t.inside.delete(t.insideHash(s.inside), s) }},
	{"session to loopback", func(_ *Table, _ *Mapping, s *session) { s.high, s.low = 0, 0xffff_7f00_0001 }},
	{"session of no kind", func(_ *Table, _ *Mapping, s *session) { s.inside &^= kindMask }},
	{"session with the port of another", func(_ *Table, _ *Mapping, s *session) { s.inside++ }},
	{"session that comes from elsewhere", func(_ *Table, _ *Mapping, s *session) { s.outside += 7 }},
	{"session that has ended", func(_ *Table, _ *Mapping, s *session) { s.state.Or(ended) }},
	{"session filed twice", func(t *Table, _ *Mapping, s *session) { t.inside.insert(t.insideHash(s.inside), s) }},
	{"no memory of ended sessions", func(t *Table, _ *Mapping, _ *session) { t.remembered = queue{} }},
	{"sets of ports", func(t *Table, _ *Mapping, s *session) {
		space, _ := s.outsideKey().split()
		t.ports[space] = &portSet{used: 1, pages: [1 << 16 / pagePorts]*portPage{{1, 2, 3}}}
	}},
}

// Whatever the faults, what is left was there before, fits together, and works.
func TestRepairLeavesNothingThatWasNotThere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	chance := rand.New(rand.NewPCG(seed, 2))
	for round := range 40 * len(faults) {
		r := busy(t, seed+uint64(round))
		before, mapped := flows(r.Table), places(r.Table)
		var what []string
		for i := range 1 + round/len(faults)%3 {
			k := faults[(round+i*7)%len(faults)]
			mappings, sessions := slices.Collect(r.mappings.all()), slices.Collect(r.inside.all())
			m, s := mappings[chance.IntN(len(mappings))], sessions[chance.IntN(len(sessions))]
			if i > 0 && (r.mapping(m.key) != m || r.findInside(s.inside) != s || r.findOutside(s.outsideKey()) != s) {
				continue // what is lost already cannot be filed elsewhere
			}
			what = append(what, k.name)
			k.do(r.Table, m, s)
		}
		got := r.Repair()
		if again := r.Repair(); again != (Repaired{}) {
			t.Fatalf("%q: repaired %+v, and then %+v", what, got, again)
		}
		for _, f := range flows(r.Table) {
			if !slices.Contains(before, f) {
				t.Fatalf("%q: session %s was not there before", what, f)
			}
		}
		for _, p := range places(r.Table) {
			if !slices.Contains(mapped, p) {
				t.Fatalf("%q: mapping %s was not there before", what, p)
			}
		}
		if n := len(before) - len(flows(r.Table)); n > 0 && got.Sessions == 0 && !slices.Contains(what, "session known from outside only") {
			t.Fatalf("%q: %d sessions are gone, none is reported", what, n)
		}
		// It goes on as a table does.
		r.assignTo("r3", "c.test", proxies4[3:], []netip.Addr{real4})
		for i := range uint16(30) {
			r.send(out(packet.KindUDP, 5000+i, proxies4[3], 0))
		}
		r.now += int64(UDPIdle) + second
		r.Sweep(r.now)
		r.Reset()
	}
}
