package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var networks = []Network{UDP, TCP}

func TestForwardsWhateverIsAsked(t *testing.T) {
	zone := map[uint16]string{
		dns.TypeTXT:   `a.example. 60 IN TXT "one" "two"`,
		dns.TypeSRV:   "a.example. 60 IN SRV 1 2 3 b.example.",
		dns.TypeMX:    "a.example. 60 IN MX 10 b.example.",
		dns.TypeCAA:   `a.example. 60 IN CAA 0 issue "c.example"`,
		dns.TypeHTTPS: "a.example. 60 IN HTTPS 1 . alpn=h2",
		dns.TypePTR:   "a.example. 60 IN PTR b.example.",
		65280:         `a.example. 60 IN TYPE65280 \# 2 0102`,
	}
	s := newSite(t, func(a asked) [][]byte {
		return [][]byte{answerTo(a.msg, records(zone[a.msg.Question[0].Qtype])...)}
	})
	f := NewForwarder(s.upstreams())
	for _, network := range networks {
		c := dial(t, network, start(t, network, f))
		for qtype, record := range zone {
			t.Run(fmt.Sprintf("%s over %s", dns.Type(qtype), network), func(t *testing.T) {
				got := c.ask(query("a.example", qtype))
				if len(got.Answer) != 1 || got.Answer[0].String() != records(record)[0].String() {
					t.Errorf("got %v, want %s", got, record)
				}
			})
		}
	}
	ns := s.servers[0]
	if n := int64(len(zone)); ns.overUDP.Load() < n || ns.overTCP.Load() != n {
		t.Errorf("the name server got %d queries over UDP and %d over TCP, want %d over the transport of the client", ns.overUDP.Load(), ns.overTCP.Load(), n)
	}
	if got := f.Counts(); got.Answered != uint64(2*len(zone)) || got.UnderWay != 0 {
		t.Errorf("counts %+v", got)
	}
}

func TestQueryAndAnswerPassUnchanged(t *testing.T) {
	came := make(chan []byte, 16)
	var wire atomic.Pointer[[]byte]
	s := newSite(t, func(a asked) [][]byte {
		m := new(dns.Msg).SetReply(a.msg)
		m.AuthenticatedData, m.CheckingDisabled = true, true
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(a.msg, dns.TypeTXT), Txt: []string{"x"}}}
		m.Extra = []dns.RR{a.msg.IsEdns0()}
		answer := packed(m)
		wire.Store(&answer)
		came <- a.wire
		return [][]byte{answer}
	})
	q := query("eXaMpLe.CoM", dns.TypeTXT).SetEdns0(1232, true)
	q.AuthenticatedData, q.CheckingDisabled, q.Zero = true, true, true
	q.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"},
		&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("local")},
	}
	sent := packed(q)
	f := NewForwarder(s.upstreams())
	for _, network := range networks {
		t.Run(string(network), func(t *testing.T) {
			c := dial(t, network, start(t, network, f))
			c.send(sent)
			got := c.receive()
			if forwarded := <-came; !bytes.Equal(forwarded[2:], sent[2:]) {
				t.Errorf("%x was forwarded as %x", sent, forwarded)
			}
			if answer := *wire.Load(); !bytes.Equal(got[2:], answer[2:]) {
				t.Errorf("%x was answered as %x", answer, got)
			}
			if !bytes.Equal(got[:2], sent[:2]) {
				t.Errorf("identifier %x, want %x", got[:2], sent[:2])
			}
		})
	}
}

func TestIdentifiersOfClientsAreNotUsedUpstream(t *testing.T) {
	var same, total atomic.Int64
	s := newSite(t, func(a asked) [][]byte {
		if total.Add(1); a.msg.Id == 0x4242 {
			same.Add(1)
		}
		return says("x")(a)
	})
	c := dial(t, UDP, start(t, UDP, NewForwarder(s.upstreams())))
	q := query("a.example", dns.TypeTXT)
	q.Id = 0x4242
	for range 20 {
		if got := c.ask(q); text(got) != "x" {
			t.Fatal(got)
		}
	}
	if same.Load() > 2 {
		t.Errorf("%d of %d queries had the client's identifier", same.Load(), total.Load())
	}
}

func TestAnswerSizes(t *testing.T) {
	var size atomic.Int64
	s := newSite(t, func(a asked) [][]byte { return [][]byte{sized(a.msg, int(size.Load()))} })
	f := NewForwarder(s.upstreams())
	for _, tc := range []struct {
		name    string
		network Network
		edns    uint16
		size    int
		whole   bool
	}{
		{"a small answer over UDP", UDP, 0, 100, true},
		{"the largest answer over UDP, without EDNS", UDP, 0, MaxUDPAnswer, true},
		{"the largest answer over UDP", UDP, 4096, MaxUDPAnswer, true},
		{"a byte more over UDP", UDP, 4096, MaxUDPAnswer + 1, false},
		{"a byte more over UDP, without EDNS", UDP, 0, MaxUDPAnswer + 1, false},
		{"a byte below the buffer", UDP, 4096, upstreamBuffer - 1, false},
		{"as much as the buffer holds", UDP, 4096, upstreamBuffer, false},
		{"more than the buffer holds", UDP, 4096, 4000, false},
		{"an answer over TCP that UDP does not carry", TCP, 0, MaxUDPAnswer + 1, true},
		{"the largest answer over TCP", TCP, 0, dns.MaxMsgSize, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			size.Store(int64(tc.size))
			q := query("a.example", dns.TypeNULL)
			if tc.edns > 0 {
				q.SetEdns0(tc.edns, false)
			}
			before := f.Counts().Truncated
			c := dial(t, tc.network, start(t, tc.network, f))
			c.send(packed(q))
			wire := c.receive()
			got := unpacked(t, wire)
			if tc.whole {
				if len(wire) != tc.size || got.Truncated || len(got.Answer) != 1 {
					t.Errorf("%d bytes, want %d: %+v", len(wire), tc.size, got.MsgHdr)
				}
				return
			}
			if !got.Truncated || !got.Response || got.Id != q.Id || got.Rcode != dns.RcodeSuccess {
				t.Errorf("rule 72: header %+v", got.MsgHdr)
			}
			if len(got.Question) != 1 || got.Question[0] != q.Question[0] || len(got.Answer)+len(got.Ns)+len(got.Extra) > 0 {
				t.Errorf("rule 72: more than the question: %v", got)
			}
			if f.Counts().Truncated != before+1 {
				t.Error("the truncation was not counted")
			}
		})
	}
}

func TestTruncatedAnswerIsFetchedOverTCP(t *testing.T) {
	var size atomic.Int64
	truncating := func(a asked) [][]byte {
		if a.tcp {
			if size.Load() == 0 {
				return nil
			}
			return [][]byte{sized(a.msg, int(size.Load()))}
		}
		m := new(dns.Msg).SetReply(a.msg)
		m.Truncated = true
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(a.msg, dns.TypeTXT), Txt: []string{"a part"}}}
		return [][]byte{packed(m)}
	}
	const (
		whole = iota
		part
		nothing
	)
	for _, tc := range []struct {
		name string
		edns uint16
		size int
		want int
	}{
		{"the whole answer fits", 4096, 1100, whole},
		{"the whole answer is as large as the client takes", 700, 700, whole},
		{"the whole answer is larger than the client takes", 700, 701, nothing},
		{"the whole answer is larger than a packet", 4096, MaxUDPAnswer + 1, nothing},
		{"the client takes no more than the part", 0, 1100, part},
		{"the name server does not answer over TCP", 4096, 0, part},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, truncating)
			size.Store(int64(tc.size))
			q := query("a.example", dns.TypeTXT)
			if tc.edns > 0 {
				q.SetEdns0(tc.edns, false)
			}
			got := dial(t, UDP, start(t, UDP, NewForwarder(s.upstreams()))).ask(q)
			switch tc.want {
			case whole:
				if got.Truncated || len(got.Answer) != 1 || len(packed(got)) != tc.size {
					t.Errorf("got %v", got)
				}
			case part:
				if !got.Truncated || text(got) != "a part" {
					t.Errorf("got %v", got)
				}
			case nothing:
				if !got.Truncated || len(got.Answer) > 0 {
					t.Errorf("got %v", got)
				}
			}
			if tc.edns == 0 && s.servers[0].overTCP.Load() > 0 {
				t.Error("fetched for a client that cannot take it")
			}
		})
	}
}

func TestMalformedQueriesAreCountedAndNotAnswered(t *testing.T) {
	s := newSite(t, says("x"))
	plain := packed(query("a.example", dns.TypeTXT))
	for _, tc := range []struct {
		name string
		wire []byte
	}{
		{"nothing", nil},
		{"a byte", []byte{0}},
		{"a header", plain[:headerSize]},
		{"an answer", edit(plain, 2, 0x80)},
		{"no question", edit(plain, 5, 0)},
		{"a question that is cut off", plain[:len(plain)-1]},
		{"more than the largest query", slices.Concat(plain, make([]byte, maxQuery))},
	} {
		for _, network := range networks {
			t.Run(tc.name+" over "+string(network), func(t *testing.T) {
				f := NewForwarder(s.upstreams())
				addr := start(t, network, f)
				c := dial(t, network, addr)
				c.send(tc.wire)
				eventually(t, "it is counted", func() bool { return f.Counts() == Counts{Malformed: 1} })
				if network == TCP {
					c.wantClosed()
					c = dial(t, network, addr)
				}
				if got := c.ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
					t.Errorf("the next query got %v", got)
				}
			})
		}
	}
}

func TestOnlyQueriesAreForwarded(t *testing.T) {
	s := newSite(t, says("x"))
	for _, network := range networks {
		for _, opcode := range []int{dns.OpcodeUpdate, dns.OpcodeNotify, dns.OpcodeStatus, dns.OpcodeIQuery, 15} {
			t.Run(fmt.Sprintf("opcode %d over %s", opcode, network), func(t *testing.T) {
				f := NewForwarder(s.upstreams())
				q := query("a.example", dns.TypeSOA)
				q.Opcode = opcode
				got := dial(t, network, start(t, network, f)).ask(q)
				if got.Rcode != dns.RcodeNotImplemented || got.Opcode != opcode || !got.Response {
					t.Errorf("got %v", got)
				}
				if c := f.Counts(); c != (Counts{Refused: 1}) {
					t.Errorf("counts %+v", c)
				}
			})
		}
	}
	if n := s.servers[0].queries(); n > 0 {
		t.Errorf("%d messages were forwarded", n)
	}
}

func TestServfailWhereNoNameServerHelps(t *testing.T) {
	garbage := func(a asked) [][]byte { return [][]byte{answerTo(a.msg, records("a.example. TXT x")...)[:40]} }
	for _, tc := range []struct {
		name string
		site []answers
	}{
		{"there is none", nil},
		{"it is silent", []answers{silent}},
		{"it is not there", []answers{nil}},
		{"it answers with a broken message", []answers{garbage}},
		{"all are silent", []answers{silent, nil, silent}},
	} {
		for _, network := range networks {
			t.Run(tc.name+" over "+string(network), func(t *testing.T) {
				f := NewForwarder(newSite(t, tc.site...).upstreams())
				f.timeout = time.Second
				q := query("a.Example", dns.TypeTXT).SetEdns0(1232, true)
				got := dial(t, network, start(t, network, f)).ask(q)
				want := dns.MsgHdr{Id: q.Id, Response: true, RecursionDesired: true, Rcode: dns.RcodeServerFailure}
				if got.MsgHdr != want || len(got.Question) != 1 || got.Question[0] != q.Question[0] || len(got.Extra) > 0 {
					t.Errorf("rule 74: got %v", got)
				}
				if c := f.Counts(); c.Failed != 1 || c.Answered != 0 {
					t.Errorf("counts %+v", c)
				}
			})
		}
	}
	if ForwardTimeout != 5*time.Second {
		t.Errorf("rule 74: a name server has %v", ForwardTimeout)
	}
}

func TestAThousandQueriesAtOnceAndNoMore(t *testing.T) {
	gate := make(chan struct{})
	s := newSite(t, withhold(gate, says("late")))
	f := NewForwarder(s.upstreams())
	f.timeout = 10 * patience
	udp, tcp := start(t, UDP, f), start(t, TCP, f)
	const perSocket = 100 // so that no receive buffer runs over
	clients := make([]client, 0, MaxForwarded/perSocket)
	wire := packed(query("a.example", dns.TypeTXT))
	for i := range MaxForwarded {
		if i%perSocket == 0 {
			eventually(t, "queries are under way", func() bool { return f.Counts().UnderWay == i })
			clients = append(clients, dial(t, UDP, udp))
		}
		binary.BigEndian.PutUint16(wire, uint16(i))
		clients[len(clients)-1].send(wire)
	}
	eventually(t, "all queries are under way", func() bool { return f.Counts().UnderWay == MaxForwarded })
	for _, c := range []client{dial(t, UDP, udp), dial(t, TCP, tcp)} {
		if got := c.ask(query("a.example", dns.TypeTXT)); got.Rcode != dns.RcodeServerFailure {
			t.Errorf("defect 10: one more got %v", got)
		}
	}
	if c := f.Counts(); c.Overflow != 2 || c.UnderWay != MaxForwarded {
		t.Errorf("counts %+v", c)
	}
	close(gate)
	var seen [MaxForwarded]bool
	for _, c := range clients {
		for range perSocket {
			m := unpacked(t, c.receive())
			if int(m.Id) >= MaxForwarded || seen[m.Id] || text(m) != "late" {
				t.Fatalf("got %v", m)
			}
			seen[m.Id] = true
		}
	}
	eventually(t, "all slots are free", func() bool { return f.Counts().UnderWay == 0 })
	if got := dial(t, TCP, tcp).ask(query("a.example", dns.TypeTXT)); text(got) != "late" {
		t.Errorf("afterwards: %v", got)
	}
}

func TestLabelsOfAnyBytesPass(t *testing.T) {
	s := newSite(t, func(a asked) [][]byte { return [][]byte{packed(new(dns.Msg).SetReply(a.msg))} })
	c := dial(t, UDP, start(t, UDP, NewForwarder(s.upstreams())))
	long := strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61) + "."
	for _, name := range []string{".", `a\.b.example.`, `\000\255.example.`, `sp\ ace.example.`, long} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeTXT)
		if got := c.ask(q); got.Rcode != dns.RcodeSuccess || got.Question[0] != q.Question[0] {
			t.Errorf("%q: %v", name, got)
		}
	}
}
