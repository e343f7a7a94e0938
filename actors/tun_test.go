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
	pid actorkit.PID
}

func newTUNRig(t testing.TB, prepare func(*testPlane)) *tunRig {
	t.Helper()
	r := &tunRig{stage: newStage(t, newTestPlane(t, ""))}
	if prepare != nil {
		prepare(r.plane)
	}
	r.pid = r.root.spawn(KindTUN, "tun", func() actorkit.Actor { return faulty{newTUN(r.plane.Plane)} })
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
		"the actor crashed":       func(r *tunRig, _ *memoryTUN) { r.system.Send(r.pid, boom{}) },
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
