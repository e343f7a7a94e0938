package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

// patience is for how long a test waits for what has to happen.
const patience = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// asked is a query as it reached a name server of a test.
type asked struct {
	wire []byte
	msg  *dns.Msg
	tcp  bool
}

// answers says what a name server of a test sends for a query: any number of
// messages. It runs on a goroutine of its own and may block.
type answers func(asked) [][]byte

// nameserver is a name server of a test.
type nameserver struct {
	addr    netip.Addr
	answers answers
	udp     *net.UDPConn
	tcp     *net.TCPListener
	work    sync.WaitGroup
	overUDP atomic.Int64 // queries that came
	overTCP atomic.Int64
	resets  atomic.Int64 // connections that were ended without TIME_WAIT
}

// site has name servers on loopback addresses and one port, and a resolv.conf
// that names them in order.
type site struct {
	port    uint16
	conf    string
	servers []*nameserver
}

// newSite starts a name server for each element. For nil nothing listens. At
// the end of the test no goroutine may be left.
func newSite(t testing.TB, all ...answers) *site {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	s := &site{conf: filepath.Join(t.TempDir(), "resolv.conf")}
	for i, a := range all {
		s.servers = append(s.servers, &nameserver{addr: netip.AddrFrom4([4]byte{127, 0, 0, byte(11 + i)}), answers: a})
	}
	for range 50 {
		if s.bind(t) {
			break
		}
	}
	if s.port == 0 && len(all) > 0 {
		t.Fatal("no port is free on all addresses")
	}
	lines := make([]string, 0, len(all))
	for _, ns := range s.servers {
		if ns.answers != nil {
			ns.work.Go(ns.serveUDP)
			ns.work.Go(ns.serveTCP)
			t.Cleanup(ns.close)
		}
		lines = append(lines, "nameserver "+ns.addr.String())
	}
	s.write(t, lines...)
	return s
}

// bind finds a port that is free for all name servers.
func (s *site) bind(t testing.TB) bool {
	t.Helper()
	probe, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 10)})
	if err != nil {
		t.Fatal(err)
	}
	port := probe.Addr().(*net.TCPAddr).AddrPort().Port()
	probe.Close()
	for i, ns := range s.servers {
		at := netip.AddrPortFrom(ns.addr, port)
		udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err == nil {
			ns.udp = udp
			ns.tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		}
		if err == nil && ns.answers == nil {
			ns.udp.Close()
			ns.tcp.Close()
		}
		if err != nil {
			for _, bound := range s.servers[:i] {
				bound.udp.Close()
				bound.tcp.Close()
			}
			if udp != nil {
				udp.Close()
			}
			return false
		}
	}
	s.port = port
	return true
}

// write replaces resolv.conf at once.
func (s *site) write(t testing.TB, lines ...string) {
	t.Helper()
	replace(t, s.conf, strings.Join(lines, "\n")+"\n")
}

func (s *site) upstreams() *Upstreams {
	return NewUpstreams(UpstreamsConfig{ResolvConf: s.conf, Port: s.port})
}

func replace(t testing.TB, path, text string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func (ns *nameserver) serveUDP() {
	buffer := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := ns.udp.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		wire := bytes.Clone(buffer[:n])
		ns.overUDP.Add(1)
		ns.work.Go(func() {
			for _, m := range ns.answer(wire, false) {
				_, _ = ns.udp.WriteToUDPAddrPort(m, from)
			}
		})
	}
}

func (ns *nameserver) serveTCP() {
	for {
		conn, err := ns.tcp.AcceptTCP()
		if err != nil {
			return
		}
		ns.work.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(2 * patience))
			for {
				wire, err := readFramed(conn, dns.MaxMsgSize)
				if errors.Is(err, syscall.ECONNRESET) {
					ns.resets.Add(1)
				}
				if err != nil {
					return
				}
				ns.overTCP.Add(1)
				for _, m := range ns.answer(wire, true) {
					if writeFramed(conn, m) != nil {
						return
					}
				}
			}
		})
	}
}

func (ns *nameserver) answer(wire []byte, tcp bool) [][]byte {
	m := new(dns.Msg)
	if m.Unpack(wire) != nil {
		return nil
	}
	return ns.answers(asked{wire, m, tcp})
}

func (ns *nameserver) close() {
	ns.udp.Close()
	ns.tcp.Close()
	ns.work.Wait()
}

func (ns *nameserver) queries() int64 { return ns.overUDP.Load() + ns.overTCP.Load() }

// silent never answers.
func silent(asked) [][]byte { return nil }

// says answers every query with a TXT record.
func says(text string) answers {
	return func(a asked) [][]byte {
		return [][]byte{answerTo(a.msg, &dns.TXT{Hdr: header(a.msg, dns.TypeTXT), Txt: []string{text}})}
	}
}

// codes answers every query with a response code.
func codes(rcode int) answers {
	return func(a asked) [][]byte { return [][]byte{packed(new(dns.Msg).SetRcode(a.msg, rcode))} }
}

// withhold answers as next does when gate is closed.
func withhold(gate <-chan struct{}, next answers) answers {
	return func(a asked) [][]byte {
		<-gate
		return next(a)
	}
}

func header(q *dns.Msg, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Question[0].Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: 60}
}

func answerTo(q *dns.Msg, records ...dns.RR) []byte {
	m := new(dns.Msg).SetReply(q)
	m.Answer = records
	return packed(m)
}

// sized is an answer of exactly size bytes.
func sized(q *dns.Msg, size int) []byte {
	null := &dns.NULL{Hdr: header(q, dns.TypeNULL)}
	null.Data = strings.Repeat("x", size-len(answerTo(q, null)))
	return answerTo(q, null)
}

func packed(m *dns.Msg) []byte {
	wire, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return wire
}

func unpacked(t testing.TB, wire []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatalf("%x: %v", wire, err)
	}
	return m
}

func query(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// loopback admits clients of tests.
func loopback(a netip.Addr) bool { return a.IsLoopback() }

// start runs a server on a loopback address until the end of the test.
func start(t testing.TB, network Network, f *Forwarder, change ...func(*ServerConfig)) netip.AddrPort {
	t.Helper()
	cfg := ServerConfig{Network: network, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Forwarder: f, Clients: loopback}
	for _, c := range change {
		c(&cfg)
	}
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s.Addr()
}

// client is one socket towards a server.
type client struct {
	t testing.TB
	net.Conn
}

func dial(t testing.TB, network Network, to netip.AddrPort) client {
	t.Helper()
	return dialFrom(t, network, netip.MustParseAddr("127.0.0.1"), to)
}

func dialFrom(t testing.TB, network Network, from netip.Addr, to netip.AddrPort) client {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	if network == UDP {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := d.DialContext(t.Context(), string(network), to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return client{t, conn}
}

func (c client) stream() bool {
	_, ok := c.Conn.(*net.TCPConn)
	return ok
}

func (c client) send(wire []byte) {
	c.t.Helper()
	if err := c.trySend(wire); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) trySend(wire []byte) error {
	if c.stream() {
		return writeFramed(c, wire)
	}
	_, err := c.Write(wire)
	return err
}

func (c client) receive() []byte {
	c.t.Helper()
	wire, err := c.tryReceive()
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return wire
}

func (c client) tryReceive() ([]byte, error) {
	if c.stream() {
		return readFramed(c, dns.MaxMsgSize)
	}
	buffer := make([]byte, dns.MaxMsgSize)
	n, err := c.Read(buffer)
	return buffer[:n], err
}

// ask sends a query and returns the answer, which has to have its identifier.
func (c client) ask(q *dns.Msg) *dns.Msg {
	c.t.Helper()
	wire := packed(q)
	c.send(wire)
	got := c.receive()
	if binary.BigEndian.Uint16(got) != q.Id {
		c.t.Fatalf("answer to %d has the identifier of another query: %x", q.Id, got)
	}
	return unpacked(c.t, got)
}

// wantClosed fails unless the server closes the connection.
func (c client) wantClosed() {
	c.t.Helper()
	b, err := c.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("the connection is open: %d bytes, %v", b, err)
	}
}

// text returns the first TXT record of an answer, or its response code.
func text(m *dns.Msg) string {
	for _, rr := range m.Answer {
		if r, ok := rr.(*dns.TXT); ok {
			return strings.Join(r.Txt, "")
		}
	}
	return dns.RcodeToString[m.Rcode]
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func addrs(texts ...string) []netip.Addr {
	all := make([]netip.Addr, len(texts))
	for i, s := range texts {
		all[i] = netip.MustParseAddr(s)
	}
	return all
}
