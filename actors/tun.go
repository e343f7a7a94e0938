package actors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/tun"
	"firezone-gateway/messages"
)

// checkInterval is how long what others do to the device, its addresses, routes,
// rules and firewall goes unnoticed. One check takes a fifth of a millisecond. The
// loss of the device itself shows at once, where packets are read.
const checkInterval = 2 * time.Second

var (
	errDeviceGone = errors.New("device was deleted")
	errNotRead    = errors.New("device cannot be read any more")
)

type (
	opened struct {
		device tunDevice
		// keep ends the device's bond to the incarnation that opened it.
		keep func() bool
		err  error
	}
	configured struct {
		families tun.Families
		err      error
	}
	checkTimer struct{}
	checkTick  struct{}
	checked    struct {
		missing []string
		err     error
	}
)

// Untraced: a look at the device is not worth a span.
func (checkTick) Untraced() {}

// tunActor owns the TUN device: it makes it, gives it addresses, routes and
// rules, puts back what others take from it, and makes it again after somebody
// deleted it.
//
// Supervisor: gateway. The device stays where it is while the actor restarts, and
// packets pass. Losing it is a failure: the restart makes a new one and configures
// it with the addresses of the plane. The engine waits in between and packets are
// counted as drops.
type tunActor struct {
	plane   *Plane
	device  tunDevice
	useless bool // the device, which the next incarnation makes anew

	// One configuration runs at a time, because two would mix.
	configuring, again bool
	reported           string      // what was last said about the configuration
	network            tun.Network // as configured, families that do not work left out

	timers   actorkit.Timers
	checking bool
	undone   string // what the last check found, in words
}

func newTUN(p *Plane) *tunActor { return &tunActor{plane: p} }

// Receive handles one message.
func (a *tunActor) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		a.open(ctx)
	case opened:
		a.opened(ctx, m)
	case messages.ConfigureTUN:
		a.configure(ctx)
	case configured:
		a.configured(ctx, m)
	case checkTick:
		a.check(ctx)
	case checked:
		a.checked(ctx, m)
	case messages.TUNLost:
		a.useless = true
		panic(fmt.Errorf("TUN device lost: %w", m.Cause))
	case *actorkit.Restarting:
		if a.useless || a.plane.device.load().onTrial() {
			a.close()
		}
	case *actorkit.Stopping:
		a.close()
	}
}

// open adopts the device that is there, or makes one.
func (a *tunActor) open(ctx actorkit.Context) {
	if held := a.plane.device.load(); held.usable() {
		held.adopted = time.Now()
		a.plane.device.store(held)
		a.use(ctx, held.device)
		return
	}
	a.close()
	cfg, open := a.plane.TUN, a.plane.host.open
	actorkit.Go(ctx, func(work context.Context) any {
		device, err := open(cfg)
		if err != nil {
			return opened{err: err}
		}
		// An incarnation that ends before it takes the device leaves none behind.
		return opened{device: device, keep: context.AfterFunc(work, func() { _ = device.Close() })}
	})
}

func (a *tunActor) opened(ctx actorkit.Context, m opened) {
	if m.err != nil {
		panic(fmt.Errorf("open TUN device: %w", m.err))
	}
	m.keep()
	select {
	case <-a.plane.readerStopped: // with an earlier device
	default:
	}
	a.plane.device.store(heldDevice{device: m.device})
	a.use(ctx, m.device)
}

func (a *tunActor) use(ctx actorkit.Context, device tunDevice) {
	a.device = device
	a.watch(ctx)
	// Attached once more, a device that cannot be read any more says so again.
	a.plane.Tunnel.AttachTUN(device)
	ctx.Logger().Info("TUN device ready", "name", a.plane.TUN.Name)
	a.configure(ctx)
}

func (a *tunActor) watch(ctx actorkit.Context) {
	gone, stopped := a.device.Gone(), a.plane.readerStopped
	actorkit.Go(ctx, func(work context.Context) any {
		select {
		case <-gone:
			return messages.TUNLost{Cause: errDeviceGone}
		case <-stopped:
			return messages.TUNLost{Cause: errNotRead}
		case <-work.Done():
			return nil
		}
	})
}

// configure applies the addresses of the plane, as soon as there are a device
// and addresses.
func (a *tunActor) configure(ctx actorkit.Context) {
	addresses := a.plane.addresses.load()
	if a.device == nil || addresses == (messages.TunnelAddresses{}) {
		return
	}
	if a.configuring {
		a.again = true
		return
	}
	a.configuring = true
	a.network = tun.Network{Link: a.plane.TUN.Name, V4: addresses.V4, V6: addresses.V6}
	network, masquerade, host := a.network, a.plane.Masquerade, a.plane.host
	actorkit.Go(ctx, func(context.Context) any {
		families, err := host.configure(network)
		if err == nil && masquerade {
			err = host.forward(network.Link, families)
		}
		return configured{families, err}
	})
}

func (a *tunActor) configured(ctx actorkit.Context, m configured) {
	if m.err != nil {
		a.useless = true
		panic(fmt.Errorf("configure TUN device: %w", m.err))
	}
	a.configuring = false
	a.plane.tunUp.Store(true)
	a.serveDNS(ctx, m.families)
	a.report(ctx, m.families)
	if !m.families.V4 {
		a.network.V4 = netip.Addr{}
	}
	if !m.families.V6 {
		a.network.V6 = netip.Addr{}
	}
	if a.again {
		a.again = false
		a.configure(ctx)
		return
	}
	a.checkLater(ctx)
}

func (a *tunActor) checkLater(ctx actorkit.Context) {
	a.timers.After(ctx, checkTimer{}, checkInterval, checkTick{})
}

// check looks whether the configuration is still in place.
func (a *tunActor) check(ctx actorkit.Context) {
	if a.configuring || a.checking {
		return // another check follows
	}
	a.checking = true
	network, masquerade, missing := a.network, a.plane.Masquerade, a.plane.host.missing
	actorkit.Go(ctx, func(context.Context) any {
		list, err := missing(network, masquerade)
		return checked{list, err}
	})
}

// checked has the device configured again if somebody undid a part of it. Whoever
// keeps doing that is reported once.
func (a *tunActor) checked(ctx actorkit.Context, m checked) {
	a.checking = false
	if a.configuring {
		return
	}
	undone := strings.Join(m.missing, ", ")
	if m.err != nil {
		undone = m.err.Error()
	}
	news := undone != a.undone
	a.undone = undone
	switch {
	case m.err != nil:
		if news {
			ctx.Logger().Warn("TUN device cannot be checked", "error", m.err)
		}
	case len(m.missing) > 0:
		if news {
			ctx.Logger().Warn("TUN device was changed by somebody else, putting it back", "missing", undone)
		}
		a.configure(ctx)
		return
	}
	a.checkLater(ctx)
}

// serveDNS has DNS served on the addresses that the device got.
func (a *tunActor) serveDNS(ctx actorkit.Context, f tun.Families) {
	addresses := a.plane.addresses.load()
	var serve []netip.Addr
	if f.V4 {
		serve = append(serve, addresses.V4)
	}
	if f.V6 {
		serve = append(serve, addresses.V6)
	}
	if pid := a.plane.siblings.load().DNS; pid != nil {
		ctx.Send(pid, messages.ServeDNS{Addresses: serve})
	}
}

// report says how the configuration went. Each join configures again, which is
// news only when the outcome is another one.
func (a *tunActor) report(ctx actorkit.Context, f tun.Families) {
	outcome := fmt.Sprint(f.V4, f.V6, f.Tolerated)
	if outcome == a.reported {
		return
	}
	a.reported = outcome
	ctx.Logger().Info("TUN device configured", "ipv4", f.V4, "ipv6", f.V6)
	if f.Tolerated != nil {
		ctx.Logger().Warn("TUN device works in part", "error", f.Tolerated)
	}
}

func (a *tunActor) close() {
	a.plane.tunUp.Store(false)
	if held := a.plane.device.load(); held.device != nil {
		a.plane.Tunnel.AttachTUN(nil)
		_ = held.device.Close() // the device goes with it
		a.plane.device.store(heldDevice{})
	}
	a.device = nil
}
