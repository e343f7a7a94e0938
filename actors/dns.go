package actors

import (
	"fmt"
	"net/netip"
	"slices"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/policy"
	"firezone-gateway/messages"
)

// dnsActor owns the set of layer-4 DNS servers, one for each tunnel address and
// transport, and the resolver.
//
// Supervisor: gateway. A restart serves the addresses of the plane again.
type dnsActor struct {
	plane    *Plane
	resolver actorkit.PID
	servers  []serverEntry
	spawned  int
}

type serverEntry struct {
	network dns.Network
	addr    netip.Addr
	pid     actorkit.PID
}

func newDNS(p *Plane) *dnsActor { return &dnsActor{plane: p} }

// Receive handles one message.
func (a *dnsActor) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		a.resolver = a.spawn(ctx, KindResolver, "resolver", func() actorkit.Actor { return a.plane.players.resolver(a.plane) })
		served, wrong := checkServed(a.plane.served.load())
		if wrong {
			a.plane.discarded(ctx.Logger(), []string{"address to serve DNS on"})
			a.plane.served.store(served)
		}
		a.serve(ctx, served)
	case messages.ServeDNS:
		a.plane.served.store(m.Addresses)
		a.serve(ctx, m.Addresses)
	case messages.Resolve:
		ctx.Forward(a.resolver)
	case *actorkit.ChildGaveUp:
		a.gaveUp(m)
	}
}

// gaveUp goes on with the other servers. The next configuration of the device, which
// each join brings, has the missing one tried again.
func (a *dnsActor) gaveUp(m *actorkit.ChildGaveUp) {
	a.servers = slices.DeleteFunc(a.servers, func(s serverEntry) bool { return actorkit.Same(s.pid, m.PID) })
}

// serve ends servers on other addresses and starts those that are missing.
func (a *dnsActor) serve(ctx actorkit.Context, addresses []netip.Addr) {
	a.servers = slices.DeleteFunc(a.servers, func(s serverEntry) bool {
		if slices.Contains(addresses, s.addr) {
			return false
		}
		ctx.Stop(s.pid)
		return true
	})
	for _, addr := range addresses {
		for _, network := range []dns.Network{dns.UDP, dns.TCP} {
			a.ensure(ctx, network, addr)
		}
	}
}

func (a *dnsActor) ensure(ctx actorkit.Context, network dns.Network, addr netip.Addr) {
	if slices.ContainsFunc(a.servers, func(s serverEntry) bool { return s.network == network && s.addr == addr }) {
		return
	}
	a.spawned++ // its predecessor of the same name may not have ended
	plane, at := a.plane, netip.AddrPortFrom(addr, policy.DNSPort)
	pid := a.spawn(ctx, KindDNSServer, fmt.Sprintf("%s.%d", serverName(network, addr), a.spawned), func() actorkit.Actor {
		return plane.players.dnsServer(plane, network, at)
	})
	a.servers = append(a.servers, serverEntry{network, addr, pid})
}

func (a *dnsActor) spawn(ctx actorkit.Context, kind, name string, make func() actorkit.Actor) actorkit.PID {
	pid, err := actorkit.SpawnChild(ctx, kind, name, make)
	if err != nil {
		panic(err) // names are unique: only a bug gets here
	}
	return pid
}

// serverName is udp4, udp6, tcp4 or tcp6.
func serverName(network dns.Network, addr netip.Addr) string {
	if addr.Is4() {
		return string(network) + "4"
	}
	return string(network) + "6"
}
