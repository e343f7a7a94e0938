package relay

import (
	"net/netip"
	"testing"

	"github.com/pion/stun/v3"
)

func TestFamiliesOfAnAllocation(t *testing.T) {
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	family := func(attribute stun.AttrType, value ...byte) stun.RawAttribute {
		return stun.RawAttribute{Type: attribute, Value: value}
	}
	const requested, additional = stun.AttrRequestedAddressFamily, attrAdditionalAddressFamily
	// A result is families or, as in the answer, a code.
	type result struct {
		families families
		code     stun.ErrorCode
	}
	unsupported, bad := result{code: stun.CodeAddrFamilyNotSupported}, result{code: stun.CodeBadRequest}
	four, six, both := result{families: onlyIPv4}, result{families: onlyIPv6}, result{families: bothFamilies}
	for _, test := range []struct {
		name            string
		attributes      []stun.RawAttribute
		has4, has6, has result // of relays of IPv4, IPv6, and both
	}{
		{"none asked for", nil, four, unsupported, four},
		{"IPv4 asked for", []stun.RawAttribute{family(requested, 1, 0, 0, 0)}, four, unsupported, four},
		{"IPv6 asked for", []stun.RawAttribute{family(requested, 2, 0, 0, 0)}, unsupported, six, six},
		{"IPv6 in addition", []stun.RawAttribute{family(additional, 2, 0, 0, 0)}, four, six, both},
		{"IPv4 in addition", []stun.RawAttribute{family(additional, 1, 0, 0, 0)}, bad, bad, bad},
		{"both attributes", []stun.RawAttribute{family(requested, 1, 0, 0, 0), family(additional, 2, 0, 0, 0)}, bad, bad, bad},
		{"a family that there is not", []stun.RawAttribute{family(requested, 3, 0, 0, 0)}, unsupported, unsupported, unsupported},
		{"a family cut short", []stun.RawAttribute{family(requested, 1)}, bad, bad, bad},
		{"an addition cut short", []stun.RawAttribute{family(additional)}, bad, bad, bad},
	} {
		m := stun.New()
		for _, attribute := range test.attributes {
			m.Add(attribute.Type, attribute.Value)
		}
		for _, relay := range []struct {
			kind    string
			options Options
			want    result
		}{
			{"IPv4", Options{IPv4: one}, test.has4},
			{"IPv6", Options{IPv6: other}, test.has6},
			{"both families", Options{IPv4: one, IPv6: other}, test.has},
		} {
			var got result
			got.families, got.code = (&Server{options: relay.options}).familiesOf(m)
			if got != relay.want {
				t.Errorf("%s of a relay of %s: %+v, want %+v", test.name, relay.kind, got, relay.want)
			}
		}
	}
}
