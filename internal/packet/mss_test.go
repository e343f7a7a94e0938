package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"firezone-gateway/internal/packet/packettest"
)

// syn returns a TCP packet with options, a multiple of four bytes.
func syn(flags byte, options ...byte) []byte {
	p := packettest.TCP(from4, to4, flags, options)
	p[32] = byte(20+len(options)) / 4 << 4
	p[36], p[37] = 0, 0
	v := View{B: p, Src: client4, Dst: host4}
	binary.BigEndian.PutUint16(p[36:], Sum(0).PseudoHeader(v.Src, v.Dst, TCP, len(p)-20).Bytes(p[20:]).Checksum())
	return p
}

func TestLimitMSS(t *testing.T) {
	tests := []struct {
		name     string
		flags    byte
		in, want []byte
	}{
		{"a SYN", 0x02, []byte{2, 4, 5, 0xb4}, []byte{2, 4, 4, 0xc4}},
		{"a SYN with ACK", 0x12, []byte{2, 4, 5, 0xb4}, []byte{2, 4, 4, 0xc4}},
		{"behind other options", 0x02, []byte{1, 1, 4, 2, 2, 4, 5, 0xb4}, []byte{1, 1, 4, 2, 2, 4, 4, 0xc4}},
		{"at an odd offset", 0x02, []byte{1, 2, 4, 5, 0xb4, 0, 0, 0}, []byte{1, 2, 4, 4, 0xc4, 0, 0, 0}},
		{"as large as it may be", 0x02, []byte{2, 4, 4, 0xc4}, []byte{2, 4, 4, 0xc4}},
		{"smaller", 0x02, []byte{2, 4, 2, 0x18}, []byte{2, 4, 2, 0x18}},
		{"without SYN", 0x10, []byte{2, 4, 5, 0xb4}, []byte{2, 4, 5, 0xb4}},
		{"behind the end", 0x02, []byte{0, 0, 0, 0, 2, 4, 5, 0xb4}, []byte{0, 0, 0, 0, 2, 4, 5, 0xb4}},
		{"of another length", 0x02, []byte{2, 3, 9, 1}, []byte{2, 3, 9, 1}},
		{"behind an option without length", 0x02, []byte{8, 0, 2, 4, 5, 0xb4, 0, 0}, []byte{8, 0, 2, 4, 5, 0xb4, 0, 0}},
		{"behind an option that is too long", 0x02, []byte{8, 9, 2, 4, 5, 0xb4, 0, 0}, []byte{8, 9, 2, 4, 5, 0xb4, 0, 0}},
		{"cut off", 0x02, []byte{1, 1, 1, 2}, []byte{1, 1, 1, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := mustParse(t, syn(tt.flags, tt.in...))
			v.LimitMSS(1220)
			if got := v.B[40:]; !bytes.Equal(got, tt.want) {
				t.Errorf("options % x, want % x", got, tt.want)
			}
			verify(t, "limited", v.B, v.Protocol, v.Transport)
		})
	}
	udp := packettest.UDP(from4, to4, []byte{0x02, 0x02, 2, 4, 5, 0xb4, 0, 0, 0, 0, 0, 0, 0, 0})
	v := mustParse(t, slices.Clone(udp))
	v.LimitMSS(1220)
	if !bytes.Equal(v.B, udp) {
		t.Error("changed a UDP packet")
	}
}
