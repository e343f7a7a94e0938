package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"firezone-gateway/internal/hammer"
)

// edit returns a copy of wire with one byte changed.
func edit(wire []byte, at int, to byte) []byte {
	c := bytes.Clone(wire)
	c[at] = to
	return c
}

func TestParseQueryTakesWhatCanBeForwarded(t *testing.T) {
	plain := packed(query("a.example", dns.TypeTXT))
	two := query("a.example", dns.TypeTXT)
	two.Question = append(two.Question, two.Question[0])
	withAnswer := query("a.example", dns.TypeTXT)
	withAnswer.Answer = []dns.RR{&dns.TXT{Hdr: header(withAnswer, dns.TypeTXT), Txt: []string{"x"}}}
	loop := append(bytes.Clone(plain[:headerSize]), 0xc0, headerSize, 0, 16, 0, 1)
	for _, tc := range []struct {
		name string
		wire []byte
		ok   bool
	}{
		{"a query", plain, true},
		{"a query with EDNS", packed(query("a.example", dns.TypeTXT).SetEdns0(4096, true)), true},
		{"a query with a record in the answer section", packed(withAnswer), true},
		{"an unknown type", packed(query("a.example", 65280)), true},
		{"the root", packed(query(".", dns.TypeNS)), true},
		{"nothing", nil, false},
		{"a part of the header", plain[:headerSize-1], false},
		{"a header only", plain[:headerSize], false},
		{"a part of the question", plain[:len(plain)-1], false},
		{"an answer", edit(plain, 2, 0x80), false},
		{"no question", edit(plain, 5, 0), false},
		{"two questions", packed(two), false},
		{"a count of two questions with one", edit(plain, 5, 2), false},
		{"a name that points to itself", loop, false},
		{"a label of a reserved kind", edit(plain, headerSize, 0x80), false},
		{"an answer section that is cut off", packed(withAnswer)[:len(packed(withAnswer))-1], false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := parseQuery(tc.wire)
			if tc.ok != (err == nil) || tc.ok != (m != nil) {
				t.Errorf("got %v, %v", m, err)
			}
		})
	}
}

func TestParseAnswerComparesWithTheQuery(t *testing.T) {
	q := query("a.Example", dns.TypeTXT)
	q.Id = 0x1234
	reply := func(change func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(q, dns.TypeTXT), Txt: []string{"x"}}}
		change(m)
		return packed(m)
	}
	same := func(*dns.Msg) {}
	const (
		fits = iota
		foreign
		broken
	)
	for _, tc := range []struct {
		name string
		wire []byte
		cut  bool
		want int
	}{
		{"the answer", reply(same), false, fits},
		{"an answer in other letter case", reply(func(m *dns.Msg) { m.Question[0].Name = "A.eXAMPLE." }), false, fits},
		{"NXDOMAIN", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }), false, fits},
		{"a refusal without question", reply(func(m *dns.Msg) { m.Rcode, m.Question, m.Answer = dns.RcodeRefused, nil, nil }), false, fits},
		{"an answer that was cut on receipt", reply(same)[:40], true, fits},
		{"another identifier", reply(func(m *dns.Msg) { m.Id++ }), false, foreign},
		{"another name", reply(func(m *dns.Msg) { m.Question[0].Name = "b.example." }), false, foreign},
		{"another type", reply(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA }), false, foreign},
		{"another class", reply(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), false, foreign},
		{"another opcode", reply(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), false, foreign},
		{"two questions", reply(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), false, foreign},
		{"success without question", reply(func(m *dns.Msg) { m.Question, m.Answer = nil, nil }), false, foreign},
		{"the query itself", packed(q), false, foreign},
		{"nothing", nil, false, foreign},
		{"an identifier only", []byte{0x12, 0x34}, false, foreign},
		{"a record that is cut off", reply(same)[:40], false, broken},
		{"a question that is cut off", reply(same)[:20], true, broken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := parseAnswer(tc.wire, q, tc.cut)
			got := broken
			switch {
			case err == nil:
				got = fits
			case errors.Is(err, errMismatch):
				got = foreign
			}
			if got != tc.want || (got == fits) != (m != nil) {
				t.Fatalf("kind %d, want %d: %v, %v", got, tc.want, m, err)
			}
			if tc.cut && got == fits && (!m.Truncated || len(m.Answer) > 0) {
				t.Errorf("a cut answer passes for a whole one: %v", m)
			}
		})
	}
}

func TestParseAnswerLeavesTheBytesAlone(t *testing.T) {
	q := query("a.example", dns.TypeTXT)
	wire := sized(q, 600)
	before := bytes.Clone(wire)
	if _, err := parseAnswer(wire, q, true); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(wire, before) {
		t.Error("the answer was changed")
	}
}

func TestFailHasWhatTheQueryHad(t *testing.T) {
	for _, rd := range []bool{false, true} {
		q := query("MiXed.example", dns.TypeSRV).SetEdns0(4096, true)
		q.RecursionDesired, q.Opcode, q.CheckingDisabled = rd, dns.OpcodeStatus, true
		m := unpacked(t, fail(q, dns.RcodeServerFailure))
		want := dns.MsgHdr{Id: q.Id, Response: true, Opcode: dns.OpcodeStatus, RecursionDesired: rd, Rcode: dns.RcodeServerFailure}
		if m.MsgHdr != want {
			t.Errorf("header %+v, want %+v", m.MsgHdr, want)
		}
		if len(m.Question) != 1 || m.Question[0] != q.Question[0] || len(m.Answer)+len(m.Ns)+len(m.Extra) > 0 {
			t.Errorf("%v", m)
		}
	}
}

func TestFitKeepsHeaderAndQuestionOfLongAnswers(t *testing.T) {
	q := query("MiXed.example", dns.TypeNULL).SetEdns0(4096, true)
	q.Id = 7
	m := new(dns.Msg).SetReply(q)
	m.AuthenticatedData, m.RecursionAvailable, m.Rcode = true, true, dns.RcodeBadVers
	m.Answer = []dns.RR{&dns.NULL{Hdr: header(q, dns.TypeNULL), Data: strings.Repeat("x", 400)}}
	m.SetEdns0(1232, true)
	wire := packed(m)
	parsed := unpacked(t, wire)
	if got := fit(wire, parsed, q, len(wire)); !bytes.Equal(got, wire) {
		t.Error("an answer that fits was changed")
	}
	got := unpacked(t, fit(wire, parsed, q, len(wire)-1))
	if !got.Truncated || !got.AuthenticatedData || !got.RecursionAvailable || got.Id != 7 || !got.Response {
		t.Errorf("header %+v", got.MsgHdr)
	}
	if len(got.Question) != 1 || got.Question[0] != q.Question[0] || len(got.Answer)+len(got.Ns)+len(got.Extra) > 0 {
		t.Errorf("%v", got)
	}
}

func TestAnnouncedSize(t *testing.T) {
	for _, tc := range []struct {
		name string
		q    *dns.Msg
		want int
	}{
		{"without EDNS", query("a", dns.TypeTXT), 512},
		{"less than the least", query("a", dns.TypeTXT).SetEdns0(100, false), 512},
		{"less than a packet", query("a", dns.TypeTXT).SetEdns0(1000, false), 1000},
		{"more than a packet", query("a", dns.TypeTXT).SetEdns0(4096, false), MaxUDPAnswer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := announced(tc.q); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func FuzzQuery(f *testing.F) { fuzzQuery(f) }

func TestHammerQuery(t *testing.T) { hammer.Test(t, "FuzzQuery", fuzzQuery) }

func fuzzQuery(f hammer.F) {
	f.Add(packed(query("a.example", dns.TypeTXT)))
	f.Add(packed(query("_sip._tcp.A.example", dns.TypeSRV).SetEdns0(1232, true)))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x10\x00\x01"))
	f.Add([]byte("\x00\x01\x28\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03\\.\xff\x00\x00\x06\x00\x01"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		fw := NewForwarder(NewUpstreams(UpstreamsConfig{}))
		before := bytes.Clone(wire)
		q, answer := fw.admit(wire)
		if !bytes.Equal(wire, before) {
			t.Fatal("the query was changed")
		}
		c := fw.Counts()
		switch {
		case q == nil && answer == nil:
			if c.Malformed != 1 {
				t.Fatalf("not counted: %+v", c)
			}
			return
		case q == nil:
			if c.Refused != 1 || wire[2]&0x78 == 0 {
				t.Fatalf("refused: %x", wire)
			}
			return
		}
		if wire[2]&0xf8 != 0 || binary.BigEndian.Uint16(wire[4:]) != 1 || c.UnderWay != 1 {
			t.Fatalf("admitted: %x", wire)
		}
		forwarded := withID(wire, q.Id+1)
		if !bytes.Equal(forwarded[2:], wire[2:]) || binary.BigEndian.Uint16(forwarded) != q.Id+1 {
			t.Fatalf("%x is forwarded as %x", wire, forwarded)
		}
		failed := fail(q, dns.RcodeServerFailure)
		m, err := parseAnswer(failed, q, false)
		if err != nil || m.Rcode != dns.RcodeServerFailure || len(failed) > minUDPAnswer {
			t.Fatalf("SERVFAIL %x: %v", failed, err)
		}
		if size := announced(q); size < minUDPAnswer || size > MaxUDPAnswer {
			t.Fatalf("%d bytes are announced", size)
		}
	})
}

func FuzzAnswer(f *testing.F) { fuzzAnswer(f) }

// TestHammerAnswer has answers repeat the query's identifier and question.
func TestHammerAnswer(t *testing.T) {
	hammer.Test(t, "FuzzAnswer", fuzzAnswer, func(args []any) {
		query, answer := args[0].([]byte), args[1].([]byte)
		copy(answer, query[:min(2, len(query))])
		if len(answer) > 12 && len(query) > 12 {
			answer[2] |= 0x80
			copy(answer[4:6], query[4:6])
			copy(answer[12:], query[12:])
		}
	})
}

func fuzzAnswer(f hammer.F) {
	q := query("a.example", dns.TypeA)
	q.Id = 1
	alias := &dns.CNAME{Hdr: header(q, dns.TypeCNAME), Target: "b.example."}
	target := &dns.A{Hdr: dns.RR_Header{Name: "b.example.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 1}}
	f.Add(packed(q), answerTo(q, alias, target), 512, false)
	f.Add(packed(q), answerTo(q, &dns.CNAME{Hdr: header(q, dns.TypeCNAME), Target: "a.example."}), 512, false)
	f.Add(packed(q), sized(q, 1500), 1200, true)
	f.Add(packed(q), packed(new(dns.Msg).SetRcode(q, dns.RcodeRefused)), 512, false)
	f.Fuzz(func(t *testing.T, query, answer []byte, limit int, cut bool) {
		q, err := parseQuery(query)
		if err != nil || q.Opcode != dns.OpcodeQuery {
			return
		}
		before := bytes.Clone(answer)
		m, err := parseAnswer(answer, q, cut)
		if !bytes.Equal(answer, before) {
			t.Fatal("the answer was changed")
		}
		if err != nil {
			return
		}
		if binary.BigEndian.Uint16(answer) != q.Id || answer[2]&0x80 == 0 {
			t.Fatalf("%x answers %d", answer, q.Id)
		}
		if len(m.Question) == 1 {
			for _, a := range addresses(m) {
				if want := q.Question[0].Qtype == dns.TypeA; want != a.Is4() {
					t.Fatalf("%v for type %d", a, q.Question[0].Qtype)
				}
			}
		} else if !refusal(m) {
			t.Fatalf("an answer without question: %v", m)
		}
		limit = min(max(limit, minUDPAnswer), MaxUDPAnswer)
		sent := fit(answer, m, q, limit)
		if len(answer) <= limit {
			if !bytes.Equal(sent, answer) {
				t.Fatal("an answer that fits was changed")
			}
			return
		}
		short, err := parseAnswer(sent, q, false)
		if err != nil || len(sent) > limit || !short.Truncated || len(short.Answer)+len(short.Ns)+len(short.Extra) > 0 {
			t.Fatalf("%x is sent as %x: %v", answer, sent, err)
		}
	})
}
