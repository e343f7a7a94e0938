package dns

import (
	"net/netip"
	"slices"
	"testing"
)

func TestScheduleSaysWhoIsAskedNext(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	var five []netip.Addr
	for i := range 5 {
		five = append(five, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	for _, tc := range []struct {
		name    string
		servers []netip.Addr
		repeat  bool
		failed  map[int]netip.Addr // after so many were taken, this one failed
		want    []netip.Addr
	}{
		{"nobody", nil, true, nil, nil},
		{"over UDP one is asked four times", []netip.Addr{a}, true, nil, []netip.Addr{a, a, a, a}},
		{"over TCP one is asked once", []netip.Addr{a}, false, nil, []netip.Addr{a}},
		{"over UDP two are asked twice in turns", []netip.Addr{a, b}, true, nil, []netip.Addr{a, b, a, b}},
		{"over UDP three are asked, and the best again", []netip.Addr{a, b, c}, true, nil, []netip.Addr{a, b, c, a}},
		{"over TCP each is asked once", []netip.Addr{a, b, c}, false, nil, []netip.Addr{a, b, c}},
		{"five are all asked", five, true, nil, five},
		{"who failed is not asked again", []netip.Addr{a, b}, true, map[int]netip.Addr{1: a}, []netip.Addr{a, b, b, b}},
		{"all failed", []netip.Addr{a}, true, map[int]netip.Addr{1: a}, []netip.Addr{a}},
		{"the second failed after the third was asked", []netip.Addr{a, b, c}, true, map[int]netip.Addr{3: b}, []netip.Addr{a, b, c, a}},
		{"who was not asked yet failed elsewhere", []netip.Addr{a, b, c}, false, map[int]netip.Addr{1: b}, []netip.Addr{a, c}},
		{"an unknown one failed", []netip.Addr{a}, false, map[int]netip.Addr{0: b}, []netip.Addr{a}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := schedule{servers: slices.Clone(tc.servers), repeat: tc.repeat}
			var got []netip.Addr
			for n := 0; n < 100; n++ {
				if f, ok := tc.failed[n]; ok {
					s.failed(f)
				}
				server, ok := s.take()
				if !ok {
					break
				}
				got = append(got, server)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("asked %v, want %v", got, tc.want)
			}
		})
	}
}
