package actorkit

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inBubble runs f with a fake clock; goroutines that outlive f fail the test.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// rig is a system with a recorder of its events.
type rig struct {
	*System
	t *testing.T

	mu     sync.Mutex
	events []Event
}

// spec is a row that restarts after 100 ms, 200 ms, … 1 s without jitter.
func spec(kind string, change ...func(*Spec)) Spec {
	s := Spec{
		Kind: kind, Restart: OnFailure,
		Backoff:        Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: time.Second},
		Intensity:      Intensity{Max: 3, Within: time.Minute},
		ShutdownBudget: time.Second,
		GiveUp:         Degrade,
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func newRig(t *testing.T, config Config, specs ...Spec) *rig {
	t.Helper()
	table, err := NewTable(specs...)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t}
	config.Table = table
	config.OnEvent = func(e Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}
	r.System = NewSystem(config)
	return r
}

// stop ends the system and expects nothing to be left.
func (r *rig) stop() {
	r.t.Helper()
	if err := r.Shutdown(r.t.Context()); err != nil {
		r.t.Errorf("shutdown: %v", err)
	}
	// The library's dead-letter throttle has a goroutine for 10 ms.
	time.Sleep(20 * time.Millisecond)
	synctest.Wait()
}

func (r *rig) count(t EventType) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if e.Type == t {
			n++
		}
	}
	return n
}

func (r *rig) spawn(kind, name string, producer func() Actor) PID {
	r.t.Helper()
	pid, err := r.Spawn(kind, name, producer)
	if err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
	return pid
}

// tell sends and waits until everything has come to rest.
func (r *rig) tell(pid PID, msgs ...any) {
	for _, m := range msgs {
		r.Send(pid, m)
	}
	synctest.Wait()
}

// diary is what actors write into and tests read.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines
	d.lines = nil
	return l
}

func (d *diary) expect(t *testing.T, want ...string) {
	t.Helper()
	got := d.take()
	if fmt.Sprint(got) != fmt.Sprint(want) || len(got) != len(want) {
		t.Errorf("diary\n got %q\nwant %q", got, want)
	}
}

// boom makes a probe panic.
type boom string

// do runs in the turn of a probe.
type do func(ctx Context)

// probe writes every message into its diary; do and boom act.
type probe struct {
	d *diary
	// panicOn names lifecycle messages that panic.
	panicOn string
}

func (p *probe) Receive(ctx Context) {
	name := typeName(ctx.Message())
	switch m := ctx.Message().(type) {
	case do:
		m(ctx)
		return
	case boom:
		p.d.add("boom %s", string(m))
		panic(string(m))
	case fuse:
		panic("x")
	case string:
		p.d.add("%s", m)
	case int:
		p.d.add("%d", m)
	case *Terminated:
		p.d.add("Terminated %s", Path(m.Who))
	case *ChildGaveUp:
		p.d.add("ChildGaveUp %s %s", m.Name, m.Fault)
	default:
		p.d.add("%s", name)
	}
	if name == p.panicOn {
		panic("in " + name)
	}
}

func probes(d *diary) func() Actor { return func() Actor { return &probe{d: d} } }

// child spawns a child under pid from the test.
func (r *rig) child(pid PID, kind, name string, producer func() Actor) PID {
	r.t.Helper()
	var made PID
	r.tell(pid, do(func(ctx Context) {
		var err error
		if made, err = SpawnChild(ctx, kind, name, producer); err != nil {
			r.t.Error(err)
		}
	}))
	return made
}
