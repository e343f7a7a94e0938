package actors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tun"
	"firezone-gateway/messages"
)

var (
	errDeviceGone = errors.New("device was deleted")
	errNotRead    = errors.New("device cannot be read any more")
)

// host is what actors do to the machine.
type host struct {
	sockets   func(transport.Config) (*transport.Sockets, error)
	open      func(tun.Config) (tunDevice, error)
	configure func(tun.Network) (tun.Families, error)
	forward   func(link string, f tun.Families) error
	listenDNS func(dns.ServerConfig) (*dns.Server, error)
}

// tunDevice is a TUN device whose loss can be waited for.
type tunDevice interface {
	enginetun.Device
	Gone() <-chan struct{}
}

var thisHost = host{
	sockets: transport.Open,
	open: func(cfg tun.Config) (tunDevice, error) {
		d, err := tun.Open(cfg)
		if err != nil {
			return nil, err // a nil device in the interface would not be nil
		}
		return d, nil
	},
	configure: tun.Configure,
	forward:   forward,
	listenDNS: dns.Listen,
}

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
)

// tunActor owns the TUN device: it makes it, gives it addresses, routes and
// rules, and makes it again after somebody deleted it.
//
// Supervisor: gateway. Losing the device is a failure: the restart makes a new
// one and configures it with the addresses of the plane. The engine waits in
// between and packets are counted as drops.
type tunActor struct {
	plane  *Plane
	device tunDevice

	// One configuration runs at a time, because two would mix.
	configuring, again bool
	reported           string // what was last said about the configuration
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
	case messages.TUNLost:
		panic(fmt.Errorf("TUN device lost: %w", m.Cause))
	case *actorkit.Stopping, *actorkit.Restarting:
		a.close()
	}
}

func (a *tunActor) open(ctx actorkit.Context) {
	if first := a.plane.firstTUN.Swap(nil); first != nil {
		a.use(ctx, first)
		return
	}
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
	a.use(ctx, m.device)
}

func (a *tunActor) use(ctx actorkit.Context, device tunDevice) {
	a.device = device
	select {
	case <-a.plane.readerStopped: // with an earlier device
	default:
	}
	a.watch(ctx)
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
	name, masquerade, host := a.plane.TUN.Name, a.plane.Masquerade, a.plane.host
	actorkit.Go(ctx, func(context.Context) any {
		families, err := host.configure(tun.Network{Link: name, V4: addresses.V4, V6: addresses.V6})
		if err == nil && masquerade {
			err = host.forward(name, families)
		}
		return configured{families, err}
	})
}

func (a *tunActor) configured(ctx actorkit.Context, m configured) {
	if m.err != nil {
		panic(fmt.Errorf("configure TUN device: %w", m.err))
	}
	a.configuring = false
	a.plane.tunUp.Store(true)
	a.serveDNS(ctx, m.families)
	a.report(ctx, m.families)
	if a.again {
		a.again = false
		a.configure(ctx)
	}
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
	if a.device != nil {
		a.plane.Tunnel.AttachTUN(nil)
		_ = a.device.Close() // the device goes with it
		a.device = nil
	}
}

// forward lets the host route between clients and resources.
func forward(name string, f tun.Families) error {
	if _, err := tun.EnableForwarding(); err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return tun.Masquerade{Link: name, V4: f.V4, V6: f.V6}.Install()
}
