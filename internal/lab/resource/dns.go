package resource

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNSServer is a name server whose records and manners change at run time. It
// answers over UDP and TCP on one address, with authority for every name. What
// does not fit a datagram is truncated there and whole over TCP.
type DNSServer struct {
	address netip.AddrPort
	ctx     context.Context
	cancel  context.CancelFunc
	servers []*dns.Server
	running sync.WaitGroup
	closing sync.Once

	mu      sync.Mutex
	records map[question][]dns.RR // guarded by mu
	names   map[string]int        // record sets by name; guarded by mu
	manners map[string]Manners    // by name, "" for all others; guarded by mu
	asked   map[question]Asked    // guarded by mu
}

// question is what a query asks for, the name in its canonical form.
type question struct {
	name  string
	qtype uint16
}

// Manners say how a DNSServer treats queries for a name. The zero value answers
// from the records at once.
type Manners struct {
	Delay  time.Duration // before the answer
	Silent bool          // no answer at all
	Rcode  int           // other than 0: the answer is this code alone
}

// Asked counts the queries that arrived for one name and type.
type Asked struct{ UDP, TCP uint64 }

// ServeDNS starts a name server without records. Port 0 lets the kernel choose
// one, the same for both transports.
func ServeDNS(n Network, address netip.Addr, port uint16) (*DNSServer, error) {
	s := &DNSServer{
		records: make(map[question][]dns.RR), names: make(map[string]int),
		manners: make(map[string]Manners), asked: make(map[question]Asked),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	listener, err := n.Listen("tcp", netip.AddrPortFrom(address, port).String())
	if err != nil {
		return nil, fmt.Errorf("name server: %w", err)
	}
	s.address = netip.AddrPortFrom(address, portOf(listener.Addr()))
	packets, err := n.ListenPacket("udp", s.address.String())
	if err != nil {
		return nil, fmt.Errorf("name server: %w", errors.Join(err, listener.Close()))
	}
	if conn, ok := packets.(*net.UDPConn); ok {
		_ = conn.SetReadBuffer(socketBuffer) // refusal costs capacity, not correctness
	}
	for _, server := range []*dns.Server{{PacketConn: packets}, {Listener: listener}} {
		started := make(chan struct{})
		server.Handler, server.NotifyStartedFunc = dns.HandlerFunc(s.serve), func() { close(started) }
		s.servers = append(s.servers, server)
		s.running.Go(func() { _ = server.ActivateAndServe() }) // ends with Close
		<-started
	}
	return s, nil
}

// Address returns where the server listens.
func (s *DNSServer) Address() netip.AddrPort { return s.address }

// Set adds records in the form of a zone file, for example
// "www.example.com. 60 IN A 192.0.2.1". Those that the server has of the same
// names and types go.
func (s *DNSServer) Set(lines ...string) error {
	fresh := make(map[question][]dns.RR)
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			return fmt.Errorf("record: %w", err)
		}
		if rr == nil {
			return errors.New("record: the line has none")
		}
		q := question{dns.CanonicalName(rr.Header().Name), rr.Header().Rrtype}
		fresh[q] = append(fresh[q], rr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for q, set := range fresh {
		if s.records[q] == nil {
			s.names[q.name]++
		}
		s.records[q] = set
	}
	return nil
}

// SetAddresses makes addresses the A and AAAA records of a name. Without any,
// the name does not exist unless it has other records.
func (s *DNSServer) SetAddresses(name string, addresses ...netip.Addr) error {
	fqdn := dns.CanonicalName(name)
	var lines []string
	for _, a := range addresses {
		kind := "A"
		if a.Is6() {
			kind = "AAAA"
		}
		lines = append(lines, fmt.Sprintf("%s 60 IN %s %v", fqdn, kind, a))
	}
	s.remove(question{fqdn, dns.TypeA}, question{fqdn, dns.TypeAAAA})
	return s.Set(lines...)
}

// SetManners says how queries for a name are treated, or for "" those for all
// names without manners of their own.
func (s *DNSServer) SetManners(name string, m Manners) {
	if name != "" {
		name = dns.CanonicalName(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manners[name] = m
}

// Asked returns how many queries of one type came for a name.
func (s *DNSServer) Asked(name string, qtype uint16) Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[question{dns.CanonicalName(name), qtype}]
}

// Close ends the server and waits for it. Queries that wait for their answer get
// none. It may be called more than once.
func (s *DNSServer) Close() (err error) {
	s.closing.Do(func() {
		s.cancel()
		for _, server := range s.servers {
			err = errors.Join(err, server.Shutdown())
		}
		s.running.Wait()
	})
	return err
}

// LongTXT returns TXT records of a name with that many bytes of text in all,
// each a zone-file line with at most 200 of them.
func LongTXT(name string, bytes int) []string {
	var lines []string
	for i := 0; bytes > 0; i++ {
		n := min(bytes, 200)
		text := strconv.Itoa(i) + "-" + strings.Repeat("x", n)
		lines = append(lines, fmt.Sprintf("%s 60 IN TXT %q", dns.CanonicalName(name), text[:n]))
		bytes -= n
	}
	return lines
}

func (s *DNSServer) remove(questions ...question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range questions {
		if s.records[q] == nil {
			continue
		}
		delete(s.records, q)
		if s.names[q.name]--; s.names[q.name] == 0 {
			delete(s.names, q.name)
		}
	}
}

func (s *DNSServer) serve(w dns.ResponseWriter, query *dns.Msg) {
	if len(query.Question) != 1 {
		return
	}
	overUDP := w.LocalAddr().Network() == "udp"
	m, answer := s.answer(query, overUDP)
	if m.Silent {
		return
	}
	if m.Delay > 0 {
		timer := time.NewTimer(m.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
	}
	size := dns.MaxMsgSize
	if overUDP {
		size = dns.MinMsgSize
		if o := query.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
	}
	answer.Truncate(size)
	_ = w.WriteMsg(answer) // whoever is gone asks no more
}

// answer counts the query and returns what the records say at its arrival.
func (s *DNSServer) answer(query *dns.Msg, overUDP bool) (Manners, *dns.Msg) {
	q := question{dns.CanonicalName(query.Question[0].Name), query.Question[0].Qtype}
	answer := new(dns.Msg).SetReply(query)
	answer.Authoritative = true
	s.mu.Lock()
	defer s.mu.Unlock()
	count := s.asked[q]
	if overUDP {
		count.UDP++
	} else {
		count.TCP++
	}
	s.asked[q] = count
	m, ok := s.manners[q.name]
	if !ok {
		m = s.manners[""]
	}
	switch {
	case m.Rcode != dns.RcodeSuccess:
		answer.Rcode = m.Rcode
	case s.names[q.name] == 0:
		answer.Rcode = dns.RcodeNameError
	default:
		// The records are shared by answers, which only read them.
		answer.Answer = append(answer.Answer, s.records[q]...)
	}
	return m, answer
}
