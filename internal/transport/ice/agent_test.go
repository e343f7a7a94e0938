package ice

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pion "github.com/pion/ice/v2"
	"github.com/pion/stun"
	stunlib "github.com/pion/stun/v3"
	"go.uber.org/goleak"

	"firezone-gateway/internal/drop"
)

func TestConnectsToAControllingAgent(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 1)
	a := w.agent(w.legs[0])
	p := w.peer()
	a.AddRemote(p.candidate(Host))
	p.add(w.legs[0], 1)
	p.dial()
	w.states.wait(t, StateConnected)
	w.bests.wait(t, way{w.legs[0], p.addr})
	w.noDrops()
	w.close(a, p)
}

func TestALateCandidateOfTheClientIsPunched(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 1)
	a := w.agent(w.legs[0])
	p := w.peer()
	a.AddRemote(p.candidate(Host))
	p.add(w.legs[0], 1)
	p.dial()
	w.bests.wait(t, way{w.legs[0], p.addr})

	late := w.socket()
	defer late.Close()
	a.AddRemote(Candidate{Type: ServerReflexive, Addr: addrOf(late), Priority: 7})
	buf := make([]byte, 1500)
	_ = late.SetReadDeadline(time.Now().Add(5 * time.Second))
	for range 2 { // the first check, and its repetition
		n, from, err := late.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		m := &stun.Message{Raw: bytes.Clone(buf[:n])}
		if err := m.Decode(); err != nil {
			t.Fatal(err)
		}
		name, _ := m.Get(stun.AttrUsername)
		prio, _ := m.Get(stun.AttrPriority)
		if m.Type != stun.BindingRequest || string(name) != clientUfrag+":"+gatewayUfrag || !m.Contains(stun.AttrICEControlled) ||
			m.Contains(stun.AttrUseCandidate) || !bytes.Equal(prio, []byte{0x6e, 0xbf, 0xfe, 0xff}) || from.String() != w.legs[0].String() {
			t.Fatalf("from %v: %s", from, m)
		}
		if err := stun.NewShortTermIntegrity(clientPwd).Check(m); err != nil {
			t.Fatal(err)
		}
		if err := stun.Fingerprint.Check(m); err != nil {
			t.Fatal(err)
		}
	}
	w.noDrops()
	w.close(a, p)
}

func TestRequestsAreAnsweredOnEveryAddressAndAfterChanges(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 3)
	a := w.agent(w.legs[0], w.legs[1])
	c := w.checker()
	defer c.Close()
	c.answered(w.legs[0])
	c.answered(w.legs[1]) // T-15, T-16: both, from an unknown address

	a.SetLocals(hosts(w.legs[1], w.legs[2]))
	c.answered(w.legs[2])
	c.answered(w.legs[1])
	w.ignored.Store(0)
	c.check(w.legs[0])
	eventually(t, "the removed address is deaf", func() bool { return w.ignored.Load() > 0 })

	relay := Candidate{Type: Relay, Addr: c.addr, Priority: 5}
	a.AddRemote(relay)
	c.answered(w.legs[1])
	a.RemoveRemote(relay)
	w.ignored.Store(0)
	c.check(w.legs[1])
	eventually(t, "a removed candidate's address is ignored", func() bool { return w.ignored.Load() > 0 })
	a.AddRemote(relay)
	c.answered(w.legs[1])
	w.close(a)
}

func TestAChangeOfOurAddressesIsNotNoticedByTheClient(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 2)
	a := w.agent(w.legs[0])
	p := w.peer()
	a.AddRemote(p.candidate(Host))
	p.add(w.legs[0], 1)
	p.dial()
	w.bests.wait(t, way{w.legs[0], p.addr})
	w.bests.reset()
	a.SetLocals(hosts(w.legs...))
	p.add(w.legs[1], 2)
	c := w.checker()
	defer c.Close()
	c.answered(w.legs[1])
	w.states.wait(t, StateConnected)
	if got := p.state.Load(); got != int32(pion.ConnectionStateConnected) {
		t.Fatalf("the client is %s", pion.ConnectionState(got))
	}
	for _, b := range w.bests.all() {
		if b.local != w.legs[1] { // the client may prefer the new one
			t.Errorf("moved to %v", b)
		}
	}
	w.close(a, p)
}

func TestManyChangesAtOnceAreMerged(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 2)
	a := w.agent(w.legs[0])
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				c := Candidate{Type: Host, Addr: netip.AddrPortFrom(netip.MustParseAddr("127.9.9.9"), uint16(1+i*50+j))}
				a.AddRemote(c)
				a.SetLocals(hosts(w.legs[:1+j%2]...))
				a.RemoveRemote(c)
			}
		})
	}
	wg.Wait()
	a.SetLocals(hosts(w.legs...))
	c := w.checker()
	defer c.Close()
	c.answered(w.legs[0])
	c.answered(w.legs[1])
	w.close(a)
}

func TestTooManyAddressesOfOneClientAreForgotten(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 1)
	a := w.agent(w.legs[0]).(*agent)
	c := w.checker()
	defer c.Close()
	c.answered(w.legs[0])
	b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd)
	for i := range 3 * maxRemotes {
		if got := w.mux.Deliver(b, w.legs[0], netip.AddrPortFrom(netip.MustParseAddr("127.9.9.9"), uint16(1024+i))); got != drop.None {
			t.Fatal(got)
		}
	}
	a.mu.Lock()
	if n := len(a.core.remotes); n != maxRemotes {
		t.Errorf("%d addresses are kept", n)
	}
	a.mu.Unlock()
	c.answered(w.legs[0])
	w.close(a)
}

func TestCloseIsSafeEverywhere(t *testing.T) {
	t.Run("twice, and with every method after it", func(t *testing.T) {
		defer goleak.VerifyNone(t)
		w := newWorld(t, 1)
		a := w.agent(w.legs[0])
		w.close(a, nil)
		a.Close()
		a.AddRemote(Candidate{Type: Host, Addr: remote})
		a.RemoveRemote(Candidate{Type: Host, Addr: remote})
		a.SetLocals(nil)
	})
	t.Run("from a callback", func(t *testing.T) {
		defer goleak.VerifyNone(t)
		w := newWorld(t, 1)
		var a Agent
		ready := make(chan struct{})
		var after atomic.Int32
		cfg := w.config(w.legs[:1], func(State) {
			<-ready
			if after.Add(1) == 1 {
				a.Close()
				<-a.Done()
			}
		})
		cfg.OnBest = func(_, _ netip.AddrPort) { after.Add(1) } // due at the same time
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		close(ready)
		nominating := request(gatewayUfrag+":"+clientUfrag, gatewayPwd, stunlib.RawAttribute{Type: stunlib.AttrUseCandidate})
		if got := w.mux.Deliver(nominating, w.legs[0], remote); got != drop.None {
			t.Fatal(got)
		}
		<-a.Done()
		w.close(a)
		if n := after.Load(); n != 1 {
			t.Fatalf("%d callbacks", n)
		}
	})
	t.Run("right after New, with a successor of the same credentials", func(t *testing.T) {
		defer goleak.VerifyNone(t)
		w := newWorld(t, 1)
		var old []Agent
		for range 20 {
			a := w.agent(w.legs[0])
			a.Close()
			old = append(old, a)
		}
		a := w.agent(w.legs[0])
		c := w.checker()
		defer c.Close()
		c.answered(w.legs[0])
		for _, o := range old {
			<-o.Done()
		}
		c.answered(w.legs[0])
		w.close(a)
	})
}

func TestNewRefusesUnusableCredentials(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := NewMux(&recorder{}, new(drop.Counters))
	defer m.Close()
	good := Config{Mux: m, LocalUfrag: "gate", LocalPwd: gatewayPwd, RemoteUfrag: "clnt", RemotePwd: clientPwd}
	for name, spoil := range map[string]func(*Config){
		"no local name":         func(c *Config) { c.LocalUfrag = "" },
		"no remote name":        func(c *Config) { c.RemoteUfrag = "" },
		"short local password":  func(c *Config) { c.LocalPwd = "short" },
		"short remote password": func(c *Config) { c.RemotePwd = "short" },
		"long name":             func(c *Config) { c.RemoteUfrag = strings.Repeat("x", 256) },
		"long password":         func(c *Config) { c.LocalPwd = strings.Repeat("x", 256) },
	} {
		cfg := good
		spoil(&cfg)
		if a, err := New(cfg); err == nil {
			a.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	if len(m.agents) != 0 {
		t.Fatal("a failed agent stays registered")
	}
	a, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
}

func TestNoPasswordIsLogged(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 1)
	a := w.agent(w.legs[0])
	p := w.peer()
	a.AddRemote(p.candidate(Host))
	p.add(w.legs[0], 1)
	p.dial()
	w.bests.wait(t, way{w.legs[0], p.addr})
	eventually(t, "the changes are logged", func() bool { return strings.Contains(w.log.String(), "best ICE pair") })
	w.close(a, p)
	cfg := w.config(nil, nil)
	text := w.log.String() + fmt.Sprint(cfg) + fmt.Sprintf("%+v", cfg)
	if !strings.Contains(text, "connected") {
		t.Fatal("the state is not in the log")
	}
	for _, secret := range []string{gatewayPwd, clientPwd} {
		if strings.Contains(text, secret) {
			t.Fatal("a password is in the log")
		}
	}
}
