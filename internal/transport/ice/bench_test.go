package ice

import (
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
)

// echo answers every check, as a client does that is there.
type echo struct{ mux *Mux }

func (e *echo) SendSTUN(b []byte, local, remote netip.AddrPort) error {
	if isCheck(b) {
		e.mux.Deliver(response(b, clientPwd), local, remote)
	}
	return nil
}

// crowd makes connected agents of n clients, with two host and two relayed
// addresses of ours and ten candidates of each client.
func crowd(t testing.TB, m *Mux, n int) []Agent {
	t.Helper()
	locals := []Candidate{
		{Type: Host, Addr: local}, {Type: Host, Addr: ap("[2001:db8::1]:52625")},
		{Type: Relay, Addr: relayLocal.Addr}, {Type: Relay, Addr: ap("[2001:db8::2]:50000")},
	}
	Prioritise(locals)
	all := make([]Agent, n)
	for i := range all {
		ufrag := fmt.Sprintf("c%05d", i)
		a, err := New(Config{
			LocalUfrag: gatewayUfrag, LocalPwd: gatewayPwd, RemoteUfrag: ufrag, RemotePwd: clientPwd,
			Locals: locals, Mux: m, OnState: func(State) {}, OnBest: func(_, _ netip.AddrPort) {},
		})
		if err != nil {
			t.Fatal(err)
		}
		for j := range uint16(5) {
			a.AddRemote(Candidate{Type: ServerReflexive, Addr: netip.AddrPortFrom(remote.Addr(), 1000+j), Priority: uint32(j)})
			a.AddRemote(Candidate{Type: Host, Addr: netip.AddrPortFrom(ap("[2001:db8::9]:1").Addr(), 1000+j), Priority: uint32(j)})
		}
		if got := m.Deliver(request(gatewayUfrag+":"+ufrag, gatewayPwd, useCandidate), local, netip.AddrPortFrom(remote.Addr(), 1000)); got != drop.None {
			t.Fatal(got)
		}
		all[i] = a
	}
	return all
}

func TestAnIdleAgentCostsLittleMemoryAndNoGoroutine(t *testing.T) {
	const clients = 1000
	e := &echo{}
	m, _ := newTestMux(t, e)
	e.mux = m
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	goroutines, before := runtime.NumGoroutine(), heap()
	all := crowd(t, m, clients)
	after := heap()
	if n := runtime.NumGoroutine() - goroutines; n > 0 {
		t.Errorf("%d goroutines for %d clients", n, clients)
	}
	each := (after - min(after, before)) / clients
	t.Logf("%d bytes per agent", each)
	if each > 16<<10 {
		t.Errorf("%d bytes per agent", each)
	}
	for _, a := range all {
		a.Close()
	}
}

// BenchmarkIdleSecond is what a thousand idle agents cost in a second: an
// operation is their checks of 25 s and the answers to them, in virtual time.
func BenchmarkIdleSecond(b *testing.B) {
	const clients = 1000
	m, _ := newTestMux(b, discard{})
	cores := make([]*agent, clients)
	for i, a := range crowd(b, m, clients) {
		m.table.remove(a.(*agent))
		cores[i] = a.(*agent)
	}
	var due []check
	buf := make([]byte, 0, 128)
	now := m.now() + time.Minute
	for _, a := range cores {
		for now := now - time.Minute; now < m.now()+2*time.Minute; now += 100 * time.Millisecond {
			due = a.core.due(due[:0], now)
		}
	}
	now += 2 * time.Minute
	b.ReportAllocs()
	cpu := cpuTime()
	for b.Loop() {
		for _, a := range cores {
			due = a.core.due(due[:0], now)
			for _, k := range due {
				buf = a.checks.appendCheck(buf[:0], a.transaction(k.id), a.reverse, a.tie, false)
				a.core.success(k.id, now)
			}
			m.table.put(a, a.core.deadline(now))
			m.table.remove(a)
		}
		now += idleInterval
	}
	b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N)/25e3, "µs-cpu/s")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
