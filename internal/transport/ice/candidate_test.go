package ice

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/hammer"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestPrioritiesAreThoseOfTheProtocol(t *testing.T) {
	list := []Candidate{
		{Type: Host, Addr: ap("10.0.0.1:52625")},
		{Type: Host, Addr: ap("[2001:db8::1]:52625")},
		{Type: ServerReflexive, Addr: ap("203.0.113.1:1")},
		{Type: ServerReflexive, Addr: ap("[2001:db8::1]:52625")},
		{Type: Relay, Addr: ap("198.51.100.1:1"), Base: ap("10.0.0.1:52625")},
		{Type: Relay, Addr: ap("[2001:db8::2]:1"), Base: ap("[2001:db8::1]:52625")},
		{Type: Host, Addr: ap("10.0.0.2:52625")},
		{Type: Host, Addr: ap("10.0.0.3:52625")},
		{Type: Relay, Addr: ap("[2001:db8::3]:1"), Base: ap("10.0.0.1:52625")},
	}
	Prioritise(list)
	want := []uint32{
		2130706175, 2130706431, 1686109951, 1686110207, 37748479, 37748735,
		2130706175 - 2<<8, 2130706175 - 4<<8, 37748735 - 1002<<8,
	}
	for i, c := range list {
		if c.Priority != want[i] {
			t.Errorf("%s %s has priority %d, want %d", c.Type, c.Addr, c.Priority, want[i])
		}
	}
	Sort(list)
	if !slices.IsSortedFunc(list, func(a, b Candidate) int { return int(int64(b.Priority) - int64(a.Priority)) }) {
		t.Error("Sort does not put the best first")
	}
}

func TestMarshalWritesWhatClientsParse(t *testing.T) {
	for _, c := range []struct {
		name string
		in   Candidate
		want string
	}{
		{"a host candidate has no related address", Candidate{Type: Host, Addr: ap("10.0.0.1:52625")},
			" 1 udp 2130706175 10.0.0.1 52625 typ host ufrag gate"},
		{"a reflexive candidate hides its base", Candidate{Type: ServerReflexive, Addr: ap("203.0.113.1:40000"), Base: ap("10.0.0.1:52625")},
			" 1 udp 1686109951 203.0.113.1 40000 typ srflx raddr 0.0.0.0 rport 0 ufrag gate"},
		{"a relayed IPv6 candidate", Candidate{Type: Relay, Addr: ap("[2001:db8::1]:50000"), Base: ap("[fd00::1]:52625")},
			" 1 udp 37748735 2001:db8::1 50000 typ relay raddr :: rport 0 ufrag gate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := []Candidate{c.in}
			Prioritise(list)
			s := list[0].Marshal("gate")
			foundation, rest, _ := strings.Cut(s, " ")
			if " "+rest != c.want || !strings.HasPrefix(foundation, "candidate:") || len(foundation) <= len("candidate:")+8 {
				t.Fatalf("got  %s\nwant candidate:…%s", s, c.want)
			}
		})
	}
}

func TestParseReadsBothGenerations(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Candidate
		ok       bool
	}{
		{"a host of the older generation", "candidate:fffeff7e2d04b4aee1b48f0 1 udp 2130706175 10.0.0.5 52625 typ host ufrag clnt",
			Candidate{Type: Host, Addr: ap("10.0.0.5:52625"), Priority: 2130706175}, true},
		{"a reflexive one without ufrag", "candidate:1 1 udp 1694498559 203.0.113.9 1024 typ srflx raddr 0.0.0.0 rport 0",
			Candidate{Type: ServerReflexive, Addr: ap("203.0.113.9:1024"), Base: ap("0.0.0.0:0"), Priority: 1694498559}, true},
		{"an IPv6 relay with unknown attributes and wide spaces", "candidate:1  1 UDP 37748735 2001:db8::1 9 typ relay raddr :: rport 0 network-id 3 ufrag clnt network-cost 10",
			Candidate{Type: Relay, Addr: ap("[2001:db8::1]:9"), Base: ap("[::]:0"), Priority: 37748735}, true},
		{"a mapped address becomes IPv4", "candidate:1 1 udp 1 ::ffff:10.0.0.1 9 typ host", Candidate{Type: Host, Addr: ap("10.0.0.1:9"), Priority: 1}, true},
		{"trailing rubbish is ignored", "candidate:1 1 udp 1 10.0.0.1 9 typ host rubbish", Candidate{Type: Host, Addr: ap("10.0.0.1:9"), Priority: 1}, true},
		{"a private and a loopback address are fine", "candidate:1 1 udp 1 127.0.0.1 9 typ host", Candidate{Type: Host, Addr: ap("127.0.0.1:9"), Priority: 1}, true},

		{"nothing", "", Candidate{}, false},
		{"no prefix", "1 1 udp 1 10.0.0.1 9 typ host", Candidate{}, false},
		{"too few fields", "candidate:1 1 udp 1 10.0.0.1 9 typ", Candidate{}, false},
		{"another keyword than typ", "candidate:1 1 udp 1 10.0.0.1 9 type host", Candidate{}, false},
		{"component 2", "candidate:1 2 udp 1 10.0.0.1 9 typ host", Candidate{}, false},
		{"TCP", "candidate:1 1 tcp 1 10.0.0.1 9 typ host tcptype active", Candidate{}, false},
		{"a host name", "candidate:1 1 udp 1 gateway.local 9 typ host", Candidate{}, false},
		{"an address with zone", "candidate:1 1 udp 1 fe80::1%eth0 9 typ host", Candidate{}, false},
		{"port 0", "candidate:1 1 udp 1 10.0.0.1 0 typ host", Candidate{}, false},
		{"a port too high", "candidate:1 1 udp 1 10.0.0.1 65536 typ host", Candidate{}, false},
		{"a priority too high", "candidate:1 1 udp 4294967296 10.0.0.1 9 typ host", Candidate{}, false},
		{"a peer-reflexive candidate", "candidate:1 1 udp 1 10.0.0.1 9 typ prflx", Candidate{}, false},
		{"the ufrag of somebody else", "candidate:1 1 udp 1 10.0.0.1 9 typ host ufrag othr", Candidate{}, false},
		{"a broken related address", "candidate:1 1 udp 1 10.0.0.1 9 typ srflx raddr nowhere rport 1", Candidate{}, false},
		{"a broken related port", "candidate:1 1 udp 1 10.0.0.1 9 typ srflx raddr 10.0.0.1 rport x", Candidate{}, false},
		{"IPv4 link-local", "candidate:1 1 udp 1 169.254.0.1 9 typ host", Candidate{}, false},
		{"IPv4 broadcast", "candidate:1 1 udp 1 255.255.255.255 9 typ host", Candidate{}, false},
		{"IPv4 multicast", "candidate:1 1 udp 1 224.0.0.1 9 typ host", Candidate{}, false},
		{"mapped IPv4 multicast", "candidate:1 1 udp 1 ::ffff:224.0.0.1 9 typ host", Candidate{}, false},
		{"IPv4 unspecified", "candidate:1 1 udp 1 0.0.0.0 9 typ host", Candidate{}, false},
		{"IPv6 multicast", "candidate:1 1 udp 1 ff02::1 9 typ host", Candidate{}, false},
		{"IPv6 unspecified", "candidate:1 1 udp 1 :: 9 typ host", Candidate{}, false},
		{"a string too long", "candidate:1 1 udp 1 10.0.0.1 9 typ host " + strings.Repeat("x", maxCandidate), Candidate{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.in, "clnt")
			if got != c.want || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCandidate) {
				t.Fatalf("got %+v, %v", got, err)
			}
		})
	}
}

func TestKeyFollowsWhatAnInvalidationRepeats(t *testing.T) {
	signalled, _ := Parse("candidate:aa 1 udp 37748479 198.51.100.1 5 typ relay raddr 0.0.0.0 rport 0 ufrag clnt", "clnt")
	invalidated, _ := Parse("candidate:bb 1 udp 1 198.51.100.1 5 typ relay raddr 0.0.0.0 rport 0", "clnt")
	other, _ := Parse("candidate:aa 1 udp 37748479 198.51.100.1 5 typ srflx raddr 0.0.0.0 rport 0", "clnt")
	if signalled.Key() != invalidated.Key() || signalled.Key() == other.Key() {
		t.Fatal("foundation, priority and ufrag must not matter, the type must")
	}
}

func TestT32OptimisticCandidates(t *testing.T) {
	srflx := func(s string) Candidate { return Candidate{Type: ServerReflexive, Addr: ap(s), Priority: 7} }
	host := func(s string) Candidate { return Candidate{Type: Host, Addr: ap(s)} }
	for _, c := range []struct {
		name string
		in   []Candidate
		want []Candidate
	}{
		{"public address with host port", []Candidate{host("10.0.0.1:52625"), srflx("203.0.113.1:40000")}, []Candidate{srflx("203.0.113.1:52625")}},
		{"nothing without a public address", []Candidate{host("10.0.0.1:52625")}, nil},
		{"nothing that is known", []Candidate{host("10.0.0.1:52625"), srflx("203.0.113.1:52625")}, nil},
		{"nothing for IPv6", []Candidate{host("[fd00::1]:52625"), srflx("[2001:db8::1]:40000"), srflx("203.0.113.1:4")}, nil},
		{"hosts with one port count once", []Candidate{host("10.0.0.1:5"), host("10.0.0.2:5"), srflx("203.0.113.1:4")}, []Candidate{srflx("203.0.113.1:5")}},
		{"two at most", []Candidate{host("10.0.0.1:1"), host("10.0.0.1:2"), host("10.0.0.1:3"), srflx("203.0.113.1:4")},
			[]Candidate{srflx("203.0.113.1:1"), srflx("203.0.113.1:2")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Optimistic(c.in); !slices.Equal(got, c.want) {
				t.Fatalf("got %v", got)
			}
		})
	}
}

func FuzzParseCandidate(f *testing.F) { fuzzParseCandidate(f) }

func TestHammerParseCandidate(t *testing.T) { hammer.Test(t, "FuzzParseCandidate", fuzzParseCandidate) }

func fuzzParseCandidate(f hammer.F) {
	f.Add("candidate:fffeff7e2d04b4aee1b48f0 1 udp 2130706175 10.0.0.5 52625 typ host ufrag clnt")
	f.Add("candidate:1 1 UDP 37748735 2001:db8::1 9 typ relay raddr :: rport 0 generation 0 ufrag clnt")
	f.Add("candidate:1 1 udp 1 ::ffff:10.0.0.1 9 typ srflx raddr 0.0.0.0 rport 0")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Parse(s, "clnt")
		if err != nil {
			if !errors.Is(err, ErrCandidate) || c != (Candidate{}) {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		if !Usable(c.Addr) || c.Addr.Addr().Is4In6() {
			t.Fatalf("accepted %s", c.Addr)
		}
		if _, err := libraryCandidate(c); err != nil {
			t.Fatalf("the library refuses %+v: %v", c, err)
		}
		again, err := Parse(c.Marshal("clnt"), "clnt")
		if err != nil || again.Type != c.Type || again.Addr != c.Addr || again.Priority != c.Priority {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
