package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/packet/packettest"
)

// pair is a rig with two proxy addresses of each family that lead to one real
// address.
func pair(t testing.TB, c Config) *rig {
	r := newRig(t, c)
	r.assign("example.com", slices.Concat(proxies4[:2], proxies6[:2]), []netip.Addr{real4, real6})
	return r
}

// Rules 12 and 13, and dataplane §3.5: destination and source port change on
// the way out, source and destination port on the way back, nothing else, and
// checksums stay right (packettest.Verify in send and received).
func TestTranslationGoesThereAndBack(t *testing.T) {
	for _, proxy := range slices.Concat(proxies4[:2], proxies6[:2]) {
		for _, kind := range kinds {
			for _, port := range []uint16{0, 1, 5000, 65535} {
				t.Run(fmt.Sprint(kind, proxy, port), func(t *testing.T) {
					r := pair(t, Config{})
					other := proxies4[0]
					if proxy.Is6() {
						other = proxies6[0]
					}
					r.send(out(kind, port, other, flagSYN)) // takes the port if proxy is the other one

					sent := out(kind, port, proxy, flagSYN)
					v := r.send(slices.Clone(sent))
					if want := r.real(proxy); v.Dst != want || v.Src != clientOf(want) {
						t.Fatalf("sent from %v to %v", v.Src, v.Dst)
					}
					if kind != packet.KindEcho && v.DstPort != service {
						t.Fatalf("sent to port %v", v.DstPort)
					}
					back, got := r.received(answer(v.B))
					if got != Translated || !slices.Equal(back.B, answer(sent)) {
						t.Fatalf("%v: got\n%x, want\n%x", got, back.B, answer(sent))
					}
				})
			}
		}
	}
}

// Rule 13: an IPv4 UDP checksum of 0 stays 0.
func TestUDPWithoutChecksumStaysWithout(t *testing.T) {
	r := pair(t, Config{})
	for _, proxy := range proxies4[:2] {
		b := out(packet.KindUDP, 5000, proxy, 0)
		b[26], b[27] = 0, 0
		v := r.send(b)
		if word(v.B, 26) != 0 {
			t.Fatal("checksum appeared on the way out")
		}
		if back, got := r.received(answer(v.B)); got != Translated || word(back.B, 26) != 0 {
			t.Fatal("checksum appeared on the way back")
		}
	}
}

func TestPacketsThatAreNotTranslated(t *testing.T) {
	r := pair(t, Config{})
	r.send(out(packet.KindTCP, 5000, proxies4[0], flagSYN))
	sctp := packettest.IP(client4, proxies4[0], 132, make([]byte, 12))
	timestamp := packettest.ICMP(client4, proxies4[0], 13, 0, 5000<<16, make([]byte, 12))

	for _, tc := range []struct {
		name string
		b    []byte
		want Result
	}{
		{"to an address that is no proxy address", out(packet.KindTCP, 5000, addr("10.0.0.5"), ack), Untouched},
		{"to a proxy address that is not mapped", out(packet.KindTCP, 5000, proxies4[3], ack), Unresolved},
		{"SCTP to a proxy address", sctp, Unsupported},
		{"an ICMP timestamp to a proxy address", timestamp, Unsupported},
		{"an unknown flow", out(packet.KindTCP, 5001, proxies4[0], ack), NeedSession},
		{"a known port in another protocol", out(packet.KindUDP, 5000, proxies4[0], 0), NeedSession},
		{"a known port to another proxy address", out(packet.KindTCP, 5000, proxies4[1], ack), NeedSession},
	} {
		t.Run("client sends "+tc.name, func(t *testing.T) {
			r.TB = t
			r.wantToResource(tc.b, tc.want)
		})
	}
	sctpIn := packettest.IP(real4, client4, 132, make([]byte, 12))
	mapped := netip.AddrFrom16(real4.As16())
	for _, tc := range []struct {
		name string
		b    []byte
		want Result
	}{
		{"to a port without session", in(packet.KindTCP, real4, 5001, ack), Untouched},
		{"in another protocol", in(packet.KindUDP, real4, 5000, 0), Untouched},
		{"of another address", in(packet.KindTCP, addr("10.0.0.6"), 5000, ack), Untouched},
		{"of the same address in mapped form", build(packet.KindTCP, mapped, 443, client6, 5000, ack), Untouched},
		{"of an opaque protocol", sctpIn, Untouched},
		{"from another port of the same address", build(packet.KindTCP, real4, 1, client4, 5000, ack), Translated},
	} {
		t.Run("network sends "+tc.name, func(t *testing.T) {
			r.TB = t
			r.wantToClient(tc.b, tc.want)
		})
	}
}

// Rules 57 and 58: the client's port is kept if it is free, else the next
// higher is taken, wrapping to 1.
func TestOutsidePorts(t *testing.T) {
	type open struct {
		kind  packet.Kind
		port  uint16
		proxy netip.Addr
		want  uint16
	}
	a, b := proxies4[0], proxies4[1]
	for _, tc := range []struct {
		name  string
		opens []open
	}{
		{"a free port is kept", []open{{packet.KindTCP, 5000, a, 5000}}},
		{"a taken one is followed by the next", []open{{packet.KindTCP, 5000, a, 5000}, {packet.KindTCP, 5000, b, 5001}}},
		{"several taken ones are skipped", []open{
			{packet.KindUDP, 5000, a, 5000}, {packet.KindUDP, 5001, a, 5001}, {packet.KindUDP, 5002, a, 5002},
			{packet.KindUDP, 5000, b, 5003}, {packet.KindUDP, 5001, b, 5004},
		}},
		{"after the last comes 1", []open{{packet.KindTCP, 65535, a, 65535}, {packet.KindTCP, 65535, b, 1}}},
		{"0 is kept but never chosen", []open{{packet.KindEcho, 0, a, 0}, {packet.KindEcho, 0, b, 1}, {packet.KindEcho, 65535, a, 65535}, {packet.KindEcho, 65535, b, 2}}},
		{"protocols have ports of their own", []open{{packet.KindTCP, 5000, a, 5000}, {packet.KindUDP, 5000, b, 5000}, {packet.KindEcho, 5000, b, 5000}}},
		{"families have ports of their own", []open{{packet.KindTCP, 5000, a, 5000}, {packet.KindTCP, 5000, proxies6[0], 5000}, {packet.KindTCP, 5000, proxies6[1], 5001}}},
		{"a page of ports has no edge", []open{{packet.KindTCP, 1023, a, 1023}, {packet.KindTCP, 1023, b, 1024}, {packet.KindTCP, 2047, a, 2047}, {packet.KindTCP, 2048, a, 2048}, {packet.KindTCP, 2047, b, 2049}}},
		{"a session keeps its port", []open{{packet.KindTCP, 5000, a, 5000}, {packet.KindTCP, 5000, b, 5001}, {packet.KindTCP, 5000, b, 5001}, {packet.KindTCP, 5001, a, 5002}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := pair(t, Config{})
			for i, o := range tc.opens {
				if _, got := r.sent(o.kind, o.port, o.proxy); got != o.want {
					t.Fatalf("%d: %v from port %d got %d, want %d", i, o.kind, o.port, got, o.want)
				}
			}
		})
	}
}

func TestOutsidePortsOfEndedSessionsAreFree(t *testing.T) {
	r := pair(t, Config{})
	r.sent(packet.KindUDP, 5000, proxies4[0])
	r.sent(packet.KindUDP, 5000, proxies4[1]) // 5001, and the ports are known from here on
	r.wait(30 * time.Second)
	r.sent(packet.KindUDP, 5001, proxies4[0]) // 5002
	r.wait(30 * time.Second)
	if got := r.Sweep(r.now); got != 2 {
		t.Fatalf("%d sessions ended", got)
	}
	if _, got := r.sent(packet.KindUDP, 5002, proxies4[1]); got != 5003 {
		t.Fatalf("got %d", got)
	}
	if _, got := r.sent(packet.KindUDP, 5000, proxies4[1]); got != 5000 {
		t.Fatalf("got %d", got)
	}
	if _, got := r.sent(packet.KindUDP, 5000, proxies4[0]); got != 5001 {
		t.Fatalf("got %d", got)
	}
	r.wait(UDPIdle)
	r.Sweep(r.now)
	if len(r.ports) != 0 {
		t.Fatalf("%d sets of ports are kept for no session", len(r.ports))
	}
}

func TestExhaustedPortsAreRefusedAndCounted(t *testing.T) {
	r := pair(t, Config{})
	v := parse(t, out(packet.KindUDP, 0, proxies4[0], 0))
	fill := func(except int) {
		for port := range 1 << 16 {
			if port == except {
				continue
			}
			v.Dst, v.SrcPort = proxies4[0], uint16(port)
			if got := r.Open(v, r.now); got != Translated {
				t.Fatalf("port %d: %v", port, got)
			}
		}
	}
	fill(-1)
	// Exhaustion is per real address and protocol.
	b := out(packet.KindUDP, 5000, proxies4[1], 0)
	for range 3 {
		if got := r.Open(parse(t, b), r.now); got != Exhausted {
			t.Fatalf("got %v", got)
		}
	}
	if s := r.Stats(); s.RefusedExhausted != 3 || s.Sessions != 1<<16 {
		t.Fatalf("stats are %+v", s)
	}
	r.sent(packet.KindTCP, 5000, proxies4[1])

	// One that becomes free is found, wherever it is.
	r.wait(59 * time.Second)
	fill(4999)
	r.wait(time.Second)
	r.Sweep(r.now)
	if _, got := r.sent(packet.KindUDP, 5000, proxies4[1]); got != 4999 {
		t.Fatalf("got %d", got)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	r := pair(t, Config{MaxSessions: 2})
	r.sent(packet.KindUDP, 1, proxies4[0])
	r.wait(time.Second)
	r.sent(packet.KindUDP, 2, proxies4[0])
	if got := r.Open(parse(t, out(packet.KindUDP, 3, proxies4[0], 0)), r.now); got != Full {
		t.Fatalf("got %v", got)
	}
	r.sent(packet.KindUDP, 2, proxies4[0])
	if s := r.Stats(); s.RefusedFull != 1 || s.Sessions != 2 {
		t.Fatalf("stats are %+v", s)
	}
	// A flow whose time is up makes room for itself.
	r.wait(59 * time.Second)
	r.sent(packet.KindUDP, 1, proxies4[0])
	if s := r.Stats(); s.Opened != 3 || s.Ended != 1 || s.Sessions != 2 {
		t.Fatalf("stats are %+v", s)
	}
}

// Rules 59, 60, 61, 62 and defect 3. Each case is a history of one session;
// the last wait leads to the instant when it ends.
func TestLifetimes(t *testing.T) {
	type step struct {
		after time.Duration
		out   bool // of the client
		flags byte
	}
	const fin, rst, syn = flagFIN | ack, flagRST, flagSYN
	there, back := true, false
	for _, tc := range []struct {
		name  string
		kind  packet.Kind
		steps []step
		ends  time.Duration // after the last step
	}{
		{"TCP idle", packet.KindTCP, []step{{0, there, syn}, {0, back, ack}}, TCPIdle},
		{"UDP idle", packet.KindUDP, []step{{0, there, 0}, {0, back, 0}}, UDPIdle},
		{"echo idle", packet.KindEcho, []step{{0, there, 0}, {0, back, 0}}, EchoIdle},
		{"TCP without a reply", packet.KindTCP, []step{{0, there, syn}}, Unconfirmed},
		{"UDP without a reply", packet.KindUDP, []step{{0, there, 0}}, Unconfirmed},
		{"echo without a reply", packet.KindEcho, []step{{0, there, 0}}, Unconfirmed},
		{"outgoing packets prolong the wait for a reply", packet.KindUDP, []step{{0, there, 0}, {59 * time.Second, there, 0}}, Unconfirmed},
		{"outgoing packets refresh", packet.KindUDP, []step{{0, there, 0}, {0, back, 0}, {119 * time.Second, there, 0}}, UDPIdle},
		{"incoming packets refresh", packet.KindUDP, []step{{0, there, 0}, {time.Second, back, 0}, {119 * time.Second, back, 0}}, UDPIdle},
		{"FIN of the client alone", packet.KindTCP, []step{{0, there, syn}, {0, back, ack}, {0, there, fin}}, TCPIdle},
		{"FIN of the network alone", packet.KindTCP, []step{{0, there, syn}, {0, back, ack}, {0, back, fin}}, TCPIdle},
		{"FIN both ways", packet.KindTCP, []step{{0, there, syn}, {0, back, ack}, {0, there, fin}, {time.Minute, back, fin}}, Finished},
		{"packets after FIN both ways", packet.KindTCP, []step{{0, there, syn}, {0, back, fin}, {0, there, fin}, {4 * time.Second, there, ack}}, Finished},
		{"a bare SYN after FIN both ways begins another connection", packet.KindTCP, []step{{0, there, syn}, {0, back, fin}, {0, there, fin}, {time.Second, there, syn}}, TCPIdle},
		{"a SYN of the network does not", packet.KindTCP, []step{{0, there, syn}, {0, back, fin}, {0, there, fin}, {time.Second, back, syn}}, Finished},
		{"a SYN with ACK does not", packet.KindTCP, []step{{0, there, syn}, {0, back, fin}, {0, there, fin}, {time.Second, there, syn | ack}}, Finished},
		{"RST of the client, at the next sweep", packet.KindTCP, []step{{0, there, syn}, {0, back, ack}, {0, there, rst}}, 0},
		{"RST of the network, at the next sweep", packet.KindTCP, []step{{0, there, syn}, {0, back, rst}}, 0},
		{"RST with FIN counts as RST", packet.KindTCP, []step{{0, there, syn}, {0, back, rst | flagFIN}}, 0},
	} {
		for _, proxy := range []netip.Addr{proxies4[0], proxies6[0]} {
			run := func(t *testing.T) *rig {
				r := pair(t, Config{})
				for i, s := range tc.steps {
					r.wait(s.after)
					if s.out {
						if i > 0 {
							r.Sweep(r.now)
							r.wantToResource(out(tc.kind, 5000, proxy, s.flags), Translated)
						} else {
							r.send(out(tc.kind, 5000, proxy, s.flags))
						}
					} else {
						r.wantToClient(in(tc.kind, r.real(proxy), 5000, s.flags), Translated)
					}
				}
				if tc.ends > 0 {
					r.wait(tc.ends - 1)
					if r.Sweep(r.now) != 0 {
						t.Fatal("session ended too early")
					}
					r.wait(1)
				}
				return r
			}
			t.Run(fmt.Sprint(tc.name, " ends with the sweep, ", proxy), func(t *testing.T) {
				r := run(t)
				if r.Sweep(r.now) != 1 || r.Stats().Sessions != 0 {
					t.Fatal("session did not end")
				}
				// Rules 63 and 64.
				r.wantToClient(in(tc.kind, r.real(proxy), 5000, ack), Ended)
				if _, got := r.sent(tc.kind, 5000, proxy); got != 5000 {
					t.Fatalf("new session has port %d", got)
				}
				r.wantToClient(in(tc.kind, r.real(proxy), 5000, ack), Translated)
			})
			if tc.ends == 0 {
				t.Run(fmt.Sprint(tc.name, " lets packets pass until then, ", proxy), func(t *testing.T) {
					r := run(t)
					r.wantToResource(out(tc.kind, 5000, proxy, ack), Translated)
					r.wantToClient(in(tc.kind, r.real(proxy), 5000, ack), Translated)
				})
				continue
			}
			t.Run(fmt.Sprint(tc.name, " ends without the sweep, ", proxy), func(t *testing.T) {
				r := run(t)
				r.wantToResource(out(tc.kind, 5000, proxy, ack), NeedSession)
				r.wantToClient(in(tc.kind, r.real(proxy), 5000, ack), Ended)
			})
		}
	}
}

// A batch that was held up does not make a session look older than it is.
func TestPacketsOfTheBatchBeforeDoNotAgeASession(t *testing.T) {
	r := pair(t, Config{})
	late := r.now
	r.wait(30 * time.Second)
	r.sent(packet.KindUDP, 5000, proxies4[0])
	r.wantToClient(in(packet.KindUDP, real4, 5000, 0), Translated)
	last := r.now
	r.now = late
	r.wantToResource(out(packet.KindUDP, 5000, proxies4[0], 0), Translated)
	r.wantToClient(in(packet.KindUDP, real4, 5000, 0), Translated)
	r.now = last + int64(UDPIdle) - 1
	if r.Sweep(r.now) != 0 {
		t.Fatal("session ended too early")
	}
}

// Rule 64: a session that comes after another one uses the current map.
func TestSessionAfterTheEndUsesTheCurrentMap(t *testing.T) {
	r := pair(t, Config{})
	r.sent(packet.KindUDP, 5000, proxies4[0])
	r.assign("example.com", proxies4[:2], addrs("10.0.0.6"))
	r.wait(Unconfirmed)
	if got, _ := r.sent(packet.KindUDP, 5000, proxies4[0]); got != addr("10.0.0.6") {
		t.Fatalf("new session leads to %v", got)
	}
	r.wantToClient(in(packet.KindUDP, real4, 5000, 0), Ended)
	r.wantToClient(in(packet.KindUDP, addr("10.0.0.6"), 5000, 0), Translated)
}

// A session whose time is up does not hold its outside port against another
// one, even when the sweep is late.
func TestOverdueSessionGivesItsPortAway(t *testing.T) {
	r := pair(t, Config{})
	r.sent(packet.KindUDP, 5000, proxies4[0])
	r.wait(Unconfirmed)
	if _, got := r.sent(packet.KindUDP, 5000, proxies4[1]); got != 5000 {
		t.Fatalf("got port %d", got)
	}
	if v, got := r.received(in(packet.KindUDP, real4, 5000, 0)); got != Translated || v.Src != proxies4[1] {
		t.Fatalf("%v from %v", got, v.Src)
	}
	if s := r.Stats(); s.Sessions != 1 || s.Ended != 1 || s.Remembered != 0 {
		t.Fatalf("stats are %+v", s)
	}
}

func TestEndedSessionsAreForgottenAfterTheirTime(t *testing.T) {
	r := pair(t, Config{})
	r.sent(packet.KindUDP, 1, proxies4[0])
	r.wait(Unconfirmed)
	r.Sweep(r.now)
	r.sent(packet.KindUDP, 2, proxies4[0])
	r.wait(Unconfirmed)
	r.Sweep(r.now)
	for _, c := range []struct {
		wait       time.Duration
		one, other Result
	}{
		{Memory - Unconfirmed - 1, Ended, Ended},
		{1, Untouched, Ended},
		{Unconfirmed - 1, Untouched, Ended},
		{1, Untouched, Untouched},
	} {
		r.wait(c.wait)
		r.Sweep(r.now)
		r.wantToClient(in(packet.KindUDP, real4, 1, 0), c.one)
		r.wantToClient(in(packet.KindUDP, real4, 2, 0), c.other)
	}
	if s := r.Stats(); s.Remembered != 0 || len(r.remembered.marks) != 0 {
		t.Errorf("stats are %+v, %d marks", s, len(r.remembered.marks))
	}
}

// Defect 2: the memory of ended sessions is bounded, the oldest is forgotten.
func TestMemoryOfEndedSessionsIsBounded(t *testing.T) {
	const limit = 4
	r := pair(t, Config{MaxRemembered: limit})
	for port := range uint16(10) {
		r.sent(packet.KindUDP, port, proxies4[0])
		r.wait(Unconfirmed)
		r.Sweep(r.now)
	}
	for port := range uint16(10) {
		want := Untouched
		if port >= 10-limit {
			want = Ended
		}
		r.wantToClient(in(packet.KindUDP, real4, port, 0), want)
	}
	if got := r.Stats().Remembered; got != limit {
		t.Fatalf("%d sessions are remembered", got)
	}

	// One whose outside is taken again is forgotten at once and does not take
	// the new one along when its turn comes.
	r.sent(packet.KindUDP, 6, proxies4[1])
	if got := r.Stats().Remembered; got != limit-1 {
		t.Fatalf("%d sessions are remembered", got)
	}
	for port := range uint16(1000) {
		r.sent(packet.KindTCP, port, proxies4[0])
		r.wantToClient(in(packet.KindTCP, real4, port, flagRST), Translated)
		r.Sweep(r.now)
	}
	r.wantToClient(in(packet.KindUDP, real4, 6, 0), Translated)
	if s := r.Stats(); s.Remembered != limit || s.Sessions != 1 {
		t.Fatalf("stats are %+v", s)
	}
	if got := cap(r.remembered.sessions); got > 4*limit {
		t.Fatalf("the queue for %d sessions has room for %d", limit, got)
	}
}

func TestSessionsAreDescribed(t *testing.T) {
	r := pair(t, Config{})
	r.sent(packet.KindTCP, 5000, proxies4[0])
	r.sent(packet.KindTCP, 5000, proxies4[1])
	r.wait(time.Second)
	r.wantToClient(in(packet.KindTCP, real4, 5001, flagFIN), Translated)
	r.wait(time.Second)
	r.send(out(packet.KindEcho, 9, proxies6[0], 0))
	var got []Session
	for s := range r.Sessions() {
		got = append(got, s)
	}
	want := []Session{
		{Kind: packet.KindTCP, Proxy: proxies4[0], Real: real4, Inside: 5000, Outside: 5000, LastOut: start},
		{Kind: packet.KindTCP, Proxy: proxies4[1], Real: real4, Inside: 5000, Outside: 5001, LastOut: start, LastIn: start + second, Confirmed: true, FinIn: true},
		{Kind: packet.KindEcho, Proxy: proxies6[0], Real: real6, Inside: 9, Outside: 9, LastOut: start + 2*second},
	}
	if len(got) != len(want) {
		t.Fatalf("got %d sessions", len(got))
	}
	for _, s := range want {
		if !slices.Contains(got, s) {
			t.Fatalf("%+v is not among %+v", s, got)
		}
	}
	for range r.Sessions() {
		break // which must be allowed
	}
}

func TestResultsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := Untouched; r <= TooBig; r++ {
		seen[r.String()] = true
	}
	if len(seen) != int(TooBig)+1 || seen["invalid"] || (TooBig+1).String() != "invalid" {
		t.Fatalf("names are %v", seen)
	}
}
