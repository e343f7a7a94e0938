package transport

import (
	"encoding/binary"
	"testing"

	"firezone-gateway/internal/hammer"
)

func TestClassify(t *testing.T) {
	stun := func(kind uint16, body int) []byte {
		b := make([]byte, stunHeader+body)
		binary.BigEndian.PutUint16(b, kind)
		binary.BigEndian.PutUint16(b[2:], uint16(body))
		binary.BigEndian.PutUint32(b[4:], stunCookie)
		return b
	}
	wireGuard := func(kind byte, n int) []byte {
		b := make([]byte, n)
		b[0] = kind
		return b
	}
	with := func(b []byte, i int, v byte) []byte {
		b[i] = v
		return b
	}
	cookieAsIndex := wireGuard(4, 32)
	binary.BigEndian.PutUint32(cookieAsIndex[4:], stunCookie)

	for _, tt := range []struct {
		name string
		b    []byte
		want Kind
	}{
		{"an empty datagram is unknown", nil, KindUnknown},
		{"three bytes are unknown", []byte{4, 0, 0}, KindUnknown},
		{"an initiation has 148 bytes", wireGuard(1, 148), KindWireGuard},
		{"an initiation of 147 bytes is unknown", wireGuard(1, 147), KindUnknown},
		{"a response has 92 bytes", wireGuard(2, 92), KindWireGuard},
		{"a response of 93 bytes is unknown", wireGuard(2, 93), KindUnknown},
		{"a cookie reply has 64 bytes", wireGuard(3, 64), KindWireGuard},
		{"a cookie reply of 60 bytes is unknown", wireGuard(3, 60), KindUnknown},
		{"a keepalive is the shortest transport message", wireGuard(4, 32), KindWireGuard},
		{"a transport message of 31 bytes is unknown", wireGuard(4, 31), KindUnknown},
		{"a full transport message is WireGuard", wireGuard(4, 1312), KindWireGuard},
		{"a set reserved byte is not WireGuard", with(wireGuard(4, 32), 3, 1), KindUnknown},
		{"type five is unknown", wireGuard(5, 64), KindUnknown},
		{"a session index equal to the STUN cookie is WireGuard", cookieAsIndex, KindWireGuard},
		{"a binding request without attributes is STUN", stun(0x0001, 0), KindSTUN},
		{"a binding success is STUN", stun(0x0101, 12), KindSTUN},
		{"a wrong cookie is unknown", with(stun(0x0001, 8), 5, 0), KindUnknown},
		{"a length that is not a multiple of four is unknown", stun(0x0001, 6), KindUnknown},
		{"a STUN message with trailing bytes is unknown", append(stun(0x0001, 8), 0, 0, 0, 0), KindUnknown},
		{"a truncated STUN header is unknown", stun(0x0001, 0)[:19], KindUnknown},
		{"ChannelData with exact length", []byte{0x40, 0, 0, 2, 7, 7}, KindChannelData},
		{"ChannelData without payload", []byte{0x4f, 0xff, 0, 0}, KindChannelData},
		{"padded ChannelData is unknown", []byte{0x40, 0, 0, 2, 7, 7, 0, 0}, KindUnknown},
		{"truncated ChannelData is unknown", []byte{0x40, 0, 0, 2, 7}, KindUnknown},
		{"a channel above 0x4fff is unknown", []byte{0x50, 0, 0, 0}, KindUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Classify(tt.b); got != tt.want {
				t.Errorf("Classify = %d, want %d", got, tt.want)
			}
		})
	}
}

func FuzzClassify(f *testing.F) { fuzzClassify(f) }

func TestHammerClassify(t *testing.T) { hammer.Test(t, "FuzzClassify", fuzzClassify) }

func fuzzClassify(f hammer.F) {
	f.Add([]byte{})
	f.Add([]byte{0x40, 0, 0, 1, 9})
	f.Add(append([]byte{4, 0, 0, 0}, make([]byte, 28)...))
	f.Add([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		switch Classify(b) {
		case KindWireGuard:
			if len(b) < 32 || b[0] < 1 || b[0] > 4 || b[1]|b[2]|b[3] != 0 {
				t.Errorf("not WireGuard: %x", b)
			}
		case KindSTUN:
			if len(b) < 20 || b[0] > 0x3f || int(binary.BigEndian.Uint16(b[2:])) != len(b)-20 {
				t.Errorf("not STUN: %x", b)
			}
		case KindChannelData:
			if b[0] < 0x40 || b[0] > 0x4f || int(binary.BigEndian.Uint16(b[2:])) != len(b)-4 {
				t.Errorf("not ChannelData: %x", b)
			}
		}
	})
}
