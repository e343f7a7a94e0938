package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/hammer"
)

func TestParseHosts(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       hosts
	}{
		{"nothing", "", hosts{}},
		{"a name with aliases", "192.0.2.1 A.example a\n", hosts{"a.example": addrs("192.0.2.1"), "a": addrs("192.0.2.1")}},
		{"both families of a name", "192.0.2.1 a\n2001:db8::1 a\n", hosts{"a": addrs("192.0.2.1", "2001:db8::1")}},
		{"a trailing dot", "192.0.2.1 a.example.\n", hosts{"a.example": addrs("192.0.2.1")}},
		{"comments", "# 192.0.2.1 a\n192.0.2.2 b # c\n", hosts{"b": addrs("192.0.2.2")}},
		{"a semicolon is no comment", "192.0.2.1 a;b c\n", hosts{"c": addrs("192.0.2.1")}},
		{"bad addresses", "localhost a\n192.0.2 b\n", hosts{}},
		{"bad names", "192.0.2.1 a..b *.example c\n", hosts{"c": addrs("192.0.2.1")}},
		{"an address without name", "192.0.2.1\n", hosts{}},
		{"a zone", "fe80::1%eth0 a\n", hosts{"a": addrs("fe80::1%eth0")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := parseHosts([]byte(tc.text)); !maps.EqualFunc(got, tc.want, slices.Equal[[]netip.Addr]) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestHostsAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range maxHosts + 10 {
		fmt.Fprintf(&b, "192.0.2.1 n%d\n", i)
	}
	b.WriteString("192.0.2.2 n0\n")
	h := parseHosts([]byte(b.String()))
	if len(h) != maxHosts {
		t.Errorf("%d names are kept, want %d", len(h), maxHosts)
	}
	if len(h["n0"]) != 2 {
		t.Error("a known name got no further address")
	}
}

func FuzzHosts(f *testing.F) { fuzzHosts(f) }

func TestHammerHosts(t *testing.T) { hammer.Test(t, "FuzzHosts", fuzzHosts) }

func fuzzHosts(f hammer.F) {
	f.Add([]byte("192.0.2.1 a.example b # c\nfe80::1%eth0 d.\n"))
	f.Add([]byte("::1 localhost\r\n\xff\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for name, addrs := range parseHosts(text) {
			if got, ok := canonicalName(name); !ok || got != name || strings.HasSuffix(name, ".") || len(addrs) == 0 {
				t.Fatalf("%q: %v", name, addrs)
			}
			v4, v6, refused := vet(addrs, nil)
			if len(v4)+len(v6)+refused > len(addrs) {
				t.Fatalf("%v became %v, %v", addrs, v4, v6)
			}
		}
	})
}
