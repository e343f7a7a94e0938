package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/packet"

	"pgregory.net/rapid"
)

// TestTableMatchesTheModel compares a table with one that is written after the
// text of the rules, scans lists, and shares nothing with it: random set-ups,
// packets both ways, errors, waits and sweeps, compared after each step. Half of
// the tables translate between the families.
func TestTableMatchesTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]int{3, 100}).Draw(t, "limit")
		nat64 := rapid.Bool().Draw(t, "nat64")
		table := New(Config{MaxSessions: limit, MaxProxies: 7, NAT64: nat64, Seed: rapid.Uint64().Draw(t, "seed")})
		m := &model{limit: limit, nat64: nat64, now: start}
		actions := map[string]func(*rapid.T){
			"assign": func(t *rapid.T) {
				a := Assignment{
					rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "resource"),
					rapid.SampledFrom([]string{"a.test", "A.test", "a.test", "b.test"}).Draw(t, "domain"),
					rapid.SliceOfN(rapid.SampledFrom(modelProxies), 0, 6).Draw(t, "proxies"),
					rapid.SliceOfN(rapid.SampledFrom(modelReals), 0, 4).Draw(t, "reals"),
				}
				_, err := table.Assign(a)
				if want := m.assign(a); want != err {
					t.Fatalf("got error %v, want %v", err, want)
				}
			},
			"send": func(t *rapid.T) {
				kind, port := drawFlow(t)
				proxy := rapid.SampledFrom(modelProxies[:8]).Draw(t, "proxy")
				if len(m.mappings) > 0 && rapid.IntRange(0, 3).Draw(t, "known") > 0 {
					proxy = rapid.SampledFrom(m.mappings).Draw(t, "mapping").proxy
				}
				flags := drawFlags(t)
				open := rapid.IntRange(0, 7).Draw(t, "open") > 0
				want, real, outside := m.send(kind, port, proxy, flags, open)

				v := parse(t, out(kind, port, proxy, flags))
				got := table.ToResource(v, m.now)
				if got == NeedSession && open {
					got = table.Open(v, m.now)
				}
				if got == OtherFamily {
					if proxy.Is4() == real.Is4() {
						t.Fatal("the family changes, and need not")
					}
					got = cross(v, table.CrossToResource, m.now)
				}
				if got != want {
					t.Fatalf("got %v, want %v", got, want)
				}
				verify(t, v)
				if got == Translated && (v.Dst != real || v.SrcPort != outside) {
					t.Fatalf("sent to %v from port %d, want %v and %d", v.Dst, v.SrcPort, real, outside)
				}
			},
			"receive": func(t *rapid.T) {
				kind, port := drawFlow(t)
				real := rapid.SampledFrom(modelReals[:4]).Draw(t, "real")
				if len(m.sessions) > 0 && rapid.IntRange(0, 3).Draw(t, "known") > 0 {
					s := rapid.SampledFrom(m.sessions).Draw(t, "session")
					kind, port, real = s.kind, s.port, s.real
				}
				flags := drawFlags(t)
				b := in(kind, real, port, flags)
				isError := rapid.IntRange(0, 4).Draw(t, "error") == 0
				if isError {
					typ := byte(3)
					if real.Is6() {
						typ = 1
					}
					b = errorAbout(build(kind, clientOf(real), port, real, service, flags), typ, 0, 0, 1000)
				}
				want, proxy, inside := m.receive(kind, port, real, flags, isError)

				v := parse(t, b)
				got := table.ToClient(v, m.now)
				if got == OtherFamily {
					if proxy.Is4() == real.Is4() {
						t.Fatal("the family changes, and need not")
					}
					got = cross(v, table.CrossToClient, m.now)
				}
				if got != want {
					t.Fatalf("got %v, want %v", got, want)
				}
				verify(t, v)
				if want != Translated {
					return
				}
				if isError {
					q, _ := v.Quote()
					if v.Src != proxy || q.Dst != proxy || q.SrcPort != inside {
						t.Fatalf("error from %v about %v and port %d, want %v and %d", v.Src, q.Dst, q.SrcPort, proxy, inside)
					}
				} else if v.Src != proxy || v.DstPort != inside {
					t.Fatalf("received from %v to port %d, want %v and %d", v.Src, v.DstPort, proxy, inside)
				}
			},
			"wait": func(t *rapid.T) {
				m.now += int64(rapid.SampledFrom([]time.Duration{
					1, time.Second, Finished, 59 * time.Second, time.Minute, UDPIdle - 1, UDPIdle, TCPIdle,
				}).Draw(t, "for"))
			},
			"sweep": func(t *rapid.T) {
				if got, want := table.Sweep(m.now), m.sweep(); got != want {
					t.Fatalf("%d sessions ended, want %d", got, want)
				}
			},
			"invalidate": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "resource")
				remove := rapid.Bool().Draw(t, "remove")
				call := table.Invalidate
				if remove {
					call = table.Remove
				}
				if got, want := call(id), m.invalidate(id, remove); got != want {
					t.Fatalf("%d sessions ended, want %d", got, want)
				}
			},
		}
		actions["assign"](t)
		for range 200 {
			name := rapid.SampledFrom(modelActions).Draw(t, "action")
			actions[name](t)
			m.compare(t, table)
		}
	})
}

var (
	// modelActions has the more of an action the more often it is to be drawn.
	modelActions = []string{"send", "receive", "send", "receive", "send", "wait", "assign", "send", "receive", "sweep", "wait", "invalidate"}

	// modelProxies has eight proxy addresses and one that is none. The families
	// alternate because the first elements are drawn most.
	modelProxies = []netip.Addr{
		proxies4[0], proxies6[0], proxies4[1], proxies6[1], proxies4[2], proxies6[2], proxies4[3], proxies6[3], addr("10.0.0.1"),
	}
	// modelReals has two addresses of each family and one that is refused.
	modelReals = addrs("10.0.0.5", "2001:db8::5", "10.0.0.9", "2001:db8::9", "127.0.0.1")
)

func drawFlow(t *rapid.T) (packet.Kind, uint16) {
	return rapid.SampledFrom(kinds).Draw(t, "kind"), rapid.SampledFrom([]uint16{0, 1, 2, 5000, 5001, 5002, 65534, 65535}).Draw(t, "port")
}

func drawFlags(t *rapid.T) byte {
	return rapid.SampledFrom([]byte{flagSYN, flagACK, flagACK, flagSYN | flagACK, flagFIN | flagACK, flagRST}).Draw(t, "flags")
}

type model struct {
	now        int64
	limit      int
	nat64      bool
	mappings   []modelMapping
	sessions   []*modelSession
	remembered []modelOutside
	noticed    map[modelOutside]int64 // remembered ones: the first sweep that found them so
}

type modelMapping struct {
	proxy, real netip.Addr
	domain      string
	resources   []string
}

type modelOutside struct {
	kind packet.Kind
	real netip.Addr
	port uint16
}

type modelSession struct {
	modelOutside
	inside                uint16
	proxy                 netip.Addr
	out, in               int64
	replied               bool
	finOut, finIn, resetd bool
}

func (m *model) mapping(proxy netip.Addr) int {
	return slices.IndexFunc(m.mappings, func(x modelMapping) bool { return x.proxy == proxy })
}

func (m *model) assign(a Assignment) error {
	var v4, v6 []netip.Addr // reals
	for _, r := range a.RealIPs {
		if r.IsLoopback() {
			continue
		}
		if r.Is4() {
			v4 = append(v4, r)
		} else {
			v6 = append(v6, r)
		}
	}
	next := slices.Clone(m.mappings)
	wipe := false
	var proxies []netip.Addr
	for _, p := range a.ProxyIPs {
		if p == modelProxies[8] {
			return ErrNotProxy
		}
		if i := m.mapping(p); i >= 0 && !strings.EqualFold(m.mappings[i].domain, a.Domain) {
			wipe = true
		}
		proxies = append(proxies, p)
	}
	if wipe {
		next = nil
	}
	n4, n6 := 0, 0
	for _, list := range []*[]netip.Addr{&proxies, &v4, &v6} {
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	if m.nat64 && len(v4) == 0 {
		v4 = v6
	} else if m.nat64 && len(v6) == 0 {
		v6 = v4
	}
	for _, p := range proxies {
		x := modelMapping{proxy: p, domain: a.Domain, resources: []string{a.Resource}}
		if p.Is4() && len(v4) > 0 {
			x.real = v4[n4%len(v4)]
			n4++
		} else if p.Is6() && len(v6) > 0 {
			x.real = v6[n6%len(v6)]
			n6++
		}
		if i := slices.IndexFunc(next, func(y modelMapping) bool { return y.proxy == p }); i >= 0 {
			if !slices.Contains(next[i].resources, a.Resource) {
				x.resources = append(slices.Clone(next[i].resources), a.Resource)
			} else {
				x.resources = next[i].resources
			}
			next[i] = x
		} else {
			next = append(next, x)
		}
	}
	if len(next) > 7 {
		return ErrTooManyProxies
	}
	if wipe {
		m.sessions, m.remembered, m.noticed = nil, nil, nil
	}
	m.mappings = next
	return nil
}

func (m *model) send(kind packet.Kind, port uint16, proxy netip.Addr, flags byte, open bool) (Result, netip.Addr, uint16) {
	at := m.mapping(proxy)
	if at < 0 || !m.mappings[at].real.IsValid() {
		return Unresolved, netip.Addr{}, 0
	}
	i := slices.IndexFunc(m.sessions, func(s *modelSession) bool { return s.kind == kind && s.inside == port && s.proxy == proxy })
	if i >= 0 && m.over(m.sessions[i]) {
		if open {
			m.end(i)
		}
		i = -1
	}
	if i < 0 {
		if !open {
			return NeedSession, netip.Addr{}, 0
		}
		if len(m.sessions) >= m.limit {
			return Full, netip.Addr{}, 0
		}
		o := modelOutside{kind, m.mappings[at].real, port}
		for first := true; !m.free(o, first); first = false {
			if o.port++; o.port == 0 {
				o.port = 1
			}
		}
		m.remembered = slices.DeleteFunc(m.remembered, func(x modelOutside) bool { return x == o })
		delete(m.noticed, o)
		m.sessions = append(m.sessions, &modelSession{modelOutside: o, inside: port, proxy: proxy})
		i = len(m.sessions) - 1
	}
	s := m.sessions[i]
	s.out = m.now
	if kind == packet.KindTCP {
		switch {
		case flags&flagRST != 0:
			s.resetd = true
		case flags&flagFIN != 0:
			s.finOut = true
		case flags == flagSYN:
			s.finOut, s.finIn, s.resetd = false, false, false
		}
	}
	return Translated, s.real, s.port
}

// free reports whether no session has that outside. The port that the client
// wants is taken from one whose time is up.
func (m *model) free(o modelOutside, wanted bool) bool {
	i := slices.IndexFunc(m.sessions, func(s *modelSession) bool { return s.modelOutside == o })
	if i >= 0 && wanted && m.over(m.sessions[i]) {
		m.end(i)
		return true
	}
	return i < 0
}

func (m *model) receive(kind packet.Kind, port uint16, real netip.Addr, flags byte, isError bool) (Result, netip.Addr, uint16) {
	o := modelOutside{kind, real, port}
	i := slices.IndexFunc(m.sessions, func(s *modelSession) bool { return s.modelOutside == o })
	if slices.Contains(m.remembered, o) || i >= 0 && m.over(m.sessions[i]) {
		return Ended, netip.Addr{}, 0
	}
	if i < 0 {
		return Untouched, netip.Addr{}, 0
	}
	s := m.sessions[i]
	s.in, s.replied = m.now, true
	if kind == packet.KindTCP && !isError {
		if flags&flagRST != 0 {
			s.resetd = true
		} else if flags&flagFIN != 0 {
			s.finIn = true
		}
	}
	return Translated, s.proxy, s.inside
}

// over applies each timer of dataplane §3.6 by itself.
func (m *model) over(s *modelSession) bool {
	last := s.out
	if s.replied {
		last = max(last, s.in)
	}
	idle := 120 * second
	if s.kind == packet.KindTCP {
		idle = 7440 * second
	}
	return m.now-last >= idle || !s.replied && m.now-s.out >= 60*second || s.finOut && s.finIn && m.now-last >= 5*second
}

func (m *model) end(i int) {
	m.remembered = append(m.remembered, m.sessions[i].modelOutside)
	m.sessions = slices.Delete(m.sessions, i, i+1)
}

func (m *model) endWhere(f func(*modelSession) bool) int {
	n := 0
	for i := len(m.sessions) - 1; i >= 0; i-- {
		if f(m.sessions[i]) {
			m.end(i)
			n++
		}
	}
	return n
}

func (m *model) sweep() int {
	n := m.endWhere(func(s *modelSession) bool { return s.resetd || m.over(s) })
	before := m.noticed
	m.noticed = map[modelOutside]int64{}
	m.remembered = slices.DeleteFunc(m.remembered, func(o modelOutside) bool {
		at, known := before[o]
		if !known {
			at = m.now
		}
		m.noticed[o] = at
		return m.now-at >= 600*second
	})
	return n
}

func (m *model) invalidate(id string, remove bool) int {
	n := m.endWhere(func(s *modelSession) bool {
		i := m.mapping(s.proxy)
		return i >= 0 && slices.Equal(m.mappings[i].resources, []string{id})
	})
	if remove {
		var left []modelMapping
		for _, x := range m.mappings {
			x.resources = slices.DeleteFunc(slices.Clone(x.resources), func(r string) bool { return r == id })
			if len(x.resources) > 0 {
				left = append(left, x)
			}
		}
		m.mappings = left
	}
	return n
}

// compare checks that the table holds what the model holds.
func (m *model) compare(t *rapid.T, table *Table) {
	var got, want []string
	for x := range table.Mappings() {
		got = append(got, fmt.Sprint("mapping ", x.Proxy, x.Real, x.Domain, x.Resources))
	}
	for _, x := range m.mappings {
		want = append(want, fmt.Sprint("mapping ", x.proxy, x.real, x.domain, x.resources))
	}
	for s := range table.Sessions() {
		got = append(got, fmt.Sprintf("session %+v", s))
	}
	for _, s := range m.sessions {
		want = append(want, fmt.Sprintf("session %+v", Session{
			s.kind, s.proxy, s.real, s.inside, s.port, s.out, s.in, s.replied, s.finOut, s.finIn, s.resetd,
		}))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("table has\n%s\nmodel has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	s := table.Stats()
	if s.Remembered != len(m.remembered) || s.Sessions != len(m.sessions) || s.Proxies != len(m.mappings) ||
		s.Opened-s.Ended != uint64(len(m.sessions)) {
		t.Fatalf("stats are %+v, %d sessions are remembered", s, len(m.remembered))
	}
}
