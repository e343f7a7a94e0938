package packet

import (
	"testing"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet/packettest"
)

func BenchmarkParse(b *testing.B) {
	for name, p := range map[string][]byte{
		"tcp4":   packettest.TCP(from4, to4, 16, make([]byte, 1200)),
		"tcp6":   packettest.TCP(from6, to6, 16, make([]byte, 1200)),
		"error4": packettest.Unreachable(host4, client4, packettest.UDP(from4, to4, nil)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var v View
			for b.Loop() {
				if v.Parse(p) != drop.None {
					b.Fatal("refused")
				}
			}
		})
	}
}

func BenchmarkChecksum1280(b *testing.B) {
	p := make([]byte, MaxSize)
	b.SetBytes(MaxSize)
	var sum uint16
	for b.Loop() {
		sum += Sum(0).Bytes(p).Checksum()
	}
	_ = sum
}

func BenchmarkRewrite(b *testing.B) {
	for name, p := range map[string][]byte{
		"tcp4": packettest.TCP(from4, to4, 16, make([]byte, 1200)),
		"tcp6": packettest.TCP(from6, to6, 16, make([]byte, 1200)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var v View
			if v.Parse(p) != drop.None {
				b.Fatal("refused")
			}
			a, other := v.Dst, v.Src
			for b.Loop() {
				v.SetDestination(other)
				v.SetSourcePort(v.SrcPort + 1)
				a, other = other, a
			}
		})
	}
}

func BenchmarkAppendUnreachable(b *testing.B) {
	for name, p := range map[string][]byte{
		"ipv4": packettest.TCP(from4, to4, 16, make([]byte, 1200)),
		"ipv6": packettest.TCP(from6, to6, 16, make([]byte, 1200)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var v View
			if v.Parse(p) != drop.None {
				b.Fatal("refused")
			}
			buf := make([]byte, 0, MaxSize)
			for b.Loop() {
				buf = AppendUnreachable(buf[:0], &v, Prohibited)
			}
		})
	}
}
