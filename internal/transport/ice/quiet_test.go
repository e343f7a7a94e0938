package ice

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	stunlib "github.com/pion/stun/v3"

	"firezone-gateway/internal/drop"
)

// phone is a client without a socket, for bubbles of testing/synctest: it is the
// Sender of the gateway's Mux and answers checks unless it is asleep.
type phone struct {
	*testing.T
	mux   *Mux
	drops *drop.Counters

	mu     sync.Mutex
	asleep bool
	wire   []sentMessage // all that the gateway sent
}

type sentMessage struct {
	at     time.Time
	b      []byte
	remote netip.AddrPort
}

func newPhone(t *testing.T) *phone {
	p := &phone{T: t, drops: new(drop.Counters)}
	p.mux = NewMux(p, p.drops)
	return p
}

func (p *phone) SendSTUN(b []byte, local, remote netip.AddrPort) error {
	p.mu.Lock()
	p.wire = append(p.wire, sentMessage{time.Now(), bytes.Clone(b), remote})
	asleep := p.asleep
	p.mu.Unlock()
	if isCheck(b) && !asleep {
		p.mux.Deliver(response(b, clientPwd), local, remote)
	}
	return nil
}

// agent starts the gateway's agent for the phone at remote.
func (p *phone) agent(onState func(State)) Agent {
	p.Helper()
	a, err := New(Config{
		LocalUfrag: gatewayUfrag, LocalPwd: gatewayPwd, RemoteUfrag: clientUfrag, RemotePwd: clientPwd,
		Locals: []Candidate{hostLocal}, Mux: p.mux, OnState: onState,
	})
	if err != nil {
		p.Fatal(err)
	}
	a.AddRemote(Candidate{Type: Host, Addr: remote, Priority: 2130706175})
	synctest.Wait()
	return a
}

// checks has the phone check from one address, n times.
func (p *phone) checks(from netip.AddrPort, n int, every time.Duration) {
	p.Helper()
	for range n {
		b := request(gatewayUfrag+":"+clientUfrag, gatewayPwd,
			stunlib.RawAttribute{Type: stunlib.AttrICEControlling, Value: make([]byte, 8)},
			stunlib.RawAttribute{Type: stunlib.AttrPriority, Value: []byte{1, 2, 3, 4}},
			stunlib.RawAttribute{Type: stunlib.AttrUseCandidate})
		if r := p.mux.Deliver(b, local, from); r != drop.None {
			p.Fatalf("a check is dropped: %s", r)
		}
		time.Sleep(every)
		synctest.Wait()
	}
}

// take returns what was sent since it was asked last.
func (p *phone) take() []sentMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.wire
	p.wire = nil
	return taken
}

func (p *phone) sleep(asleep bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asleep = asleep
}

func (p *phone) close(a Agent) {
	a.Close()
	<-a.Done()
	p.mux.Close()
}

func isCheck(b []byte) bool { return binary.BigEndian.Uint16(b) == 0x0001 }

// kinds counts messages by their first two bytes.
func kinds(all []sentMessage) map[uint16]int {
	n := make(map[uint16]int)
	for _, m := range all {
		n[binary.BigEndian.Uint16(m.b)]++
	}
	return n
}

const (
	clientGap     = 1500 * time.Millisecond // between the checks of a client on one pair
	clientIdleGap = 25 * time.Second        // the same while it is idle
	// idleDeath is when an idle client gives a pair up (transport §2.7).
	idleDeath = 4 * clientIdleGap
)

func TestT14NoIndicationIsEverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		a := p.agent(nil)
		roamed := ap("203.0.113.9:9")
		p.checks(remote, 10, clientGap)
		a.AddRemote(Candidate{Type: ServerReflexive, Addr: roamed, Priority: 7})
		p.checks(roamed, 10, clientGap)
		p.checks(roamed, 4, clientIdleGap)
		a.RemoveRemote(Candidate{Type: ServerReflexive, Addr: roamed})
		a.SetLocals(append(hosts(ap("192.0.2.9:9")), hostLocal))
		time.Sleep(clientGap)
		p.checks(remote, 10, clientGap)
		p.sleep(true)
		time.Sleep(2 * idleDeath)
		p.sleep(false)
		p.checks(remote, 4, clientIdleGap)
		time.Sleep(failedAfter + time.Minute)
		p.close(a)
		got := kinds(p.take())
		if got[0x0001] == 0 || got[0x0101] == 0 || len(got) != 2 {
			t.Errorf("messages by type: %x", got)
		}
	})
}

func TestT34AnAgentOutlivesTheClientsPatience(t *testing.T) {
	for name, gap := range map[string]time.Duration{"active": clientGap, "idle": clientIdleGap} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPhone(t)
				var failedAt atomic.Pointer[time.Time]
				var state atomic.Uint32
				a := p.agent(func(s State) {
					state.Store(uint32(s))
					if s == StateFailed {
						now := time.Now()
						failedAt.Store(&now)
					}
				})
				defer p.close(a)
				p.checks(remote, 10, gap)
				for _, silence := range []time.Duration{idleDeath, 3 * idleDeath, failedAfter - time.Minute} {
					p.sleep(true)
					time.Sleep(silence)
					if at := failedAt.Load(); at != nil {
						t.Fatalf("given up within %v", silence)
					}
					p.take()
					p.sleep(false)
					p.checks(remote, 1, time.Second)
					if n := kinds(p.take())[0x0101]; n != 1 {
						t.Fatalf("after %v of silence %d answers to one check", silence, n)
					}
				}
				p.sleep(true)
				heard := time.Now()
				time.Sleep(time.Hour)
				if at := failedAt.Load(); at == nil || at.Sub(heard) < idleDeath {
					t.Errorf("given up at %v, heard last at %v", at, heard)
				}
				// It answers nevertheless, and is as before.
				p.take()
				p.sleep(false)
				p.checks(remote, 1, clientGap)
				if got := kinds(p.take()); got[0x0101] != 1 || got[0x0001] == 0 || State(state.Load()) != StateConnected {
					t.Errorf("after giving up messages %x, %v", got, State(state.Load()))
				}
			})
		})
	}
}

func TestT35IdleConnectionsAreCheckedEvery25Seconds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		checks bool
		asleep bool
		most   int // checks of ours in ten minutes
		least  int
	}{
		{"a client that checks as an idle one does", true, false, 24, 24},
		{"a client that answers", false, false, 24, 20},
		{"a client that is asleep", false, true, 24, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPhone(t)
				a := p.agent(nil)
				defer p.close(a)
				p.checks(remote, 20, clientGap)
				p.checks(remote, 1, clientIdleGap)
				p.take()
				p.sleep(tt.asleep)
				if tt.checks {
					p.checks(remote, 24, clientIdleGap)
				} else {
					time.Sleep(24 * clientIdleGap)
				}
				var last time.Time
				n := 0
				for _, m := range p.take() {
					if !isCheck(m.b) {
						continue
					}
					if gap := m.at.Sub(last); gap < clientIdleGap {
						t.Errorf("two checks within %v", gap)
					}
					last = m.at
					n++
				}
				if n > tt.most || n < tt.least {
					t.Errorf("%d checks in ten minutes", n)
				}
				// A client that comes back after long is checked at once; one that was
				// there all the time is only answered.
				p.sleep(false)
				p.checks(remote, 3, clientGap)
				got := kinds(p.take())
				if got[0x0101] != 3 || tt.asleep && got[0x0001] < 3 || !tt.asleep && got[0x0001] > 1 {
					t.Errorf("three checks lead to messages %x", got)
				}
			})
		})
	}
}

func TestAnAgentThatNeverHearsAnythingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		states := make(chan State, 8)
		a, err := New(Config{
			LocalUfrag: gatewayUfrag, LocalPwd: gatewayPwd, RemoteUfrag: clientUfrag, RemotePwd: clientPwd,
			Locals: []Candidate{hostLocal}, Mux: p.mux, OnState: func(s State) { states <- s },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.close(a)
		start := time.Now()
		if s := <-states; s != StateFailed || time.Since(start) != failedAfter {
			t.Errorf("%v after %v", s, time.Since(start))
		}
	})
}

func TestInnerDataKeepsAConnectionActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		var data atomic.Int64
		a, err := New(Config{
			LocalUfrag: gatewayUfrag, LocalPwd: gatewayPwd, RemoteUfrag: clientUfrag, RemotePwd: clientPwd,
			Locals: []Candidate{hostLocal}, Mux: p.mux, LastData: func() time.Time { return time.Unix(0, data.Load()) },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.close(a)
		p.checks(remote, 1, clientGap)
		for _, tt := range []struct {
			data        bool
			least, most int
		}{{true, 38, 41}, {false, 13, 17}, {false, 2, 3}, {true, 22, 41}} {
			p.take()
			for range 60 {
				if tt.data {
					data.Store(time.Now().UnixNano())
				}
				time.Sleep(time.Second)
			}
			if n := kinds(p.take())[0x0001]; n < tt.least || n > tt.most {
				t.Errorf("data %v: %d checks in a minute", tt.data, n)
			}
		}
		data.Store(time.Now().Add(time.Hour).UnixNano()) // the clock was set back
		time.Sleep(time.Minute)
		p.take()
		time.Sleep(time.Minute)
		if n := kinds(p.take())[0x0001]; n > 3 {
			t.Errorf("data in the future: %d checks in a minute", n)
		}
	})
}

// TestChecksAreNotHeldBackWhileNothingIsSelected has a client that is asleep
// when its connection begins, and again when the agent starts over.
func TestChecksAreNotHeldBackWhileNothingIsSelected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		p.sleep(true)
		a := p.agent(nil)
		defer p.close(a)
		for round := range 2 {
			p.sleep(true)
			if round > 0 {
				p.take()
				a.SetLocals(append(hosts(ap("192.0.2.9:9")), hostLocal))
			}
			time.Sleep(15 * time.Second)
			if n := kinds(p.take())[0x0001]; n < 12 {
				t.Errorf("round %d: %d checks within 15 s", round, n)
			}
			p.sleep(false)
			p.checks(remote, 10, clientGap)
		}
	})
}
