package ice

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pion "github.com/pion/ice/v2"
	"github.com/pion/logging"
	"github.com/pion/stun"
	stunlib "github.com/pion/stun/v3"

	"firezone-gateway/internal/drop"
)

// world is the gateway's side: legs are its sockets on loopback, of which some
// play relayed addresses, and the mux is fed from all of them.
type world struct {
	*testing.T
	mux     *Mux
	drops   *drop.Counters
	legs    []netip.AddrPort
	socks   map[netip.AddrPort]net.PacketConn
	readers sync.WaitGroup
	ignored atomic.Int32
	reasons drop.Counters
	states  history[State]
	bests   history[way]
	log     lockedBuffer
}

func newWorld(t *testing.T, legs int) *world {
	w := &world{T: t, drops: new(drop.Counters), socks: make(map[netip.AddrPort]net.PacketConn)}
	for range legs {
		s := w.socket()
		w.legs = append(w.legs, addrOf(s))
		w.socks[addrOf(s)] = s
	}
	w.mux = NewMux(w, w.drops)
	for addr, s := range w.socks {
		w.readers.Go(func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := s.ReadFrom(buf)
				if err != nil {
					return
				}
				src, _ := addrPort(from)
				reason := w.mux.Deliver(buf[:n], addr, src)
				w.reasons.Add(reason, 1)
				if reason == drop.STUNUnknown {
					w.ignored.Add(1)
				}
			}
		})
	}
	return w
}

func (w *world) SendSTUN(b []byte, local, remote netip.AddrPort) error {
	_, err := w.socks[local].WriteTo(b, net.UDPAddrFromAddrPort(remote))
	return err
}

func (w *world) config(locals []netip.AddrPort, onState func(State)) Config {
	if onState == nil {
		onState = w.states.add
	}
	return Config{
		LocalUfrag: gatewayUfrag, LocalPwd: gatewayPwd, RemoteUfrag: clientUfrag, RemotePwd: clientPwd,
		Locals: hosts(locals...), Mux: w.mux, OnState: onState,
		Logger: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug - 4})),
		OnBest: func(l, r netip.AddrPort) { w.bests.add(way{l, r}) },
	}
}

func (w *world) agent(locals ...netip.AddrPort) Agent {
	w.Helper()
	a, err := New(w.config(locals, nil))
	if err != nil {
		w.Fatal(err)
	}
	return a
}

func (w *world) noDrops() {
	w.Helper()
	w.drops.Each(func(r drop.Reason, n uint64) { w.Errorf("%d dropped on the way out: %s", n, r) })
}

// close ends the agent, the peers and the world, in this order.
func (w *world) close(a Agent, peers ...*peer) {
	w.Helper()
	a.Close()
	select {
	case <-a.Done():
	case <-time.After(10 * time.Second):
		w.Fatal("the agent does not end")
	}
	for _, p := range peers {
		if p != nil {
			p.close()
		}
	}
	for _, s := range w.socks {
		_ = s.Close()
	}
	w.readers.Wait()
	w.mux.Close()
	if n := len(w.mux.agents) + len(w.mux.checks); n != 0 {
		w.Errorf("%d entries left in the mux", n)
	}
}

func (w *world) socket() net.PacketConn {
	w.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// peer is a controlling agent on the library's own mux, as another
// implementation would behave.
type peer struct {
	*testing.T
	lib   *pion.Agent
	mux   *pion.UDPMuxDefault
	sock  net.PacketConn
	addr  netip.AddrPort
	state atomic.Int32
	done  sync.WaitGroup
}

func (w *world) peer() *peer {
	w.Helper()
	p := &peer{T: w.T, sock: w.socket()}
	p.addr = addrOf(p.sock)
	p.mux = pion.NewUDPMuxDefault(pion.UDPMuxParams{UDPConn: p.sock})
	keepalive := 200 * time.Millisecond
	lib, err := pion.NewAgent(&pion.AgentConfig{
		LocalUfrag: clientUfrag, LocalPwd: clientPwd, NetworkTypes: []pion.NetworkType{pion.NetworkTypeUDP4},
		CandidateTypes: []pion.CandidateType{pion.CandidateTypeHost}, MulticastDNSMode: pion.MulticastDNSModeDisabled,
		UDPMux: p.mux, IncludeLoopback: true, KeepaliveInterval: &keepalive, LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled},
	})
	if err != nil {
		w.Fatal(err)
	}
	p.lib = lib
	gathered := make(chan struct{})
	_ = lib.OnConnectionStateChange(func(s pion.ConnectionState) { p.state.Store(int32(s)) })
	_ = lib.OnCandidate(func(c pion.Candidate) {
		if c == nil {
			close(gathered)
		}
	})
	if err := lib.GatherCandidates(); err != nil {
		w.Fatal(err)
	}
	<-gathered
	return p
}

func (p *peer) candidate(t Type) Candidate {
	return Candidate{Type: t, Addr: p.addr, Priority: 2130706175}
}

func (p *peer) add(addr netip.AddrPort, prio uint32) {
	p.Helper()
	c, err := libraryCandidate(Candidate{Type: Host, Addr: addr, Priority: prio})
	if err != nil {
		p.Fatal(err)
	}
	if err := p.lib.AddRemoteCandidate(c); err != nil {
		p.Fatal(err)
	}
}

func (p *peer) dial() {
	p.done.Go(func() { _, _ = p.lib.Dial(context.Background(), gatewayUfrag, gatewayPwd) })
}

func (p *peer) close() {
	_ = p.lib.Close()
	p.done.Wait()
	_ = p.mux.Close()
	_ = p.sock.Close()
}

// checker sends single connectivity checks and looks for the answers.
type checker struct {
	net.PacketConn
	*testing.T
	addr netip.AddrPort
}

func (w *world) checker() *checker {
	s := w.socket()
	return &checker{s, w.T, addrOf(s)}
}

func (c *checker) check(to netip.AddrPort) []byte {
	c.Helper()
	b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd, stunlib.RawAttribute{Type: stunlib.AttrICEControlling, Length: 8, Value: make([]byte, 8)})
	if _, err := c.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		c.Fatal(err)
	}
	return b
}

// answered repeats a check until it is answered from the address it went to.
func (c *checker) answered(by netip.AddrPort) {
	c.Helper()
	buf := make([]byte, 1500)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		b := c.check(by)
		for again := time.Now().Add(100 * time.Millisecond); ; {
			_ = c.SetReadDeadline(again)
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				break
			}
			m := &stun.Message{Raw: bytes.Clone(buf[:n])}
			if m.Decode() != nil || m.Type != stun.BindingSuccess || !bytes.Equal(m.TransactionID[:], b[8:20]) {
				continue
			}
			var mapped stun.XORMappedAddress
			if err := mapped.GetFrom(m); err != nil || mapped.String() != c.addr.String() || from.String() != by.String() {
				c.Fatalf("answer of %s says %s, %v", from, mapped, err)
			}
			if err := stun.NewShortTermIntegrity(gatewayPwd).Check(m); err != nil {
				c.Fatal(err)
			}
			return
		}
	}
	c.Fatalf("no answer from %s", by)
}

// libraryCandidate is c as the library for the client's side has it.
func libraryCandidate(c Candidate) (pion.Candidate, error) {
	ip, port := c.Addr.Addr().String(), int(c.Addr.Port())
	const component = 1
	switch c.Type {
	case ServerReflexive:
		return pion.NewCandidateServerReflexive(&pion.CandidateServerReflexiveConfig{
			Network: "udp", Address: ip, Port: port, Component: component, Priority: c.Priority, RelAddr: "0.0.0.0",
		})
	case Relay:
		return pion.NewCandidateRelay(&pion.CandidateRelayConfig{
			Network: "udp", Address: ip, Port: port, Component: component, Priority: c.Priority, RelAddr: "0.0.0.0",
		})
	}
	return pion.NewCandidateHost(&pion.CandidateHostConfig{
		Network: "udp", Address: ip, Port: port, Component: component, Priority: c.Priority,
	})
}

// hosts are host candidates of ours, best first.
func hosts(addrs ...netip.AddrPort) []Candidate {
	var all []Candidate
	for _, a := range addrs {
		all = append(all, Candidate{Type: Host, Addr: a, Base: a})
	}
	Prioritise(all)
	return all
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	u, ok := a.(*net.UDPAddr)
	if !ok || u == nil {
		return netip.AddrPort{}, false
	}
	p := unmap(u.AddrPort())
	return p, p.IsValid()
}

func addrOf(c net.PacketConn) netip.AddrPort {
	a, _ := addrPort(c.LocalAddr())
	return a
}

// history keeps what a callback was given.
type history[T comparable] struct {
	mu   sync.Mutex
	list []T
}

func (h *history[T]) add(v T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, v)
}

func (h *history[T]) all() []T {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

func (h *history[T]) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = nil
}

func (h *history[T]) wait(t *testing.T, want T) {
	t.Helper()
	eventually(t, fmt.Sprint(want), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.list) > 0 && h.list[len(h.list)-1] == want
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
