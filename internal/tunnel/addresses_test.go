package tunnel

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"firezone-gateway/internal/policy"
)

func TestAddressesBehaveLikeAMap(t *testing.T) {
	// The ends of the ranges and of a block, and neighbours beyond them.
	var in, out []netip.Addr
	for _, s := range []string{
		"100.64.0.0", "100.64.0.63", "100.64.0.64", "100.65.7.9", "100.95.255.255",
		"fd00:2021:1111::", "fd00:2021:1111::3f", "fd00:2021:1111::40", "fd00:2021:1111::1:709", "fd00:2021:1111::1f:ffff",
	} {
		in = append(in, netip.MustParseAddr(s))
	}
	for _, s := range []string{
		"100.63.255.255", "100.96.0.0", "0.0.0.0", "::", "fd00:2021:1111::20:0", "fd00:2021:1110:ffff::", "::ffff:100.64.0.63",
		"fd00:2021:1111:8000::",
	} {
		out = append(out, netip.MustParseAddr(s))
	}
	rapid.Check(t, func(t *rapid.T) {
		table, model := new(addresses), map[netip.Addr]*Client{}
		t.Repeat(map[string]func(*rapid.T){
			"put or delete": func(t *rapid.T) {
				a := rapid.SampledFrom(in).Draw(t, "address")
				if model[a] != nil {
					table.delete(a)
					delete(model, a)
					return
				}
				model[a] = new(Client)
				table.put(a, model[a])
			},
			"": func(t *rapid.T) {
				for _, a := range in {
					if table.get(a) != model[a] {
						t.Fatalf("%v: another client", a)
					}
				}
			},
		})
		for _, a := range out {
			if table.get(a) != nil {
				t.Fatalf("%v: a client", a)
			}
		}
		for a := range model {
			table.delete(a)
		}
		for i := range table.v4 {
			if table.v4[i].Load() != nil || table.v6[i].Load() != nil {
				t.Fatal("a block stays")
			}
		}
	})
}

func TestTunnelRangesHaveTheHostBits(t *testing.T) {
	if policy.TunnelV4.Bits()+hostBits != 32 || policy.TunnelV6.Bits()+hostBits != 128 {
		t.Errorf("%v and %v do not leave %d bits", policy.TunnelV4, policy.TunnelV6, hostBits)
	}
}
