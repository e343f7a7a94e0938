package ice

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	stunlib "github.com/pion/stun/v3"
	"go.uber.org/goleak"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
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

// testAgent is an agent of the client at remote.
func testAgent(t testing.TB, m *Mux) *agent {
	a, err := New(Config{
		LocalUfrag: gatewayUfrag, LocalPwd: gatewayPwd, RemoteUfrag: clientUfrag, RemotePwd: clientPwd,
		Locals: []Candidate{hostLocal}, Mux: m,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a.(*agent)
}

func TestDeliverSortsMessages(t *testing.T) {
	out := &recorder{}
	m, _ := newTestMux(t, out)
	a := testAgent(t, m)
	a.AddRemote(hostRemote)
	eventually(t, "two checks are sent", func() bool { return out.count() >= 2 })
	out.mu.Lock()
	outgoing, refused := out.sent[0], out.sent[1]
	out.mu.Unlock()
	valid := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	foreign := bytes.Clone(outgoing)
	foreign[8]++
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
		{"an error response", build(stunlib.NewTransactionIDSetter(stun.ID(refused)), stunlib.BindingError, stunlib.CodeRoleConflict, stunlib.NewShortTermIntegrity(clientPwd)), local, drop.None},
		{"the success after it", response(refused, clientPwd), local, drop.STUNUnknown},
		{"a response to a check of no agent", response(foreign, clientPwd), local, drop.STUNUnknown},
		{"nothing", nil, local, drop.STUNMalformed},
	} {
		t.Run(k.name, func(t *testing.T) {
			if got := m.Deliver(k.b, k.local, remote); got != k.want {
				t.Fatalf("%s, want %s", got, k.want)
			}
		})
	}
	a.Close()
	if got := m.Deliver(valid, local, remote); got != drop.STUNUnknown {
		t.Errorf("after the end: %s", got)
	}
}

func TestTwoClientsMayShareTheGatewayUfrag(t *testing.T) {
	m, _ := newTestMux(t, &recorder{})
	testAgent(t, m)
	second, err := New(Config{
		LocalUfrag: gatewayUfrag, LocalPwd: "anotherpasswordanother", RemoteUfrag: "othr", RemotePwd: clientPwd,
		Locals: []Candidate{hostLocal}, Mux: m,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	for name, pwd := range map[string]string{gatewayUfrag + ":" + clientUfrag: gatewayPwd, gatewayUfrag + ":othr": "anotherpasswordanother"} {
		if got := m.Deliver(request(name, pwd), local, remote); got != drop.None {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestReplacementTakesOverAndSurvivesTheOldAgent(t *testing.T) {
	m, _ := newTestMux(t, &recorder{})
	old := testAgent(t, m)
	replacement := testAgent(t, m)
	old.Close() // late clean-up of the old agent
	if got := m.Deliver(request(gatewayUfrag+":"+clientUfrag, gatewayPwd), local, remote); got != drop.None {
		t.Fatal(got)
	}
	replacement.mu.Lock()
	defer replacement.mu.Unlock()
	if len(replacement.core.pairs) != 1 {
		t.Fatal("the replacement did not get the request")
	}
}

func TestAStormOfChecksDoesNotEcho(t *testing.T) {
	out := &recorder{}
	m, drops := newTestMux(t, out)
	testAgent(t, m)
	b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	const storm = sendQueue / 2
	start := time.Now()
	for range storm {
		if got := m.Deliver(b, local, remote); got != drop.None {
			t.Fatal(got)
		}
	}
	count := func() map[uint16]int {
		out.mu.Lock()
		defer out.mu.Unlock()
		n := make(map[uint16]int)
		for _, b := range out.sent {
			n[uint16(b[0])<<8|uint16(b[1])]++
		}
		return n
	}
	eventually(t, "all are answered", func() bool { return count()[bindingSuccess] == storm })
	most := 2 + int(time.Since(start)/firstGap)
	if n := count()[bindingRequest]; n < 1 || n > most || drops.Load(drop.STUNOverflow) != 0 {
		t.Fatalf("%d checks", n)
	}
}

func TestDeliverNeverBlocksAndCounts(t *testing.T) {
	block := make(chan struct{})
	m, drops := newTestMux(t, &stuck{block: block})
	testAgent(t, m)
	defer close(block)
	b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	for range 2 * sendQueue {
		if got := m.Deliver(b, local, remote); got != drop.None {
			t.Fatal(got)
		}
	}
	if n := drops.Load(drop.STUNOverflow); n < sendQueue-1 || n > sendQueue {
		t.Fatalf("%d counted", n)
	}
}

func TestSendErrorsAreCounted(t *testing.T) {
	m, drops := newTestMux(t, &recorder{err: errors.New("no route")})
	testAgent(t, m)
	m.Deliver(request(gatewayUfrag+":"+clientUfrag, gatewayPwd), local, remote)
	eventually(t, "answer and check are counted", func() bool { return drops.Load(drop.SendFailed) >= 2 })
}

func TestDeliverAllocatesNothing(t *testing.T) {
	m, _ := newTestMux(t, discard{})
	testAgent(t, m)
	b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	stranger := request("none:none", gatewayPwd)
	m.Deliver(b, local, remote)
	if n := testing.AllocsPerRun(2000, func() {
		m.Deliver(stranger, local, remote)
		m.Deliver(b, local, remote)
		runtime.Gosched() // to whoever empties the queue
	}); n >= 1 {
		t.Fatalf("%v allocations", n)
	}
}

// FuzzDeliver has an agent take anything, as a request or as an answer to a
// check that it sent.
func FuzzDeliver(f *testing.F) { fuzzDeliver(f) }

func TestHammerDeliver(t *testing.T) { hammer.Test(t, "FuzzDeliver", fuzzDeliver) }

func fuzzDeliver(f hammer.F) {
	use := stunlib.RawAttribute{Type: stunlib.AttrUseCandidate}
	f.Add(request(gatewayUfrag+":"+clientUfrag, gatewayPwd), uint8(0), uint16(9))
	f.Add(request(gatewayUfrag+":"+clientUfrag, gatewayPwd, use), uint8(2), uint16(9))
	f.Add(crafted(), uint8(1), uint16(1))
	f.Add(build(stunlib.BindingRequest, stunlib.TransactionID, stunlib.NewUsername("gate:clnt")), uint8(2), uint16(1))
	f.Add(build(stunlib.BindingRequest, stunlib.TransactionID, stunlib.NewUsername("gate:clnt"), use), uint8(2), uint16(1))
	f.Add(response(request("x:y", clientPwd), clientPwd), uint8(3), uint16(2))
	m, _ := newTestMux(f, discard{})
	a := testAgent(f, m)
	a.AddRemote(hostRemote)
	ours, theirs := stunlib.NewShortTermIntegrity(gatewayPwd), stunlib.NewShortTermIntegrity(clientPwd)
	f.Fuzz(func(t *testing.T, b []byte, how uint8, port uint16) {
		if how&1 != 0 && len(b) >= stun.HeaderSize {
			a.mu.Lock()
			b = bytes.Clone(b)
			id := a.transaction(a.core.pairs[0].ids[0])
			copy(b[8:], id[:])
			a.mu.Unlock()
		}
		key := ours
		if how&1 != 0 {
			key = theirs
		}
		if how&2 != 0 { // so that what is behind the integrity is reached
			if sealed := (&stunlib.Message{Raw: bytes.Clone(b)}); sealed.Decode() == nil && key.AddTo(sealed) == nil {
				b = sealed.Raw
			}
		}
		before := bytes.Clone(b)
		from := netip.AddrPortFrom(remote.Addr(), port)
		reason := m.Deliver(b, local, from)
		if !bytes.Equal(b, before) {
			t.Fatal("the datagram was changed")
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.core.pairs) > maxPairs || len(a.core.remotes) > maxRemotes || len(a.core.pairs) == 0 {
			t.Fatalf("%d pairs, %d addresses", len(a.core.pairs), len(a.core.remotes))
		}
		if reason != drop.None {
			return
		}
		msg := &stunlib.Message{Raw: bytes.Clone(b)}
		if err := msg.Decode(); err != nil {
			t.Fatal("taken, but does not decode:", err)
		}
		if msg.Type == stunlib.BindingRequest {
			key = ours
		} else {
			key = theirs
		}
		if err := key.Check(msg); err != nil {
			t.Fatal("taken, but not authentic:", err)
		}
		if p := a.core.pair(local, from); msg.Type == stunlib.BindingRequest && msg.Contains(stunlib.AttrUseCandidate) && p != nil && !p.nominated {
			t.Fatal("USE-CANDIDATE was not seen")
		}
	})
}

func BenchmarkDeliver(b *testing.B) {
	m, _ := newTestMux(b, discard{})
	testAgent(b, m)
	for name, msg := range map[string][]byte{
		"authentic": request(gatewayUfrag+":"+clientUfrag, gatewayPwd), "stranger": request("none:none", gatewayPwd),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Deliver(msg, local, remote)
			}
		})
	}
}

func TestMuxLeaksNothing(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := NewMux(&recorder{}, new(drop.Counters))
	a := testAgent(t, m)
	a.AddRemote(hostRemote)
	a.Close()
	m.Close()
	if len(m.agents)+len(m.checks)+len(m.table.rows) != 0 {
		t.Error("a closed agent left something behind")
	}
}

type discard struct{}

func (discard) SendSTUN([]byte, netip.AddrPort, netip.AddrPort) error { return nil }

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
