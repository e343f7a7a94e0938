package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"firezone-gateway/internal/packet"
)

// Rules 50, 52 and 53: pairs are made per family in sorted order, cycling; a
// family without records leaves its proxy addresses known but unreachable.
func TestAssignPairsAddresses(t *testing.T) {
	both := slices.Concat(proxies4, proxies6)
	for _, tc := range []struct {
		name           string
		proxies, reals []netip.Addr
		want           map[string]string // an unmapped real address is ""
	}{
		{
			"two IPv4 addresses are shared by four proxies and IPv6 is known but unreachable", both, addrs("10.0.0.9", "10.0.0.5"),
			map[string]string{
				"100.96.0.1": "10.0.0.5", "100.96.0.2": "10.0.0.9", "100.96.0.3": "10.0.0.5", "100.96.0.4": "10.0.0.9",
				"fd00:2021:1111:8000::": "", "fd00:2021:1111:8000::1": "", "fd00:2021:1111:8000::2": "", "fd00:2021:1111:8000::3": "",
			},
		},
		{
			"IPv4 proxies of a domain with IPv6 addresses only are unreachable", both, addrs("2001:db8::5"),
			map[string]string{
				"100.96.0.1": "", "100.96.0.2": "", "100.96.0.3": "", "100.96.0.4": "",
				"fd00:2021:1111:8000::": "2001:db8::5", "fd00:2021:1111:8000::1": "2001:db8::5", "fd00:2021:1111:8000::2": "2001:db8::5", "fd00:2021:1111:8000::3": "2001:db8::5",
			},
		},
		{
			"a domain without records is known but unreachable", both[3:5], nil,
			map[string]string{"100.96.0.4": "", "fd00:2021:1111:8000::": ""},
		},
		{
			"more addresses than proxies: the smallest are used, whatever their order", addrs("100.96.0.9", "100.96.0.8", "100.96.0.9"), addrs("10.0.0.30", "10.0.0.4", "9.0.0.1", "10.0.0.4"),
			map[string]string{"100.96.0.8": "9.0.0.1", "100.96.0.9": "10.0.0.4"},
		},
		{
			"each family is paired on its own", addrs("fd00:2021:1111:8000::2", "100.96.0.2", "fd00:2021:1111:8000::1", "100.96.0.1"), addrs("2001:db8::2", "10.0.0.2", "2001:db8::1", "10.0.0.1"),
			map[string]string{
				"100.96.0.1": "10.0.0.1", "100.96.0.2": "10.0.0.2",
				"fd00:2021:1111:8000::1": "2001:db8::1", "fd00:2021:1111:8000::2": "2001:db8::2",
			},
		},
		{
			"the ends of the proxy ranges are proxy addresses", addrs("100.96.0.0", "100.127.255.255", "fd00:2021:1111:8000::", "fd00:2021:1111:8000::1f:ffff"), addrs("10.0.0.1", "2001:db8::1"),
			map[string]string{
				"100.96.0.0": "10.0.0.1", "100.127.255.255": "10.0.0.1",
				"fd00:2021:1111:8000::": "2001:db8::1", "fd00:2021:1111:8000::1f:ffff": "2001:db8::1",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, Config{})
			r.assign("example.com", tc.proxies, tc.reals)
			got := map[string]string{}
			for m := range r.Mappings() {
				got[m.Proxy.String()] = ""
				if m.Real.IsValid() {
					got[m.Proxy.String()] = m.Real.String()
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Fatalf("got %v, want %v", got, tc.want)
			}
			for proxy, want := range tc.want {
				a := addr(proxy)
				if want == "" {
					r.wantToResource(out(packet.KindTCP, 5000, a, flagSYN), Unresolved)
					if got := r.Open(parse(t, out(packet.KindTCP, 5000, a, flagSYN)), r.now); got != Unresolved {
						t.Fatalf("open: %v", got)
					}
				} else if got, _ := r.sent(packet.KindTCP, 5000, a); got.String() != want {
					t.Fatalf("%v leads to %v, want %v", proxy, got, want)
				}
			}
		})
	}
}

// Defects 1 and 8: addresses outside the proxy ranges are refused, and what is
// refused changes nothing.
func TestAssignRefusesWithoutChangingAnything(t *testing.T) {
	for _, tc := range []struct {
		name    string
		config  Config
		proxies []netip.Addr
		want    error
	}{
		{"a tunnel address", Config{}, addrs("100.96.0.1", "100.64.0.1"), ErrNotProxy},
		{"a public address", Config{}, addrs("192.0.2.1"), ErrNotProxy},
		{"an address behind the IPv4 range", Config{}, addrs("100.128.0.0"), ErrNotProxy},
		{"an address before the IPv6 range", Config{}, addrs("fd00:2021:1111:7fff:ffff:ffff:ffff:ffff"), ErrNotProxy},
		{"an address behind the IPv6 range", Config{}, addrs("fd00:2021:1111:8000::20:0"), ErrNotProxy},
		{"a proxy address in mapped form", Config{}, addrs("::ffff:100.96.0.1"), ErrNotProxy},
		{"a proxy address with a zone", Config{}, addrs("fd00:2021:1111:8000::1%eth0"), ErrNotProxy},
		{"no address", Config{}, []netip.Addr{{}}, ErrNotProxy},
		{"more than there is room for", Config{MaxProxies: 4}, addrs("100.96.0.9"), ErrTooManyProxies},
		{"more than there is room for after a reset", Config{MaxProxies: 4}, addrs("100.96.0.1", "100.96.0.6", "100.96.0.7", "100.96.0.8", "100.96.0.9"), ErrTooManyProxies},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, tc.config)
			r.assign("example.com", proxies4, addrs("10.0.0.5"))
			r.sent(packet.KindTCP, 5000, proxies4[0])
			before := r.Stats()

			domain := "other.example.com" // which would reset the table
			if tc.want == ErrTooManyProxies && len(tc.proxies) == 1 {
				domain = "example.com"
			}
			_, err := r.Assign(Assignment{"res", domain, tc.proxies, addrs("10.0.0.6")})
			if !errors.Is(err, tc.want) {
				t.Fatalf("got error %v, want %v", err, tc.want)
			}
			if after := r.Stats(); after != before {
				t.Fatalf("stats were %+v, are %+v", before, after)
			}
			r.wantToResource(out(packet.KindTCP, 5000, proxies4[0], ack), Translated)
		})
	}
}

// Rule 54: repeating a set-up keeps sessions, new ones use the new address.
func TestAssigningTheSameDomainAgain(t *testing.T) {
	r := newRig(t, Config{})
	r.assign("example.com", proxies4, addrs("10.0.0.5"))
	r.sent(packet.KindTCP, 5000, proxies4[0])
	first := r.Lookup(proxies4[0])

	if got := r.assign("EXAMPLE.com", proxies4, addrs("10.0.0.6")); got.Reset || got.Resolved != 4 {
		t.Fatalf("got %+v", got)
	}
	if got, _ := r.sent(packet.KindTCP, 5000, proxies4[0]); got != addr("10.0.0.5") {
		t.Fatalf("running session leads to %v", got)
	}
	if got, _ := r.sent(packet.KindTCP, 5001, proxies4[0]); got != addr("10.0.0.6") {
		t.Fatalf("new session leads to %v", got)
	}
	if v, got := r.received(in(packet.KindTCP, addr("10.0.0.5"), 5000, ack)); got != Translated || v.Src != proxies4[0] {
		t.Fatalf("reply of the old address: %v from %v", got, v.Src)
	}
	if second := r.Lookup(proxies4[0]); second.Version <= first.Version || first.Real != addr("10.0.0.5") {
		t.Fatalf("mapping was %+v, is %+v", first, second)
	}

	// Steps 12 and 14 of dataplane §2.1 are in that order.
	r.assign("example.com", proxies4, nil)
	r.wantToResource(out(packet.KindTCP, 5000, proxies4[0], ack), Unresolved)
	r.assign("example.com", proxies4, addrs("10.0.0.7"))
	if got, _ := r.sent(packet.KindTCP, 5000, proxies4[0]); got != addr("10.0.0.5") {
		t.Fatalf("running session leads to %v after its domain came back", got)
	}
}

// Rule 55: a proxy address that is used again for another domain clears NAT and
// map of the client, the memory of ended sessions included.
func TestAssigningAProxyAddressToAnotherDomain(t *testing.T) {
	r := newRig(t, Config{})
	r.assign("example.com", proxies4[:2], addrs("10.0.0.5"))
	r.sent(packet.KindTCP, 5000, proxies4[0])
	r.sent(packet.KindUDP, 5000, proxies4[0])
	r.wait(UDPIdle)
	r.Sweep(r.now)

	got := r.assign("example.org", proxies4[1:3], addrs("10.0.0.6"))
	if want := (Assigned{Resolved: 2, Reset: true}); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if r.Lookup(proxies4[0]) != nil {
		t.Fatal("the old map is still there")
	}
	r.wantToResource(out(packet.KindTCP, 5000, proxies4[0], ack), Unresolved)
	r.wantToClient(in(packet.KindTCP, addr("10.0.0.5"), 5000, ack), Untouched)
	r.wantToClient(in(packet.KindUDP, addr("10.0.0.5"), 5000, 0), Untouched)
	if got, _ := r.sent(packet.KindTCP, 5000, proxies4[1]); got != addr("10.0.0.6") {
		t.Fatalf("new domain leads to %v", got)
	}
	if s := r.Stats(); s.Resets != 1 || s.Sessions != 1 || s.Proxies != 2 || s.Remembered != 0 {
		t.Fatalf("stats are %+v", s)
	}
}

// Rule 56: two DNS resources may share a proxy address of the same domain.
func TestResourcesShareAProxyAddress(t *testing.T) {
	r := newRig(t, Config{})
	r.assignTo("a", "example.com", proxies4[:2], addrs("10.0.0.5"))
	r.sent(packet.KindTCP, 5000, proxies4[0])
	if got := r.assignTo("b", "example.com", proxies4[:1], addrs("10.0.0.5")); got.Reset {
		t.Fatal("another resource of the same domain reset the table")
	}
	r.assignTo("a", "example.com", proxies4[:1], addrs("10.0.0.5"))
	for i, want := range [][]string{{"a", "b"}, {"a"}} {
		if got := r.Lookup(proxies4[i]).Resources; !slices.Equal(got, want) {
			t.Fatalf("resources of %v are %v, want %v", proxies4[i], got, want)
		}
	}
	r.wantToResource(out(packet.KindTCP, 5000, proxies4[0], ack), Translated)

	for i := range 2 * maxShared {
		r.assignTo(fmt.Sprint("c", i), "example.com", proxies4[:1], addrs("10.0.0.5"))
	}
	if got := r.Lookup(proxies4[0]).Resources; len(got) != maxShared || got[maxShared-1] != fmt.Sprint("c", 2*maxShared-1) {
		t.Fatalf("resources are %v", got)
	}
}

func TestTakingResourcesAway(t *testing.T) {
	setup := func(t *testing.T) *rig {
		r := newRig(t, Config{})
		r.assignTo("a", "example.com", proxies4[:2], addrs("10.0.0.5"))
		r.assignTo("b", "example.com", proxies4[1:3], addrs("10.0.0.6"))
		for i, proxy := range proxies4[:3] {
			r.sent(packet.KindUDP, 5000+uint16(i), proxy)
		}
		return r
	}
	t.Run("invalidating ends sessions of addresses that nobody else has, and keeps the map", func(t *testing.T) {
		r := setup(t)
		if got := r.Invalidate("a"); got != 1 {
			t.Fatalf("%d sessions ended", got)
		}
		r.wantToResource(out(packet.KindUDP, 5000, proxies4[0], 0), NeedSession)
		r.wantToResource(out(packet.KindUDP, 5001, proxies4[1], 0), Translated)
		r.wantToClient(in(packet.KindUDP, addr("10.0.0.5"), 5000, 0), Ended)
		r.wantToClient(in(packet.KindUDP, addr("10.0.0.6"), 5001, 0), Translated)
	})
	t.Run("removing unmaps addresses that nobody else has", func(t *testing.T) {
		r := setup(t)
		if got := r.Remove("a"); got != 1 {
			t.Fatalf("%d sessions ended", got)
		}
		if r.Lookup(proxies4[0]) != nil || r.Lookup(proxies4[1]) == nil || r.Stats().Proxies != 2 {
			t.Fatal("wrong addresses were unmapped")
		}
		if got := r.Lookup(proxies4[1]).Resources; !slices.Equal(got, []string{"b"}) {
			t.Fatalf("resources are %v", got)
		}
		r.wantToResource(out(packet.KindUDP, 5000, proxies4[0], 0), Unresolved)
		r.wantToResource(out(packet.KindUDP, 5001, proxies4[1], 0), Translated)
		if got := r.Remove("b"); got != 2 || r.Stats().Proxies != 0 {
			t.Fatalf("%d sessions ended, %+v", got, r.Stats())
		}
	})
	t.Run("an unknown resource changes nothing", func(t *testing.T) {
		r := setup(t)
		before := r.Stats()
		if r.Invalidate("x") != 0 || r.Remove("x") != 0 || r.Stats() != before {
			t.Fatal("something changed")
		}
	})
}

// Defect 13: addresses that a gateway must not forward to are not.
func TestAssignVetsRealAddresses(t *testing.T) {
	for _, tc := range []struct {
		name, addr string
		want       bool
	}{
		{"a public address", "192.0.2.1", true},
		{"a private address", "10.0.0.1", true},
		{"a unique local address", "fd00::1", true},
		{"a link-local address, where clouds serve metadata", "169.254.169.254", true},
		{"IPv4 loopback", "127.0.0.1", false},
		{"IPv6 loopback", "::1", false},
		{"IPv4 unspecified", "0.0.0.0", false},
		{"IPv6 unspecified", "::", false},
		{"IPv4 multicast", "224.0.0.1", false},
		{"IPv6 multicast", "ff02::1", false},
		{"broadcast", "255.255.255.255", false},
		{"an IPv4-mapped address", "::ffff:10.0.0.1", false},
		{"an address with a zone", "fe80::1%eth0", false},
		{"an IPv4 tunnel address", "100.64.0.1", false},
		{"an IPv6 tunnel address", "fd00:2021:1111::1", false},
		{"an IPv4 proxy address", "100.96.0.1", false},
		{"an IPv6 proxy address", "fd00:2021:1111:8000::1", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := addr(tc.addr)
			if got := Forwardable(a); got != tc.want {
				t.Fatalf("forwardable: %v", got)
			}
			r := newRig(t, Config{})
			proxy := proxies4[0]
			if a.Is6() {
				proxy = proxies6[0]
			}
			want := Assigned{Resolved: 1}
			if !tc.want {
				want = Assigned{Unresolved: 1, Refused: 1}
			}
			if got := r.assign("example.com", []netip.Addr{proxy}, []netip.Addr{a}); got != want {
				t.Fatalf("got %+v, want %+v", got, want)
			}
			if r.real(proxy).IsValid() != tc.want {
				t.Fatal("mapping does not follow")
			}
		})
	}
}
