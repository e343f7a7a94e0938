package dns

import (
	"fmt"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// records parses records in the form of zone files.
func records(texts ...string) []dns.RR {
	var rrs []dns.RR
	for _, s := range texts {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		rrs = append(rrs, rr)
	}
	return rrs
}

func chain(n int) []string {
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("c%d.example. CNAME c%d.example.", i, i+1))
	}
	return append(lines, fmt.Sprintf("c%d.example. A 192.0.2.1", n))
}

func TestAddressesOfAnAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, asked string
		qtype       uint16
		records     []string
		want        []string
	}{
		{"none", "a.example", dns.TypeA, nil, nil},
		{"several", "a.example", dns.TypeA, []string{"a.example. A 192.0.2.2", "a.example. A 192.0.2.1"}, []string{"192.0.2.2", "192.0.2.1"}},
		{"IPv6", "a.example", dns.TypeAAAA, []string{"a.example. AAAA 2001:db8::1"}, []string{"2001:db8::1"}},
		{"other letter case", "a.example", dns.TypeA, []string{"A.Example. A 192.0.2.1"}, []string{"192.0.2.1"}},
		{"the other family is not asked for", "a.example", dns.TypeA, []string{"a.example. AAAA 2001:db8::1"}, nil},
		{"of another name", "a.example", dns.TypeA, []string{"b.example. A 192.0.2.1"}, nil},
		{"of another class", "a.example", dns.TypeA, []string{"a.example. CH A 192.0.2.1"}, nil},
		{"through an alias", "a.example", dns.TypeA, []string{"a.example. CNAME B.example.", "b.example. A 192.0.2.1"}, []string{"192.0.2.1"}},
		{"through an alias behind its target", "a.example", dns.TypeA, []string{"b.example. A 192.0.2.1", "a.example. CNAME b.example."}, []string{"192.0.2.1"}},
		{"through aliases", "a.example", dns.TypeAAAA, []string{"a.example. CNAME b.example.", "b.example. CNAME c.example.", "c.example. AAAA 2001:db8::1"}, []string{"2001:db8::1"}},
		{"through an alias of another class", "a.example", dns.TypeA, []string{"a.example. CH CNAME b.example.", "b.example. A 192.0.2.1"}, nil},
		{"an alias without target", "a.example", dns.TypeA, []string{"a.example. CNAME b.example."}, nil},
		{"an alias of itself", "a.example", dns.TypeA, []string{"a.example. CNAME a.example."}, nil},
		{"aliases in a circle", "a.example", dns.TypeA, []string{"a.example. CNAME b.example.", "b.example. CNAME a.example."}, nil},
		{"the longest chain", "c0.example", dns.TypeA, chain(maxChain - 1), []string{"192.0.2.1"}},
		{"a longer chain", "c0.example", dns.TypeA, chain(maxChain), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := question(tc.asked, tc.qtype)
			got := addresses(unpacked(t, answerTo(q, records(tc.records...)...)))
			if !slices.Equal(got, addrs(tc.want...)) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
