package ice

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	stunlib "github.com/pion/stun/v3"
	"go.uber.org/goleak"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport/stun"
)

const (
	gatewayUfrag, gatewayPwd = "gate", "gatewaypasswordgateway"
	clientUfrag, clientPwd   = "clnt", "clientpasswordclientpw"
)

var (
	local  = ap("192.0.2.1:52625")
	remote = ap("203.0.113.5:1024")
)

// recorder is a Sender that keeps what it is given.
type recorder struct {
	mu   sync.Mutex
	sent [][]byte
	err  error
}

func (r *recorder) SendSTUN(b []byte, _, _ netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, bytes.Clone(b))
	return r.err
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent)
}

func newTestMux(t testing.TB, s Sender) (*Mux, *drop.Counters) {
	drops := new(drop.Counters)
	m := NewMux(s, drops)
	t.Cleanup(m.Close)
	return m, drops
}

func newTestView(m *Mux, onFull func()) (*view, *conn) {
	v := newView(m, gatewayUfrag+":"+clientUfrag, gatewayPwd, clientPwd, []netip.AddrPort{local}, onFull)
	c, err := v.GetConn(gatewayUfrag, net.UDPAddrFromAddrPort(local))
	if err != nil {
		panic(err)
	}
	return v, c.(*conn)
}

func TestDeliverSortsMessages(t *testing.T) {
	m, _ := newTestMux(t, &recorder{})
	v, c := newTestView(m, func() {})
	defer v.Close()
	valid := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	outgoing := request(clientUfrag+":"+gatewayUfrag, clientPwd)
	if _, err := c.WriteTo(outgoing, net.UDPAddrFromAddrPort(remote)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		name  string
		b     []byte
		local netip.AddrPort
		want  drop.Reason
	}{
		{"an authentic request", valid, local, drop.None},
		{"an authentic request on the mapped form of the address", valid, netip.AddrPortFrom(netip.AddrFrom16(local.Addr().As16()), local.Port()), drop.None},
		{"a request on an address that is not the agent's", valid, ap("192.0.2.2:52625"), drop.STUNUnknown},
		{"a request with a wrong password", request(gatewayUfrag+":"+clientUfrag, "guessguessguessguess"), local, drop.STUNUnknown},
		{"a request for an unknown gateway ufrag", request("none:"+clientUfrag, gatewayPwd), local, drop.STUNUnknown},
		{"a request from an unknown client ufrag", request(gatewayUfrag+":none", gatewayPwd), local, drop.STUNUnknown},
		{"a request without USERNAME", build(stunlib.BindingRequest, stunlib.TransactionID), local, drop.STUNUnknown},
		{"a request without integrity", build(stunlib.BindingRequest, stunlib.TransactionID, stunlib.NewUsername(gatewayUfrag+":"+clientUfrag)), local, drop.STUNUnknown},
		{"an indication", build(stunlib.NewType(stunlib.MethodBinding, stunlib.ClassIndication), stunlib.TransactionID), local, drop.STUNMalformed},
		{"a crafted address attribute", crafted(), local, drop.STUNMalformed},
		{"an Allocate response", build(stunlib.NewType(stunlib.MethodAllocate, stunlib.ClassSuccessResponse), stunlib.TransactionID), local, drop.STUNUnknown},
		{"a response to nothing", response(request("x:y", clientPwd), clientPwd), local, drop.STUNUnknown},
		{"a forged response", response(outgoing, "guessguessguessguess"), local, drop.STUNUnknown},
		{"the response", response(outgoing, clientPwd), local, drop.None},
		{"the response once more", response(outgoing, clientPwd), local, drop.STUNUnknown},
		{"nothing", nil, local, drop.STUNMalformed},
	} {
		t.Run(k.name, func(t *testing.T) {
			if got := m.Deliver(k.b, k.local, remote); got != k.want {
				t.Fatalf("%s, want %s", got, k.want)
			}
		})
	}
	buf := make([]byte, 1500)
	for range 3 {
		n, from, err := c.ReadFrom(buf)
		if err != nil || from.String() != remote.String() || !stun.Is(buf[:n]) {
			t.Fatalf("read %x from %v, %v", buf[:n], from, err)
		}
	}
}

func TestTwoClientsMayShareTheGatewayUfrag(t *testing.T) {
	m, _ := newTestMux(t, &recorder{})
	first, _ := newTestView(m, func() {})
	defer first.Close()
	second := newView(m, gatewayUfrag+":othr", "anotherpasswordanother", clientPwd, []netip.AddrPort{local}, func() {})
	defer second.Close()
	if _, err := second.GetConn("", net.UDPAddrFromAddrPort(local)); err != nil {
		t.Fatal(err)
	}
	for name, pwd := range map[string]string{gatewayUfrag + ":" + clientUfrag: gatewayPwd, gatewayUfrag + ":othr": "anotherpasswordanother"} {
		if got := m.Deliver(request(name, pwd), local, remote); got != drop.None {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestReplacementTakesOverAndSurvivesTheOldAgent(t *testing.T) {
	m, _ := newTestMux(t, &recorder{})
	old, oldConn := newTestView(m, func() {})
	replacement, c := newTestView(m, func() {})
	defer replacement.Close()
	_ = old.Close() // late clean-up of the old agent
	_ = oldConn.Close()
	if got := m.Deliver(request(gatewayUfrag+":"+clientUfrag, gatewayPwd), local, remote); got != drop.None {
		t.Fatal(got)
	}
	if len(c.queue) != 1 {
		t.Fatal("the replacement did not get the request")
	}
	if _, err := old.GetConn("", net.UDPAddrFromAddrPort(local)); err == nil {
		t.Fatal("a closed view gives out connections")
	}
	if _, _, err := oldConn.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

func TestQueuesAreBounded(t *testing.T) {
	t.Run("a full connection drops the newest", func(t *testing.T) {
		m, _ := newTestMux(t, &recorder{})
		v, _ := newTestView(m, func() {})
		defer v.Close()
		b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
		for range connQueue {
			if got := m.Deliver(b, local, remote); got != drop.None {
				t.Fatal(got)
			}
		}
		if got := m.Deliver(b, local, remote); got != drop.STUNOverflow {
			t.Fatal(got)
		}
	})
	t.Run("too many addresses ask for a restart", func(t *testing.T) {
		m, _ := newTestMux(t, &recorder{})
		full := 0
		v, c := newTestView(m, func() { full++ })
		defer v.Close()
		b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
		from := func(i int) netip.AddrPort { return netip.AddrPortFrom(remote.Addr(), uint16(1024+i)) }
		for i := range maxRemotes {
			if got := m.Deliver(b, local, from(i)); got != drop.None {
				t.Fatal(got)
			}
			_, _, _ = c.ReadFrom(make([]byte, 1500))
		}
		if got := m.Deliver(b, local, from(maxRemotes)); got != drop.STUNOverflow || full != 1 {
			t.Fatal(got, full)
		}
		if got := m.Deliver(b, local, from(0)); got != drop.None {
			t.Fatal("a known address was refused:", got)
		}
	})
	t.Run("transactions are forgotten by number and by age", func(t *testing.T) {
		m, _ := newTestMux(t, &recorder{})
		v, c := newTestView(m, func() {})
		defer v.Close()
		for i := range 3 * maxTransactions {
			to := netip.AddrPortFrom(remote.Addr(), uint16(1024+i%maxPairs))
			_, _ = c.WriteTo(request(clientUfrag+":"+gatewayUfrag, clientPwd), net.UDPAddrFromAddrPort(to))
		}
		if n := len(m.transactions); n != maxTransactions || len(v.sent) != n {
			t.Fatalf("%d transactions, %d noted", n, len(v.sent))
		}
		v.expire(time.Now().Add(transactionMemory+time.Second), maxTransactions)
		if len(m.transactions)+len(v.sent) != 0 {
			t.Fatal("old transactions are kept")
		}
	})
	t.Run("closing forgets transactions", func(t *testing.T) {
		m, _ := newTestMux(t, &recorder{})
		v, c := newTestView(m, func() {})
		_, _ = c.WriteTo(request(clientUfrag+":"+gatewayUfrag, clientPwd), net.UDPAddrFromAddrPort(remote))
		_ = v.Close()
		if len(m.transactions)+len(m.views) != 0 {
			t.Fatal("a closed view left something behind")
		}
	})
}

func TestChecksPerPairAreLimited(t *testing.T) {
	m, drops := newTestMux(t, &recorder{})
	v, _ := newTestView(m, func() {})
	defer v.Close()
	now := time.Now()
	p, other := pair{local, remote}, pair{local, ap("203.0.113.6:1")}
	passed := 0
	for range 1000 {
		if v.admit(p, now) {
			passed++
		}
	}
	if passed != checkRate {
		t.Fatalf("%d of a burst passed", passed)
	}
	if !v.admit(other, now) {
		t.Fatal("one pair limits another")
	}
	passed = 0
	for i := range 1000 {
		if v.admit(p, now.Add(time.Duration(i)*10*time.Millisecond)) {
			passed++
		}
	}
	if passed < 10*checkRate-10 || passed > 10*checkRate {
		t.Fatalf("%d passed in ten seconds", passed)
	}
	for i := range 2 * maxPairs {
		v.admit(pair{local, netip.AddrPortFrom(remote.Addr(), uint16(i))}, now)
	}
	if len(v.buckets) > maxPairs {
		t.Fatalf("%d buckets", len(v.buckets))
	}
	if drops.Load(drop.STUNOverflow) != 0 {
		t.Fatal("admit counts, but write does")
	}
}

func TestAStormOfChecksEndsInTheMux(t *testing.T) {
	out := &recorder{}
	m, drops := newTestMux(t, out)
	v, c := newTestView(m, func() {})
	defer v.Close()
	check := request(clientUfrag+":"+gatewayUfrag, clientPwd)
	answer := response(request("x:y", clientPwd), clientPwd)
	start := time.Now()
	const storm = 500
	for range storm {
		_, _ = c.WriteTo(check, net.UDPAddrFromAddrPort(remote))
	}
	most := checkRate + 1 + int(time.Since(start).Seconds()*checkRate)
	refused := int(drops.Load(drop.STUNOverflow))
	if passed := storm - refused; passed < checkRate || passed > most {
		t.Fatalf("%d checks passed", passed)
	}
	for range storm {
		_, _ = c.WriteTo(answer, net.UDPAddrFromAddrPort(remote)) // answers are not limited
	}
	eventually(t, "the rest is sent", func() bool { return out.count() == 2*storm-refused })
}

func TestWriteNeverBlocksAndCounts(t *testing.T) {
	block := make(chan struct{})
	s := &stuck{block: block}
	m, drops := newTestMux(t, s)
	v, c := newTestView(m, func() {})
	defer v.Close()
	defer close(block)
	answer := response(request("x:y", clientPwd), clientPwd)
	for range 2 * sendQueue {
		if _, err := c.WriteTo(answer, net.UDPAddrFromAddrPort(remote)); err != nil {
			t.Fatal(err)
		}
	}
	if n := drops.Load(drop.STUNOverflow); n < sendQueue-1 || n > sendQueue {
		t.Fatalf("%d counted", n)
	}
}

func TestSendErrorsAreCounted(t *testing.T) {
	m, drops := newTestMux(t, &recorder{err: errors.New("no route")})
	v, c := newTestView(m, func() {})
	defer v.Close()
	_, _ = c.WriteTo(response(request("x:y", clientPwd), clientPwd), net.UDPAddrFromAddrPort(remote))
	eventually(t, "the error is counted", func() bool { return drops.Load(drop.SendFailed) == 1 })
}

func TestDeliverAllocatesNothing(t *testing.T) {
	m, _ := newTestMux(t, &recorder{})
	v, c := newTestView(m, func() {})
	defer v.Close()
	b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	stranger := request("none:none", gatewayPwd)
	if n := testing.AllocsPerRun(200, func() {
		m.Deliver(stranger, local, remote)
		m.Deliver(b, local, remote)
		p := <-c.queue
		buffers.Put(p.buf)
	}); n >= 1 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzDeliver(f *testing.F) {
	f.Add(request(gatewayUfrag+":"+clientUfrag, gatewayPwd), true)
	f.Add(crafted(), false)
	f.Add(build(stunlib.BindingRequest, stunlib.TransactionID, stunlib.NewUsername("gate:clnt")), true)
	f.Add(response(request("x:y", clientPwd), clientPwd), false)
	m, _ := newTestMux(f, &recorder{})
	v, c := newTestView(m, func() {})
	f.Cleanup(func() { _ = v.Close() })
	f.Fuzz(func(t *testing.T, b []byte, answer bool) {
		if answer && len(b) >= stun.HeaderSize {
			m.remember(stun.ID(b), origin{v, c})
			defer m.forget(stun.ID(b))
		}
		before := bytes.Clone(b)
		reason := m.Deliver(b, local, remote)
		if !bytes.Equal(b, before) {
			t.Fatal("the datagram was changed")
		}
		select {
		case p := <-c.queue:
			if reason != drop.None || !bytes.Equal(*p.buf, b) {
				t.Fatalf("%s, but queued %x", reason, *p.buf)
			}
			if _, err := stun.Check(*p.buf); err != nil {
				t.Fatal("an unchecked message reached the agent")
			}
			buffers.Put(p.buf)
		default:
			if reason == drop.None && !answer {
				t.Fatal("lost")
			}
		}
	})
}

func BenchmarkDeliver(b *testing.B) {
	m, _ := newTestMux(b, &recorder{})
	v, c := newTestView(m, func() {})
	defer v.Close()
	for name, msg := range map[string][]byte{
		"authentic": request(gatewayUfrag+":"+clientUfrag, gatewayPwd), "stranger": request("none:none", gatewayPwd),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if m.Deliver(msg, local, remote) == drop.None {
					buffers.Put((<-c.queue).buf)
				}
			}
		})
	}
}

func TestMuxLeaksNothing(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := NewMux(&recorder{}, new(drop.Counters))
	v, _ := newTestView(m, func() {})
	_ = v.Close()
	m.Close()
}

type stuck struct{ block chan struct{} }

func (s *stuck) SendSTUN([]byte, netip.AddrPort, netip.AddrPort) error {
	<-s.block
	return nil
}

func request(username, pwd string, extra ...stunlib.Setter) []byte {
	setters := []stunlib.Setter{stunlib.BindingRequest, stunlib.TransactionID, stunlib.NewUsername(username)}
	setters = append(setters, extra...)
	return build(append(setters, stunlib.NewShortTermIntegrity(pwd), stunlib.Fingerprint)...)
}

func response(to []byte, pwd string) []byte {
	return build(stunlib.NewTransactionIDSetter(stun.ID(to)), stunlib.BindingSuccess,
		&stunlib.XORMappedAddress{IP: net.IPv4(192, 0, 2, 1), Port: 1}, stunlib.NewShortTermIntegrity(pwd), stunlib.Fingerprint)
}

func build(setters ...stunlib.Setter) []byte {
	m, err := stunlib.Build(setters...)
	if err != nil {
		panic(err)
	}
	return m.Raw
}

// crafted is the message that panics the library's XOR-MAPPED-ADDRESS getter.
func crafted() []byte {
	m := stunlib.New()
	m.Type, m.TransactionID = stunlib.BindingSuccess, stunlib.NewTransactionID()
	m.WriteHeader()
	m.Add(stunlib.AttrXORMappedAddress, nil)
	return m.Raw
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not within ten seconds: " + what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
