package transport

import (
	"net/netip"
	"testing"

	"firezone-gateway/internal/hammer"
)

func TestSockaddrComesBackAsOrigin(t *testing.T) {
	for _, s := range []string{"192.0.2.7:52625", "[2001:db8::1]:1", "[fe80::2%3]:65535", "[::ffff:192.0.2.7]:3478"} {
		want := unmap(netip.MustParseAddrPort(s))
		var to sockaddr
		to.set(want)
		var o origin
		o.setRemote(&to.raw, FamilyOf(want.Addr()))
		if got := o.remoteAddrPort(FamilyOf(want.Addr())); got != want {
			t.Errorf("%s came back as %v", s, got)
		}
	}
}

func TestControlMessages(t *testing.T) {
	var b [controlSpace]byte
	for _, tt := range []struct {
		name  string
		local string
		want  int
	}{
		{"IPv4 packet info", "192.0.2.7", 32},
		{"IPv6 packet info", "2001:db8::1", 40},
		{"no packet info for the unspecified address", "0.0.0.0", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			local := netip.MustParseAddr(tt.local)
			if n := putPacketInfo(b[:], local); n != tt.want {
				t.Errorf("putPacketInfo = %d, want %d", n, tt.want)
			}
		})
	}
	if n := putPacketInfo(b[:], netip.Addr{}); n != 0 {
		t.Errorf("putPacketInfo of no address = %d", n)
	}
}

func FuzzParseControl(f *testing.F) { fuzzParseControl(f) }

func TestHammerParseControl(t *testing.T) { hammer.Test(t, "FuzzParseControl", fuzzParseControl) }

func fuzzParseControl(f hammer.F) {
	var b [controlSpace]byte
	n := putPacketInfo(b[:], netip.MustParseAddr("192.0.2.7"))
	n += putSegmentSize(b[n:], 1312)
	f.Add(b[:n])
	f.Add(b[:n-1])
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		var local [16]byte
		if segment, ecn, _ := parseControl(b, &local); segment < 0 || ecn > ecnMask {
			t.Errorf("segment size %d", segment)
		}
	})
}
