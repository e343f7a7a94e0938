package nat

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// errorAbout returns the ICMP error that routers send about a packet of the
// client that was translated, cut after length bytes.
func errorAbout(sent []byte, typ, code byte, rest uint32, length int) []byte {
	dst := client4
	if sent[0]>>4 == 6 {
		dst = client6
	}
	return packettest.ICMP(routerOf(dst), dst, typ, code, rest, sent[:min(length, len(sent))])
}

// Rule 65, defect 11, dataplane §3.7: errors of a session come from the proxy
// address with TTL 20, keep type, code and MTU, and quote what the client sent,
// quoted checksums included.
func TestErrorsQuoteWhatTheClientSent(t *testing.T) {
	type message struct {
		name      string
		typ, code byte
		rest      uint32
	}
	v4 := []message{{"port unreachable", 3, 3, 0}, {"fragmentation needed", 3, 4, 1200}, {"unknown code", 3, 99, 0}, {"time exceeded", 11, 0, 0}}
	v6 := []message{{"port unreachable", 1, 4, 0}, {"packet too big", 2, 0, 1280}, {"time exceeded", 3, 0, 0}}
	for _, proxy := range []netip.Addr{proxies4[1], proxies6[1]} {
		messages, ip := v4, 20
		if proxy.Is6() {
			messages, ip = v6, 40
		}
		for _, m := range messages {
			for _, kind := range kinds {
				for _, length := range []int{ip + 8, ip + 16, ip + 18, 1000} {
					t.Run(fmt.Sprint(m.name, kind, proxy, length), func(t *testing.T) {
						r := pair(t, Config{})
						r.sent(kind, 5000, proxies4[0])
						r.sent(kind, 5000, proxies6[0])
						sent := out(kind, 5000, proxy, flagSYN)
						v := r.send(slices.Clone(sent))
						if v.SrcPort != 5001 {
							t.Fatalf("outside port is %d", v.SrcPort)
						}
						b := errorAbout(v.B, m.typ, m.code, m.rest, length)
						b[ttlAt(b)] = 3
						fixHeader(b)
						back, got := r.received(b)
						if got != Translated {
							t.Fatal(got)
						}
						if back.Src != proxy || back.Dst != clientOf(proxy) {
							t.Fatalf("error goes from %v to %v", back.Src, back.Dst)
						}
						want := packettest.ICMP(proxy, clientOf(proxy), m.typ, m.code, m.rest, sent[:min(length, len(sent))])
						want[ttlAt(b)] = 20
						fixHeader(want)
						if !bytes.Equal(back.B, want) {
							t.Fatalf("got\n%x, want\n%x", back.B, want)
						}
					})
				}
			}
		}
	}
}

// ttlAt returns the offset of TTL or hop limit.
func ttlAt(b []byte) int {
	if b[0]>>4 == 6 {
		return 7
	}
	return 8
}

// fixHeader repairs the IPv4 header checksum.
func fixHeader(b []byte) {
	if b[0]>>4 == 4 {
		b[10], b[11] = 0, 0
		sum := packettest.Checksum(b[:int(b[0]&15)*4])
		b[10], b[11] = byte(sum>>8), byte(sum)
	}
}

func TestErrorsWithUnusualHeaders(t *testing.T) {
	r := pair(t, Config{})
	r.sent(packet.KindUDP, 5000, proxies4[0])
	r.sent(packet.KindUDP, 5000, proxies6[0])

	t.Run("marks of the router do not reach the client", func(t *testing.T) {
		r.TB = t
		b := errorAbout(r.send(out(packet.KindUDP, 5000, proxies4[1], 0)).B, 3, 3, 0, 28)
		b[1], b[4], b[5], b[6] = 0xb8, 1, 2, 0x40
		fixHeader(b)
		v, got := r.received(b)
		if got != Translated || v.B[1] != 0 || word(v.B, 4) != 0 || word(v.B, 6) != 0 {
			t.Fatalf("%v, header %x", got, v.B[:20])
		}
		b = errorAbout(r.send(out(packet.KindUDP, 5000, proxies6[1], 0)).B, 1, 4, 0, 48)
		b[0], b[1], b[2] = 0x6b, 0x81, 0x23
		if v, got := r.received(b); got != Translated || word(v.B, 0) != 0x6000 || word(v.B, 2) != 0 {
			t.Fatalf("%v, header %x", got, v.B[:8])
		}
	})
	t.Run("options and extension headers stay", func(t *testing.T) {
		r.TB = t
		b := packettest.Options4(errorAbout(r.send(out(packet.KindUDP, 5000, proxies4[1], 0)).B, 3, 3, 0, 28), []byte{1, 1, 1, 1})
		if v, got := r.received(b); got != Translated || v.Src != proxies4[1] || v.Transport != 24 {
			t.Fatal(got)
		}
		b = packettest.Extend6(errorAbout(r.send(out(packet.KindUDP, 5000, proxies6[1], 0)).B, 1, 4, 0, 48), 60, []byte{58, 0, 1, 4, 0, 0, 0, 0})
		if v, got := r.received(b); got != Translated || v.Src != proxies6[1] || v.Transport != 48 {
			t.Fatal(got)
		}
	})
	t.Run("a quoted packet with options and without UDP checksum", func(t *testing.T) {
		r.TB = t
		sent := packettest.Options4(out(packet.KindUDP, 5000, proxies4[1], 0), []byte{1, 1, 1, 1})
		sent[30], sent[31] = 0, 0
		v := r.send(slices.Clone(sent))
		if got, result := r.received(errorAbout(v.B, 3, 3, 0, 32)); result != Translated || !bytes.Equal(got.B[28:], sent[:32]) {
			t.Fatalf("%v, quote\n%x, want\n%x", result, got.B[28:], sent[:32])
		}
	})
	t.Run("a quote of four transport bytes", func(t *testing.T) {
		r.TB = t
		sent := out(packet.KindUDP, 5000, proxies4[1], 0)
		v := r.send(slices.Clone(sent))
		if got, result := r.received(errorAbout(v.B, 3, 3, 0, 24)); result != Translated || !bytes.Equal(got.B[28:], sent[:24]) {
			t.Fatalf("%v, quote\n%x, want\n%x", result, got.B[28:], sent[:24])
		}
	})
	t.Run("a wrong checksum is not repaired", func(t *testing.T) {
		r.TB = t
		b := errorAbout(r.send(out(packet.KindUDP, 5000, proxies4[1], 0)).B, 3, 3, 0, 28)
		b[22] ^= 0x55
		v := parse(t, b)
		if got := r.ToClient(v, r.now); got != Translated || v.ValidChecksums() {
			t.Fatalf("%v, checksums valid: %v", got, v.ValidChecksums())
		}
	})
}

func TestErrorsOfSessions(t *testing.T) {
	setup := func(t *testing.T) (*rig, []byte) {
		r := pair(t, Config{})
		return r, errorAbout(r.send(out(packet.KindUDP, 5000, proxies4[0], 0)).B, 3, 3, 0, 28)
	}
	t.Run("an error refreshes the session and counts as a reply", func(t *testing.T) {
		r, b := setup(t)
		r.wait(30 * time.Second)
		r.wantToClient(b, Translated)
		r.wait(UDPIdle - 1)
		r.wantToResource(out(packet.KindUDP, 5000, proxies4[0], 0), Translated)
	})
	t.Run("an error of a session that has ended is dropped", func(t *testing.T) {
		r, b := setup(t)
		r.wait(Unconfirmed)
		r.wantToClient(b, Ended)
		r.Sweep(r.now)
		r.wantToClient(b, Ended)
	})
	t.Run("an error about a packet that was not translated is left alone", func(t *testing.T) {
		r, _ := setup(t)
		for _, quoted := range [][]byte{
			build(packet.KindUDP, client4, 5001, real4, 53, 0),
			build(packet.KindTCP, client4, 5000, real4, 53, 0),
			build(packet.KindUDP, client4, 5000, addr("10.0.0.6"), 53, 0),
		} {
			r.wantToClient(errorAbout(quoted, 3, 3, 0, 28), Untouched)
		}
	})
	t.Run("the flags of a quoted segment do not count", func(t *testing.T) {
		r := pair(t, Config{})
		v := r.send(out(packet.KindTCP, 5000, proxies4[0], flagRST))
		r.send(out(packet.KindTCP, 5000, proxies4[0], flagSYN)) // a new connection
		r.wantToClient(errorAbout(v.B, 3, 3, 0, 1000), Translated)
		if r.Sweep(r.now) != 0 {
			t.Fatal("session ended")
		}
	})
	t.Run("an error of the client is not translated", func(t *testing.T) {
		r, _ := setup(t)
		quoted := in(packet.KindUDP, proxies4[0], 5000, 0)
		r.wantToResource(packettest.Unreachable(client4, proxies4[0], quoted[:28]), Unsupported)
	})
}
