package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Errors about messages.
var (
	errNoQuery  = errors.New("not a query with exactly one question")
	errMismatch = errors.New("not the answer to the query")
	errPanicked = errors.New("DNS library panicked")
)

// headerSize is the size of a DNS header in bytes (RFC 1035 §4.1.1).
const headerSize = 12

// parse unpacks a message from outside. A panic of the library becomes an error
// that wraps errPanicked.
func parse(wire []byte) (m *dns.Msg, err error) {
	defer func() {
		if r := recover(); r != nil {
			m, err = nil, fmt.Errorf("%w: %v", errPanicked, r)
		}
	}()
	m = new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return nil, err
	}
	return m, nil
}

// parseQuery unpacks what a client sent: QR bit clear, one question, parsable
// sections (dataplane §6.2).
func parseQuery(wire []byte) (*dns.Msg, error) {
	m, err := parse(wire)
	if err != nil {
		return nil, err
	}
	if m.Response || len(m.Question) != 1 {
		return nil, errNoQuery
	}
	return m, nil
}

// parseAnswer unpacks what a name server sent, and compares identifier and
// question with those of the query. Letter case of the name does not count.
// An error that wraps errMismatch says that the message may be from somebody
// else, any other that the name server is broken.
//
// If cut, the end of the message was lost on receipt: only header and question
// are looked at, and the TC bit is set.
func parseAnswer(wire []byte, query *dns.Msg, cut bool) (*dns.Msg, error) {
	if len(wire) < headerSize || binary.BigEndian.Uint16(wire) != query.Id {
		return nil, errMismatch
	}
	if cut {
		head := slices.Clone(wire)
		head[2] |= 0x02           // TC
		clear(head[6:headerSize]) // counts of records
		wire = head
	}
	m, err := parse(wire)
	switch {
	case err != nil:
		return nil, err
	case !m.Response || m.Opcode != query.Opcode:
		return nil, errMismatch
	case len(m.Question) == 0 && refusal(m):
		return m, nil // some leave the question out when they refuse
	case len(m.Question) != 1 || !sameQuestion(m.Question[0], query.Question[0]):
		return nil, errMismatch
	}
	return m, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// refusal reports whether another name server may know more.
func refusal(m *dns.Msg) bool {
	switch m.Rcode & 0xf {
	case dns.RcodeSuccess, dns.RcodeNameError:
		return false
	}
	return true
}

// fail returns the answer to query that has only a response code. Its header
// has identifier, opcode and RD of the query (dataplane §6.2).
func fail(query *dns.Msg, rcode int) []byte {
	m := dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: query.Id, Opcode: query.Opcode, RecursionDesired: query.RecursionDesired,
			Response: true, Rcode: rcode,
		},
		Question: query.Question,
	}
	return pack(&m)
}

// fit returns answer as it goes to a client over UDP: unchanged if it is not
// above limit bytes, else only header and question, with the TC bit.
func fit(answer []byte, parsed, query *dns.Msg, limit int) []byte {
	if len(answer) <= limit {
		return answer
	}
	m := dns.Msg{MsgHdr: parsed.MsgHdr, Question: query.Question}
	m.Id = query.Id
	m.Truncated = true
	m.Rcode &= 0xf // the rest of an extended code was in the OPT record
	return pack(&m)
}

// announced returns the size of the largest UDP answer in bytes that the sender
// of query says it takes, at most MaxUDPAnswer.
func announced(query *dns.Msg) int {
	opt := query.IsEdns0()
	if opt == nil {
		return minUDPAnswer
	}
	return min(max(int(opt.UDPSize()), minUDPAnswer), MaxUDPAnswer)
}

// withID returns a copy of a message that has another identifier.
func withID(wire []byte, id uint16) []byte {
	c := slices.Clone(wire)
	binary.BigEndian.PutUint16(c, id)
	return c
}

// pack returns m on the wire, or nil if the library cannot write what it has
// read.
func pack(m *dns.Msg) (wire []byte) {
	defer func() {
		if recover() != nil {
			wire = nil
		}
	}()
	wire, err := m.Pack()
	if err != nil {
		return nil
	}
	return wire
}
