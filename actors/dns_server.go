package actors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
)

var errServerEnded = errors.New("socket was closed")

type serverEnded struct{ err error }

// dnsServer owns one layer-4 DNS server: a tunnel address and a transport.
//
// Supervisor: dns. Not getting its address, or losing its socket, is a failure:
// the restart binds again.
type dnsServer struct {
	plane   *Plane
	network dns.Network
	addr    netip.AddrPort
	server  *dns.Server
}

func newDNSServer(p *Plane, n dns.Network, a netip.AddrPort) *dnsServer {
	return &dnsServer{plane: p, network: n, addr: a}
}

// Receive handles one message.
func (s *dnsServer) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		s.start(ctx)
	case serverEnded:
		if m.err == nil {
			m.err = errServerEnded
		}
		panic(m.err)
	case *actorkit.Stopping, *actorkit.Restarting:
		if s.server != nil {
			s.server.Close()
		}
	}
}

func (s *dnsServer) start(ctx actorkit.Context) {
	server, err := s.plane.host.listenDNS(dns.ServerConfig{
		Network: s.network, Addr: s.addr, Forwarder: s.plane.DNS, Clients: s.plane.Tunnel.Has,
	})
	if err != nil {
		panic(fmt.Errorf("serve DNS on %s %v: %w", s.network, s.addr, err))
	}
	s.server = server
	ctx.Logger().Debug("DNS server ready", "network", s.network, "address", s.addr)
	actorkit.Go(ctx, func(work context.Context) any {
		defer context.AfterFunc(work, server.Close)()
		return serverEnded{server.Serve()}
	})
}
