package actors

import (
	"errors"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/tun"
	"firezone-gateway/messages"
)

// tunRig is a stage with the tun actor.
type tunRig struct {
	*stage
	pid   actorkit.PID
	actor *tunActor // of the last incarnation; touched in its turn only
}

func newTUNRig(t testing.TB, prepare func(*testPlane)) *tunRig {
	t.Helper()
	r := &tunRig{stage: newStage(t, newTestPlane(t, ""))}
	if prepare != nil {
		prepare(r.plane)
	}
	r.pid = r.root.spawn(KindTUN, "tun", func() actorkit.Actor {
		r.actor = newTUN(r.plane.Plane)
		return faulty{r.actor}
	})
	return r
}

func receive[T any](t testing.TB, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func withAddresses(p *testPlane) { p.addresses.store(ownAddresses) }

func (r *tunRig) up() {
	r.t.Helper()
	eventually(r.t, func() bool { return r.plane.tunUp.Load() }, "the device is up")
}

func TestTheDeviceIsConfiguredOnceThereAreAddresses(t *testing.T) {
	r := newTUNRig(t, nil)
	device := receive(t, r.plane.host.opened, "device")
	r.system.Send(r.pid, messages.ConfigureTUN{})
	r.settle(r.pid)
	if len(r.plane.host.configured) != 0 || r.plane.tunUp.Load() {
		t.Fatal("configured without addresses")
	}
	withAddresses(r.plane)
	r.system.Send(r.pid, messages.ConfigureTUN{})
	if n := receive(t, r.plane.host.configured, "configuration"); n.V4 != ownAddresses.V4 || n.V6 != ownAddresses.V6 {
		t.Errorf("configured %+v", n)
	}
	r.up()
	if old := r.plane.Tunnel.AttachTUN(device); old != device {
		t.Error("the packet path has another device")
	}
}

// Two at a time would mix; whatever is asked meanwhile makes one more.
func TestConfigurationsFollowEachOther(t *testing.T) {
	begun, free := make(chan struct{}, 64), make(chan struct{})
	r := newTUNRig(t, func(p *testPlane) {
		withAddresses(p)
		p.Plane.host.configure = func(tun.Network) (tun.Families, error) {
			begun <- struct{}{}
			<-free
			return tun.Families{V4: true}, nil
		}
	})
	receive(t, begun, "configuration")
	for range 5 {
		r.system.Send(r.pid, messages.ConfigureTUN{})
	}
	r.settle(r.pid)
	if len(begun) != 0 {
		t.Error("two at a time")
	}
	free <- struct{}{}
	receive(t, begun, "second configuration")
	free <- struct{}{}
	r.up()
	r.settle(r.pid)
	if len(begun) != 0 {
		t.Error("a third one follows")
	}
	if n := strings.Count(r.plane.log.String(), "TUN device configured"); n != 1 {
		t.Errorf("the same outcome is logged %d times", n)
	}
}

func TestALostDeviceIsMadeAgain(t *testing.T) {
	for name, lose := range map[string]func(*tunRig, *memoryTUN){
		"deleted":                 func(_ *tunRig, d *memoryTUN) { close(d.gone) },
		"cannot be read any more": func(_ *tunRig, d *memoryTUN) { d.Close() },
		"lost while the actor restarts": func(r *tunRig, d *memoryTUN) {
			r.look(r.pid, func(ctx actorkit.Context) {
				close(d.gone)
				ctx.Send(ctx.Self(), boom{})
			})
		},
		"a fault that comes back at once": func(r *tunRig, _ *memoryTUN) {
			r.look(r.pid, func(ctx actorkit.Context) {
				for range 2 {
					ctx.Send(ctx.Self(), boom{})
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTUNRig(t, withAddresses)
			first := receive(t, r.plane.host.opened, "device")
			receive(t, r.plane.host.configured, "configuration")
			r.up()
			lose(r, first)
			second := receive(t, r.plane.host.opened, "second device")
			await(t, first.closed, "the first device")
			if n := receive(t, r.plane.host.configured, "second configuration"); n.V4 != ownAddresses.V4 {
				t.Errorf("configured %+v", n)
			}
			r.up()
			if old := r.plane.Tunnel.AttachTUN(second); old != second {
				t.Error("the packet path has another device")
			}
		})
	}
}

// A crash costs no packet: the device and what is configured on it stay.
func TestACrashKeepsTheDevice(t *testing.T) {
	r := newTUNRig(t, withAddresses)
	device := receive(t, r.plane.host.opened, "device")
	for range 3 {
		receive(t, r.plane.host.configured, "configuration")
		r.up()
		held := r.plane.device.load()
		held.adopted = time.Now().Add(-adoptionTrial)
		r.plane.device.store(held)
		r.system.Send(r.pid, boom{})
		r.settle(r.pid)
		if !r.plane.tunUp.Load() {
			t.Fatal("not ready for a crash")
		}
	}
	receive(t, r.plane.host.configured, "configuration")
	select {
	case <-device.closed:
		t.Error("the device was closed")
	default:
	}
	if old := r.plane.Tunnel.AttachTUN(device); old != device || len(r.plane.host.opened) != 0 {
		t.Error("the packet path has another device")
	}
	// It is watched by the new incarnation, too.
	close(device.gone)
	receive(t, r.plane.host.opened, "second device")
	await(t, device.closed, "the first device")
}

func TestADeviceThatCannotBeMadeIsTriedAgain(t *testing.T) {
	r := newTUNRig(t, func(p *testPlane) { p.host.fail = errors.New("busy") })
	eventually(t, func() bool { return strings.Contains(r.plane.log.String(), "busy") }, "the failure is logged")
	r.plane.host.mu.Lock()
	r.plane.host.fail = nil
	r.plane.host.mu.Unlock()
	receive(t, r.plane.host.opened, "device")
}

func TestADeviceThatCannotBeConfiguredIsMadeAgain(t *testing.T) {
	failures := 2
	r := newTUNRig(t, func(p *testPlane) {
		withAddresses(p)
		p.Plane.host.configure = func(tun.Network) (tun.Families, error) {
			if failures--; failures >= 0 {
				return tun.Families{}, errors.New("no such link")
			}
			return tun.Families{V4: true, Tolerated: errors.New("no IPv6")}, nil
		}
	})
	r.up()
	if !strings.Contains(r.plane.log.String(), "TUN device works in part") {
		t.Error("what was tolerated is not logged")
	}
}

func TestAStoppedActorTakesItsDeviceAlong(t *testing.T) {
	r := newTUNRig(t, withAddresses)
	device := receive(t, r.plane.host.opened, "device")
	r.up()
	r.root.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	await(t, device.closed, "the device")
	if r.plane.tunUp.Load() {
		t.Error("ready without a device")
	}
}

// A device that is opened while its actor ends is nobody's.
func TestADeviceThatComesTooLateIsClosed(t *testing.T) {
	begun, free := make(chan struct{}), make(chan struct{})
	r := newTUNRig(t, func(p *testPlane) {
		open := p.Plane.host.open
		p.Plane.host.open = func(cfg tun.Config) (tunDevice, error) { close(begun); <-free; return open(cfg) }
	})
	await(t, begun, "the wait for the device")
	r.root.do(func(ctx actorkit.Context) { ctx.Stop(r.pid) })
	next[*actorkit.Terminated](t, r.root)
	close(free)
	await(t, receive(t, r.plane.host.opened, "device").closed, "the device")
}

// check has the actor look at the device, which fails or finds that others did
// that, and waits until it has drawn its conclusions.
func (r *tunRig) check(fault error, missing ...string) {
	r.t.Helper()
	looked := false
	r.plane.host.setUndone(func() ([]string, error) { looked = true; return missing, fault })
	idle := func() (ok bool) {
		r.look(r.pid, func(actorkit.Context) { ok = !r.actor.checking && !r.actor.configuring })
		return ok
	}
	eventually(r.t, idle, "nothing else is under way")
	r.system.Send(r.pid, checkTick{})
	eventually(r.t, idle, "the check is over")
	r.plane.host.setUndone(nil)
	if !looked {
		r.t.Error("nobody looked")
	}
}

func TestWhatOthersUndoIsPutBack(t *testing.T) {
	r := newTUNRig(t, withAddresses)
	receive(t, r.plane.host.configured, "configuration")
	r.up()
	const report = "TUN device was changed by somebody else, putting it back"
	for _, step := range []struct {
		name    string
		missing []string
		reports int // so far
	}{
		{"nothing is missing", nil, 0},
		{"an address and a route are", []string{"IPv4 address", "IPv6 route"}, 1},
		{"they are again, which is no news", []string{"IPv4 address", "IPv6 route"}, 1},
		{"something else is", []string{"firewall rules of forward"}, 2},
		{"nothing is, for once", nil, 2},
		{"the same, later", []string{"firewall rules of forward"}, 3},
	} {
		r.check(nil, step.missing...)
		select {
		case n := <-r.plane.host.configured:
			if step.missing == nil || n.V4 != ownAddresses.V4 || n.V6 != ownAddresses.V6 {
				t.Errorf("%s: configured %+v", step.name, n)
			}
		default:
			if step.missing != nil {
				t.Errorf("%s: not configured", step.name)
			}
		}
		if n := strings.Count(r.plane.log.String(), report); n != step.reports {
			t.Errorf("%s: %d reports, want %d", step.name, n, step.reports)
		}
	}
	if !strings.Contains(r.plane.log.String(), "IPv4 address, IPv6 route") {
		t.Error("what was missing is not logged")
	}
	if len(r.plane.host.opened) != 1 {
		t.Error("the device was made again")
	}
}

// A family that this host does not have is not missed.
func TestAFamilyThatDoesNotWorkIsNotMissed(t *testing.T) {
	asked := make(chan tun.Network, 1)
	r := newTUNRig(t, func(p *testPlane) {
		withAddresses(p)
		p.Plane.host.configure = func(tun.Network) (tun.Families, error) {
			return tun.Families{V4: true, Tolerated: errors.New("no IPv6")}, nil
		}
		p.Plane.host.missing = func(n tun.Network, _ bool) ([]string, error) { asked <- n; return nil, nil }
	})
	r.up()
	r.settle(r.pid)
	r.system.Send(r.pid, checkTick{})
	if n := receive(t, asked, "check"); n.V4 != ownAddresses.V4 || n.V6.IsValid() {
		t.Errorf("looked for %+v", n)
	}
}

// A look at the device that fails is no reason to touch it.
func TestACheckThatFailsIsReportedOnce(t *testing.T) {
	r := newTUNRig(t, withAddresses)
	receive(t, r.plane.host.configured, "configuration")
	r.up()
	for range 3 {
		r.check(errors.New("no netlink"))
	}
	if strings.Count(r.plane.log.String(), "TUN device cannot be checked") != 1 || len(r.plane.host.configured) != 0 {
		t.Error("not reported just once, or configured")
	}
}
