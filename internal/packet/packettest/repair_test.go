package packettest

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
)

func TestRepair(t *testing.T) {
	from4, to4 := netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("198.51.100.2:53")
	from6, to6 := netip.MustParseAddrPort("[2001:db8::1]:1000"), netip.MustParseAddrPort("[2001:db8::2]:53")
	udp4, udp6 := UDP(from4, to4, []byte("hello")), UDP(from6, to6, []byte("hello"))
	fragment := Extend6(udp6, 44, []byte{17, 0, 0, 0, 0, 0, 0, 9})
	for _, tc := range []struct {
		name      string
		p         []byte
		transport int
		damaged   []int // what is overwritten
	}{
		{"UDP over IPv4", udp4, 20, []int{2, 3, 10, 11, 24, 25, 26, 27}},
		{"UDP over IPv6", udp6, 40, []int{4, 5, 44, 45, 46, 47}},
		{"TCP over IPv4", TCP(from4, to4, 2, []byte("odd")), 20, []int{2, 7, 11, 36}},
		{"TCP over IPv6", TCP(from6, to6, 2, []byte("odd")), 40, []int{5, 56}},
		{"ping over IPv4", Ping(from4.Addr(), to4.Addr(), 7, []byte("x")), 20, []int{10, 22, 23}},
		{"ping over IPv6", Ping(from6.Addr(), to6.Addr(), 7, []byte("x")), 40, []int{4, 42, 43}},
		{"behind options", Options4(udp4, []byte{1, 1, 1, 1}), 24, []int{2, 10, 28, 30}},
		{"a fragment", fragment, 48, []int{5, 42, 43, 52, 54}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := slices.Clone(tc.p)
			for _, at := range tc.damaged {
				p[at] ^= 0x0f
			}
			if bytes.Equal(p, tc.p) {
				t.Fatal("nothing was damaged")
			}
			Repair(p)
			protocol := p[9]
			if p[0]>>4 == 6 {
				if protocol = p[6]; protocol == 44 {
					protocol = p[40]
				}
			}
			if err := Verify(p, protocol, tc.transport); err != nil {
				t.Error(err)
			}
			if tc.name != "a fragment" && !bytes.Equal(p, tc.p) {
				t.Errorf("got\n%x, want\n%x", p, tc.p)
			}
		})
	}
	t.Run("a UDP checksum of 0 over IPv4 stays", func(t *testing.T) {
		p := slices.Clone(udp4)
		p[26], p[27] = 0, 0
		Repair(p)
		if p[26]|p[27] != 0 {
			t.Error("it was set")
		}
	})
	t.Run("what cannot be read is left alone", func(t *testing.T) {
		for _, b := range [][]byte{nil, make([]byte, 19), bytes.Repeat([]byte{0x60}, 39), bytes.Repeat([]byte{0x70}, 60), append([]byte{0x44}, udp4[1:]...), append([]byte{0x4f}, udp4[1:30]...)} {
			before := slices.Clone(b)
			Repair(b)
			if !bytes.Equal(b, before) {
				t.Errorf("%x became %x", before, b)
			}
		}
	})
}
