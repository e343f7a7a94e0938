package actors

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"go.uber.org/goleak"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// patience bounds every wait of the tests.
const patience = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stage is a system in which probes play the top-level actors.
type stage struct {
	t      testing.TB
	plane  *testPlane
	system *actorkit.System

	root, portal, transport, tun, peers, dns *probe
}

func newStage(t testing.TB, p *testPlane) *stage {
	t.Helper()
	s := &stage{t: t, plane: p}
	s.system = actorkit.NewSystem(actorkit.Config{Logger: p.log.logger(t), Table: quick(Table)})
	t.Cleanup(func() { stopSystem(t, s.system) })
	s.root = s.probe(KindGateway, "gateway")
	s.portal, s.transport = s.probe(KindPortal, "portal"), s.probe(KindTransport, "transport")
	s.tun, s.peers, s.dns = s.probe(KindTUN, "tun"), s.probe(KindPeers, "peers"), s.probe(KindDNS, "dns")
	return s
}

// quick is t with shorter delays before restarts.
func quick(t actorkit.Table) actorkit.Table {
	t = maps.Clone(t)
	for kind, spec := range t {
		spec.Backoff.Start, spec.Backoff.Cap = time.Millisecond, 5*time.Millisecond
		t[kind] = spec
	}
	return t
}

// introduce makes the probes known to actors that start afterwards.
func (s *stage) introduce() {
	s.plane.siblings.store(messages.Siblings{
		Portal: s.portal.pid, Transport: s.transport.pid, TUN: s.tun.pid, Peers: s.peers.pid, DNS: s.dns.pid,
	})
}

func stopSystem(t testing.TB, s *actorkit.System) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// probe is an actor that hands its messages to the test, and runs what the test
// wants to happen in its turn.
type probe struct {
	t   testing.TB
	sys *actorkit.System
	pid actorkit.PID
	got chan any
}

type act func(ctx actorkit.Context)

func (s *stage) probe(kind, name string) *probe {
	s.t.Helper()
	p := &probe{t: s.t, sys: s.system, got: make(chan any, 4096)}
	pid, err := s.system.Spawn(kind, name, func() actorkit.Actor { return actorkit.ActorFunc(p.receive) })
	if err != nil {
		s.t.Fatal(err)
	}
	p.pid = pid
	return p
}

func (p *probe) receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case act:
		m(ctx)
	case *actorkit.Started, *actorkit.Stopping, *actorkit.Stopped, *actorkit.Restarting:
	case messages.UpdateRelays: // a probe of the transport takes them at once
		ctx.Respond(messages.RelaysUpdated{Number: m.Number})
		p.got <- m
	case messages.Disconnect: // a probe of the portal leaves at once
		ctx.Respond(messages.Disconnected{})
		p.got <- m
	default:
		p.got <- m
	}
}

// do runs f in the probe's turn and waits for it.
func (p *probe) do(f func(ctx actorkit.Context)) {
	p.t.Helper()
	done := make(chan struct{})
	p.sys.Send(p.pid, act(func(ctx actorkit.Context) { f(ctx); close(done) }))
	await(p.t, done, "the probe's turn")
}

// spawn starts an actor as child of the probe.
func (p *probe) spawn(kind, name string, producer func() actorkit.Actor) (pid actorkit.PID) {
	p.t.Helper()
	p.do(func(ctx actorkit.Context) {
		var err error
		if pid, err = actorkit.SpawnChild(ctx, kind, name, producer); err != nil {
			p.t.Error(err)
		}
	})
	return pid
}

// next returns the next message, which must be an M.
func next[M any](t testing.TB, p *probe) M {
	t.Helper()
	select {
	case got := <-p.got:
		m, ok := got.(M)
		if !ok {
			t.Fatalf("got %T %+v, want %T", got, got, m)
		}
		return m
	case <-time.After(patience):
		var m M
		t.Fatalf("no %T comes", m)
		return m
	}
}

// seek returns the next M and passes over everything else.
func seek[M any](t testing.TB, p *probe) M {
	t.Helper()
	expiry := time.After(patience)
	for {
		select {
		case got := <-p.got:
			if m, ok := got.(M); ok {
				return m
			}
		case <-expiry:
			var m M
			t.Fatalf("no %T comes", m)
			return m
		}
	}
}

// quiet checks that nothing has come.
func (p *probe) quiet(why string) {
	p.t.Helper()
	select {
	case got := <-p.got:
		p.t.Fatalf("%s: got %T %+v", why, got, got)
	default:
	}
}

// look runs f in the turn of an actor under test, after all it was sent before.
func (s *stage) look(pid actorkit.PID, f func(ctx actorkit.Context)) {
	s.t.Helper()
	done := make(chan struct{})
	s.system.Send(pid, act(func(ctx actorkit.Context) { f(ctx); close(done) }))
	await(s.t, done, actorkit.Path(pid)+"'s turn")
}

// settle waits until pid has handled what it was sent before.
func (s *stage) settle(pid actorkit.PID) {
	s.t.Helper()
	s.look(pid, func(actorkit.Context) {})
}

func await(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("no end of %s", what)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, ok func() bool, what string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: "+what, args...)
		}
		time.Sleep(time.Millisecond)
	}
}

// boom makes a faulty actor panic.
type boom struct{}

// faulty is an actor that panics when it is told to, and lets the test into its
// turn.
type faulty struct{ actorkit.Actor }

func (f faulty) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case boom:
		panic(ctx.Kind() + " was told to panic")
	case act:
		m(ctx)
	default:
		f.Actor.Receive(ctx)
	}
}

// typeOf names the type of a message.
func typeOf(msg any) string { return fmt.Sprintf("%T", msg) }

func (boom) Untraced() {}
func (act) Untraced()  {}
