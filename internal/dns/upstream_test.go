package dns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"firezone-gateway/internal/drop"
)

// asks sends a query to the name servers and returns the text of the answer.
func asks(t testing.TB, u *Upstreams, overTCP bool) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	q := query("a.example", dns.TypeTXT).SetEdns0(1232, false)
	r, err := u.ask(ctx, q, packed(q), overTCP)
	if err != nil {
		return "", err
	}
	if r.msg.Id != q.Id || unpacked(t, r.wire).Id != q.Id {
		t.Errorf("the reply has the identifier %d, want %d", r.msg.Id, q.Id)
	}
	return text(r.msg), nil
}

func wantText(t testing.TB, u *Upstreams, overTCP bool, want string) {
	t.Helper()
	if got, err := asks(t, u, overTCP); got != want || err != nil {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func TestFailOver(t *testing.T) {
	garbage := func(a asked) [][]byte { return [][]byte{answerTo(a.msg, records("a.example. TXT x")...)[:40]} }
	for _, tc := range []struct {
		name  string
		first answers
	}{
		{"a name server that is silent", silent},
		{"a name server that is not there", nil},
		{"a name server that is broken", garbage},
		{"a name server that refuses", codes(dns.RcodeRefused)},
		{"a name server that fails", codes(dns.RcodeServerFailure)},
		{"a name server that does not know the opcode", codes(dns.RcodeNotImplemented)},
	} {
		for _, overTCP := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, over TCP %v", tc.name, overTCP), func(t *testing.T) {
				s := newSite(t, tc.first, says("second"))
				wantText(t, s.upstreams(), overTCP, "second")
			})
		}
	}
}

func TestADeadNameServerIsAvoided(t *testing.T) {
	s := newSite(t, silent, says("second"))
	u := s.upstreams()
	wantText(t, u, false, "second")
	if r := u.udp.find(s.servers[0].addr); r.measured.IsZero() || r.rtt < hedgeMin {
		t.Errorf("being overtaken is not remembered: %+v", r)
	}
	before := s.servers[0].overUDP.Load()
	const more = 30
	for range more {
		wantText(t, u, false, "second")
	}
	if n := s.servers[0].overUDP.Load() - before; n > more/3 {
		t.Errorf("the dead name server got %d of %d queries", n, more)
	}
}

func TestWhoFailedIsNotAskedAgainForTheSame(t *testing.T) {
	s := newSite(t, codes(dns.RcodeServerFailure))
	wantText(t, s.upstreams(), false, "SERVFAIL")
	if n := s.servers[0].queries(); n >= minAttempts {
		t.Errorf("it was asked %d times", n)
	}
}

func TestHealthIsOfOneTransport(t *testing.T) {
	first := func(a asked) [][]byte {
		if a.tcp {
			return nil
		}
		return says("first")(a)
	}
	s := newSite(t, first, nil)
	u := s.upstreams()
	wantText(t, u, false, "first")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	q := query("a.example", dns.TypeTXT)
	if _, err := u.ask(ctx, q, packed(q), true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("over TCP: %v", err)
	}
	wantText(t, u, false, "first")
	if now := time.Now(); u.udp.find(s.servers[0].addr).failures > 0 || u.tcp.find(s.servers[0].addr).class(now) == classMeasured {
		t.Errorf("silence over TCP counts as %+v for UDP and %+v for TCP", u.udp.servers, u.tcp.servers)
	}
}

func TestTheBestOfPoorAnswersCounts(t *testing.T) {
	for _, tc := range []struct {
		name string
		site []answers
		want string
	}{
		{"the first refusal", []answers{codes(dns.RcodeServerFailure), nil}, "SERVFAIL"},
		{"a refusal of one and silence of the other", []answers{silent, codes(dns.RcodeRefused)}, "REFUSED"},
		{"NXDOMAIN needs no second opinion", []answers{codes(dns.RcodeNameError), nil}, "NXDOMAIN"},
		{"NXDOMAIN after a failure", []answers{codes(dns.RcodeServerFailure), codes(dns.RcodeNameError)}, "NXDOMAIN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := newSite(t, tc.site...).upstreams()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			q := query("a.example", dns.TypeTXT)
			r, err := u.ask(ctx, q, packed(q), false)
			if err != nil || text(r.msg) != tc.want {
				t.Errorf("got %+v, %v", r.msg, err)
			}
		})
	}
}

func TestForgedAnswersAreIgnored(t *testing.T) {
	forge := func(change func(*dns.Msg)) answers {
		return func(a asked) [][]byte {
			m := new(dns.Msg).SetReply(a.msg)
			m.Answer = records(`a.example. TXT "forged"`)
			change(m)
			return append([][]byte{packed(m)}, says("real")(a)...)
		}
	}
	for _, tc := range []struct {
		name string
		site answers
	}{
		{"another identifier", forge(func(m *dns.Msg) { m.Id++ })},
		{"another name", forge(func(m *dns.Msg) { m.Question[0].Name = "b.example." })},
		{"another type", forge(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA })},
		{"no question", forge(func(m *dns.Msg) { m.Question = nil })},
		{"a query", forge(func(m *dns.Msg) { m.Response = false })},
		{"no message", func(a asked) [][]byte { return append([][]byte{{}, {1, 2, 3}}, says("real")(a)...) }},
		{"many other identifiers", func(a asked) [][]byte {
			var all [][]byte
			for i := range maxStrays - 1 {
				other := a.msg.Copy()
				other.Id += uint16(i + 1)
				all = append(all, answerTo(other, records(`a.example. TXT "forged"`)...))
			}
			return append(all, says("real")(a)...)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantText(t, newSite(t, tc.site).upstreams(), false, "real")
		})
	}
	t.Run("another address", func(t *testing.T) {
		s := newSite(t, silent)
		forger, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 99)})
		if err != nil {
			t.Fatal(err)
		}
		defer forger.Close()
		u := s.upstreams()
		q := query("a.example", dns.TypeTXT)
		conn, err := u.dialer.DialUDP(t.Context(), "udp", netip.AddrPort{}, netip.AddrPortFrom(s.servers[0].addr, s.port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := forger.WriteToUDPAddrPort(says("forged")(asked{msg: q})[0], conn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := conn.Read(make([]byte, 512)); err == nil {
			t.Errorf("%d bytes from another address were taken", n)
		}
	})
}

func TestSomebodyWhoGuessesEndsTheAttempt(t *testing.T) {
	flood := func(a asked) [][]byte {
		other := a.msg.Copy()
		other.Id++
		return slices.Repeat([][]byte{answerTo(other)}, maxStrays)
	}
	s := newSite(t, flood, says("second"))
	u := s.upstreams()
	wantText(t, u, false, "second")
}

func TestALateAnswerCounts(t *testing.T) {
	gate := make(chan struct{})
	second := make(chan struct{}, 100)
	s := newSite(t, withhold(gate, says("first")), func(asked) [][]byte {
		second <- struct{}{}
		return nil
	})
	u := s.upstreams()
	go func() {
		<-second // the query went on to the next name server
		close(gate)
	}()
	wantText(t, u, false, "first")
}

func TestQueriesOverTCPLeaveNoPortsOccupied(t *testing.T) {
	s := newSite(t, says("x"))
	u := s.upstreams()
	const n = 5
	for range n {
		wantText(t, u, true, "x")
	}
	eventually(t, "each connection is reset", func() bool { return s.servers[0].resets.Load() == n })
}

func TestALostDatagramIsRepeated(t *testing.T) {
	var n atomic.Int64
	s := newSite(t, func(a asked) [][]byte {
		if n.Add(1) == 1 {
			return nil
		}
		return says("again")(a)
	})
	wantText(t, s.upstreams(), false, "again")
}

func TestAnswersDoNotOutliveTheirQuery(t *testing.T) {
	s := newSite(t, silent)
	u := s.upstreams()
	ctx, cancel := context.WithCancel(t.Context())
	q := query("a.example", dns.TypeTXT)
	done := make(chan error)
	go func() {
		_, err := u.ask(ctx, q, packed(q), false)
		done <- err
	}()
	eventually(t, "the query is on its way", func() bool { return s.servers[0].queries() > 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if r := u.udp.find(s.servers[0].addr); r.failures > 0 {
		t.Error("a query that was given up counts against the name server")
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	s := newSite(t, says("first"), says("second"))
	u := s.upstreams()
	first, second := "nameserver "+s.servers[0].addr.String(), "nameserver "+s.servers[1].addr.String()
	s.write(t, first)
	wantText(t, u, false, "first")
	s.write(t, second)
	wantText(t, u, false, "second")
	if err := os.WriteFile(s.conf, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	wantText(t, u, true, "first")
	if err := os.Remove(s.conf); err != nil {
		t.Fatal(err)
	}
	wantText(t, u, false, "first") // while another program writes it
	if got, err := u.Nameservers(); !slices.Equal(got, []netip.Addr{s.servers[0].addr}) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without file: %v, %v", got, err)
	}
	s.write(t, "# nothing")
	if got, err := asks(t, u, false); !errors.Is(err, ErrNoNameserver) {
		t.Errorf("with an empty file: %q, %v", got, err)
	}
	if got, err := u.Nameservers(); len(got) > 0 || !errors.Is(err, ErrNoNameserver) {
		t.Errorf("with an empty file: %v, %v", got, err)
	}
	s.write(t, second)
	wantText(t, u, false, "second")
}

func TestWithoutResolvConf(t *testing.T) {
	u := NewUpstreams(UpstreamsConfig{ResolvConf: t.TempDir() + "/none"})
	if _, err := asks(t, u, false); !errors.Is(err, ErrNoNameserver) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestControlSeesEachSocketAndMayRefuse(t *testing.T) {
	s := newSite(t, says("x"))
	var seen atomic.Int64
	refuse := errors.New("refused")
	var refusing atomic.Bool
	u := NewUpstreams(UpstreamsConfig{ResolvConf: s.conf, Port: s.port, Control: func(string, string, syscall.RawConn) error {
		seen.Add(1)
		if refusing.Load() {
			return refuse
		}
		return nil
	}})
	wantText(t, u, false, "x")
	wantText(t, u, true, "x")
	if seen.Load() < 2 {
		t.Errorf("%d sockets were seen", seen.Load())
	}
	refusing.Store(true)
	before := s.servers[0].queries()
	if _, err := asks(t, u, false); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
	if s.servers[0].queries() != before {
		t.Error("a query went out of a socket that was refused")
	}
}

func TestPanicsOfTheLibraryAreCounted(t *testing.T) {
	var drops drop.Counters
	u := NewUpstreams(UpstreamsConfig{Drops: &drops})
	u.note(fmt.Errorf("parse: %w", errPanicked))
	u.note(errMismatch)
	u.note(nil)
	if got := drops.Load(drop.ThirdPartyPanic); got != 1 {
		t.Errorf("%d panics are counted, want 1", got)
	}
}
