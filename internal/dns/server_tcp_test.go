package dns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// framed returns messages as they follow each other on a connection.
func framed(all ...[]byte) []byte {
	var stream []byte
	for _, m := range all {
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(m))), m...)
	}
	return stream
}

func numbered(id int) []byte {
	q := query(strconv.Itoa(id)+".example", dns.TypeTXT)
	q.Id = uint16(id)
	return packed(q)
}

func TestPipelinedQueriesAreAnsweredInAnyOrder(t *testing.T) {
	var mu sync.Mutex
	var gates []chan struct{}
	s := newSite(t, func(a asked) [][]byte {
		gate := make(chan struct{})
		mu.Lock()
		gates = append(gates, gate)
		mu.Unlock()
		<-gate
		return says(a.msg.Question[0].Name)(a)
	})
	f := NewForwarder(s.upstreams())
	f.timeout = 10 * patience
	c := dial(t, TCP, start(t, TCP, f))
	var all [][]byte
	for id := range MaxPipelined {
		all = append(all, numbered(id))
	}
	if _, err := c.Write(framed(all...)); err != nil {
		t.Fatal(err)
	}
	waiting := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(gates)
	}
	eventually(t, "all queries are at the name server", func() bool { return waiting() == MaxPipelined })
	mu.Lock()
	slices.Reverse(gates)
	mu.Unlock()
	seen := map[uint16]bool{}
	for i := range MaxPipelined {
		close(gates[i])
		m := unpacked(t, c.receive())
		if seen[m.Id] || text(m) != strconv.Itoa(int(m.Id))+".example." {
			t.Fatalf("got %v", m)
		}
		seen[m.Id] = true
	}
}

func TestOneConnectionHasFewQueriesUnderWay(t *testing.T) {
	var now, most atomic.Int64
	s := newSite(t, func(a asked) [][]byte {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(time.Millisecond) // so that those that may overlap do
		return says(a.msg.Question[0].Name)(a)
	})
	f := NewForwarder(s.upstreams())
	c := dial(t, TCP, start(t, TCP, f))
	const queries = 100
	var all [][]byte
	for id := range queries {
		all = append(all, numbered(id))
	}
	if _, err := c.Write(framed(all...)); err != nil {
		t.Fatal(err)
	}
	seen := map[uint16]bool{}
	for range queries {
		m := unpacked(t, c.receive())
		if seen[m.Id] || text(m) != strconv.Itoa(int(m.Id))+".example." {
			t.Fatalf("got %v", m)
		}
		seen[m.Id] = true
	}
	if n := most.Load(); n > MaxPipelined {
		t.Errorf("%d queries of one connection were under way, want at most %d", n, MaxPipelined)
	}
}

func TestQueriesOneAfterTheOther(t *testing.T) {
	c := dial(t, TCP, start(t, TCP, NewForwarder(newSite(t, says("x")).upstreams())))
	for range 20 {
		if got := c.ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
			t.Fatalf("rule 73: got %v", got)
		}
	}
}

func TestQueriesInSmallPieces(t *testing.T) {
	c := dial(t, TCP, start(t, TCP, NewForwarder(newSite(t, says("x")).upstreams())))
	for _, b := range framed(numbered(7)) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if got := unpacked(t, c.receive()); got.Id != 7 || text(got) != "x" {
		t.Errorf("got %v", got)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	f := NewForwarder(newSite(t, says("x")).upstreams())
	addr := start(t, TCP, f, func(c *ServerConfig) { c.idle = 300 * time.Millisecond })
	for _, tc := range []struct {
		name string
		sent []byte
	}{
		{"without a query", nil},
		{"with half a length", []byte{0}},
		{"with half a query", framed(numbered(1))[:20]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, TCP, addr)
			if _, err := c.Write(tc.sent); err != nil {
				t.Fatal(err)
			}
			c.wantClosed()
		})
	}
	t.Run("after a query", func(t *testing.T) {
		c := dial(t, TCP, addr)
		c.ask(query("a.example", dns.TypeTXT))
		c.wantClosed()
	})
	t.Run("by trickling", func(t *testing.T) {
		c := dial(t, TCP, addr)
		end := time.Now().Add(patience)
		for _, b := range slices.Repeat([]byte{1}, 257) { // of a query of 257 bytes
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) || time.Now().After(end) {
				break
			}
		}
		c.SetReadDeadline(end)
		c.wantClosed()
	})
	if got := f.Counts().Malformed; got != 0 {
		t.Errorf("%d idle connections are counted as malformed", got)
	}
}

func TestAConnectionIsNotIdleWhileItWaits(t *testing.T) {
	gate := make(chan struct{})
	f := NewForwarder(newSite(t, withhold(gate, says("x"))).upstreams())
	f.timeout = 10 * patience
	addr := start(t, TCP, f, func(c *ServerConfig) { c.idle = 100 * time.Millisecond })
	waiting := dial(t, TCP, addr)
	waiting.send(numbered(7))
	eventually(t, "the query is under way", func() bool { return f.Counts().UnderWay == 1 })
	dial(t, TCP, addr).wantClosed() // so the time of the first one is over, too
	close(gate)
	if got := unpacked(t, waiting.receive()); got.Id != 7 || text(got) != "x" {
		t.Errorf("got %v", got)
	}
	waiting.wantClosed()
}

func TestAHalfClosedConnectionGetsItsAnswers(t *testing.T) {
	c := dial(t, TCP, start(t, TCP, NewForwarder(newSite(t, says("x")).upstreams())))
	if _, err := c.Write(framed(numbered(1), numbered(2), numbered(3))); err != nil {
		t.Fatal(err)
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	seen := map[uint16]bool{}
	for range 3 {
		seen[unpacked(t, c.receive()).Id] = true
	}
	if len(seen) != 3 {
		t.Errorf("answers to %v", seen)
	}
	c.wantClosed()
}

func TestConnectionsOfOneClientAreLimited(t *testing.T) {
	f := NewForwarder(newSite(t, says("x")).upstreams())
	addr := start(t, TCP, f)
	var open []client
	for range MaxConnsPerClient {
		c := dial(t, TCP, addr)
		c.ask(query("a.example", dns.TypeTXT))
		open = append(open, c)
	}
	dial(t, TCP, addr).wantClosed()
	if n := f.Counts().Connections; n != 1 {
		t.Errorf("%d refused connections are counted, want 1", n)
	}
	if got := dialFrom(t, TCP, netip.MustParseAddr("127.0.0.2"), addr).ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
		t.Errorf("another client got %v", got)
	}
	open[0].Close()
	eventually(t, "there is room again", func() bool {
		c := dial(t, TCP, addr)
		defer c.Close()
		if c.trySend(numbered(1)) != nil {
			return false
		}
		_, err := c.tryReceive()
		return err == nil
	})
	for _, c := range open[1:] {
		if got := c.ask(query("a.example", dns.TypeTXT)); text(got) != "x" {
			t.Errorf("an old connection got %v", got)
		}
	}
}

func TestConnectionsOfAllClientsAreLimited(t *testing.T) {
	f := NewForwarder(newSite(t, says("x")).upstreams())
	addr := start(t, TCP, f)
	for i := range MaxConns {
		c := dialFrom(t, TCP, netip.AddrFrom4([4]byte{127, 0, 1, byte(i / MaxConnsPerClient)}), addr)
		if i%MaxConnsPerClient == 0 {
			c.ask(query("a.example", dns.TypeTXT))
		}
	}
	dialFrom(t, TCP, netip.MustParseAddr("127.0.2.1"), addr).wantClosed()
	if n := f.Counts().Connections; n != 1 {
		t.Errorf("%d refused connections are counted, want 1", n)
	}
}

func TestAClientThatDoesNotReadLosesItsConnection(t *testing.T) {
	large := func(a asked) [][]byte { return [][]byte{sized(a.msg, dns.MaxMsgSize)} }
	f := NewForwarder(newSite(t, large).upstreams())
	addr := start(t, TCP, f)
	c := dial(t, TCP, addr)
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(1 << 12); err != nil {
		t.Fatal(err)
	}
	// It asks until the buffers on both sides are full of answers, and the
	// server gives up on it.
	wire := framed(numbered(1))
	for {
		if _, err := c.Write(wire); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server waits for ever")
			}
			break
		}
	}
	eventually(t, "nothing of it is left", func() bool { return f.Counts().UnderWay == 0 })
}
