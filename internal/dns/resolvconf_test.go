package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/policy"
)

func TestParseResolvConf(t *testing.T) {
	many := func(n int) (lines string, servers []netip.Addr) {
		var b strings.Builder
		for i := range n {
			a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			fmt.Fprintf(&b, "nameserver %v\n", a)
			servers = append(servers, a)
		}
		return b.String(), servers
	}
	seventeen, servers := many(maxNameservers + 1)
	for _, tc := range []struct {
		name, text string
		want       resolvConf
	}{
		{"nothing", "", resolvConf{ndots: 1}},
		{"servers in the order of the file", "nameserver 192.0.2.2\nnameserver 192.0.2.1\n", resolvConf{nameservers: addrs("192.0.2.2", "192.0.2.1"), ndots: 1}},
		{"a last line without end", "nameserver 192.0.2.1", resolvConf{nameservers: addrs("192.0.2.1"), ndots: 1}},
		{"line ends of another system", "nameserver 192.0.2.1\r\nsearch a.example\r\n", resolvConf{nameservers: addrs("192.0.2.1"), search: []string{"a.example"}, ndots: 1}},
		{"tabs and spaces", " \tnameserver \t 192.0.2.1 \t\n", resolvConf{nameservers: addrs("192.0.2.1"), ndots: 1}},
		{"comments", "# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nnameserver 192.0.2.3 # here\nnameserver 192.0.2.4;there\n", resolvConf{nameservers: addrs("192.0.2.3", "192.0.2.4"), ndots: 1}},
		{"more than the address in a line", "nameserver 192.0.2.1 192.0.2.2\n", resolvConf{nameservers: addrs("192.0.2.1"), ndots: 1}},
		{"a server twice", "nameserver 192.0.2.1\nnameserver 192.0.2.1\n", resolvConf{nameservers: addrs("192.0.2.1"), ndots: 1}},
		{"IPv6 with and without zone", "nameserver 2001:db8::1\nnameserver fe80::1%eth0\n", resolvConf{nameservers: addrs("2001:db8::1", "fe80::1%eth0"), ndots: 1}},
		{"IPv4 in IPv6 form", "nameserver ::ffff:192.0.2.1\n", resolvConf{nameservers: addrs("192.0.2.1"), ndots: 1}},
		{"servers on this host", "nameserver 127.0.0.53\nnameserver ::1\n", resolvConf{nameservers: addrs("127.0.0.53", "::1"), ndots: 1}},
		{"bad addresses", "nameserver\nnameserver localhost\nnameserver 192.0.2\nnameserver 192.0.2.1:53\nnameserver [::1]\nnameserver 010.0.0.1\n", resolvConf{ndots: 1}},
		{"multicast", "nameserver 224.0.0.251\nnameserver ff02::fb\n", resolvConf{ndots: 1}},
		{"tunnel addresses", "nameserver 100.64.0.1\nnameserver fd00:2021:1111::1\nnameserver fd00:2021:1111::1%eth0\n", resolvConf{ndots: 1}},
		{"a site that uses the rest of the shared range", "nameserver 100.100.100.100\n", resolvConf{nameservers: addrs("100.100.100.100"), ndots: 1}},
		{"more servers than are taken", seventeen, resolvConf{nameservers: servers[:maxNameservers], ndots: 1}},
		{"search domains", "search A.example b.example.\n", resolvConf{search: []string{"a.example", "b.example"}, ndots: 1}},
		{"the last search counts", "search a.example\nsearch b.example\n", resolvConf{search: []string{"b.example"}, ndots: 1}},
		{"domain is search", "search a.example\ndomain b.example\n", resolvConf{search: []string{"b.example"}, ndots: 1}},
		{"bad search domains", "search .. a..b -ok.example ä.example . a.example\n", resolvConf{search: []string{"-ok.example", "a.example"}, ndots: 1}},
		{"more search domains than are taken", "search" + strings.Repeat(" a", maxSearch+1) + "\n", resolvConf{search: slices.Repeat([]string{"a"}, maxSearch), ndots: 1}},
		{"ndots among options", "options timeout:1 ndots:3 rotate\n", resolvConf{ndots: 3}},
		{"ndots above what there is", "options ndots:99\n", resolvConf{ndots: maxNdots}},
		{"bad ndots", "options ndots:-1 ndots: ndots:x\n", resolvConf{ndots: 1}},
		{"lines of other programs", "sortlist 192.0.2.0\nnonsense\n\x00\xff\nnameserver 192.0.2.1\n", resolvConf{nameservers: addrs("192.0.2.1"), ndots: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := parseResolvConf([]byte(tc.text))
			if !slices.Equal(got.nameservers, tc.want.nameservers) || !slices.Equal(got.search, tc.want.search) || got.ndots != tc.want.ndots {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func FuzzResolvConf(f *testing.F) { fuzzResolvConf(f) }

func TestHammerResolvConf(t *testing.T) { hammer.Test(t, "FuzzResolvConf", fuzzResolvConf) }

func fuzzResolvConf(f hammer.F) {
	for _, seed := range []string{
		"nameserver 192.0.2.1\nsearch a.example b\noptions ndots:2\n",
		"nameserver fe80::1%eth0 # c\r\ndomain x.\n", "options ndots:99999999999999999999", ";\n#\n\x00",
	} {
		f.Add([]byte(seed), "a.b")
	}
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		c := parseResolvConf(text)
		if len(c.nameservers) > maxNameservers || len(c.search) > maxSearch || c.ndots < 0 || c.ndots > maxNdots {
			t.Fatalf("bounds: %+v", c)
		}
		for i, a := range c.nameservers {
			if !a.IsValid() || a.Is4In6() || a.IsMulticast() || policy.IsTunnel(a.WithZone("")) || slices.Contains(c.nameservers[:i], a) {
				t.Fatalf("name server %v", a)
			}
		}
		canonical, ok := canonicalName(name)
		if !ok {
			return
		}
		names := c.candidates(canonical)
		if len(names) == 0 || len(names) > len(c.search)+1 {
			t.Fatalf("candidates: %q", names)
		}
		for _, n := range names {
			if got, ok := canonicalName(n); !ok || got != n || strings.HasSuffix(n, ".") {
				t.Fatalf("candidate %q of %q", n, canonical)
			}
		}
	})
}
