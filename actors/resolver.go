package actors

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	"firezone-gateway/messages"
)

// resolver looks up the domains of DNS resources for all clients.
//
// Supervisor: dns. A restart forgets what is under way; clients repeat their
// set-ups while they get no answer.
type resolver struct {
	plane    *Plane
	resolver *dns.Resolver
}

func newResolver(p *Plane) *resolver { return &resolver{plane: p} }

// Receive handles one message.
func (r *resolver) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		own := &hostAddresses{}
		r.resolver = dns.NewResolver(dns.ResolverConfig{Upstreams: r.plane.upstreams, Own: own.has})
	case messages.Resolve:
		r.resolve(ctx, m.Setup)
	case *actorkit.Stopping, *actorkit.Restarting:
		if r.resolver != nil {
			r.resolver.Close()
		}
	}
}

func (r *resolver) resolve(ctx actorkit.Context, s messages.DomainSetup) {
	asked, system, log, drops, lookup := ctx.Sender(), ctx.System(), ctx.Logger(), r.plane.Drops, r.resolver
	actorkit.Go(ctx, func(work context.Context) any {
		begin := time.Now()
		found, err := lookup.Resolve(work, s.Domain)
		m := messages.Resolved{Setup: s, Failed: err != nil || found.Outcome == dns.TimedOut, Addresses: slices.Concat(found.V4, found.V6)}
		switch {
		case errors.Is(err, dns.ErrBusy):
			m.Busy = true
			drops.Add(drop.ResolverBusy, 1)
		case errors.Is(err, dns.ErrClosed) || work.Err() != nil:
			m.Busy = true // this incarnation ends; the next one takes what the client repeats
		case err != nil:
			log.Debug("domain not resolved", "domain", s.Domain, "error", err)
		default:
			log.Debug("domain resolved", "domain", s.Domain, "outcome", found.Outcome,
				"ipv4", len(found.V4), "ipv6", len(found.V6), "refused", found.Refused, "duration", time.Since(begin))
		}
		system.SendContext(work, asked, m)
		return nil
	})
}

// hostAddressesAge is how long the addresses of the host are taken for current.
const hostAddressesAge = 5 * time.Second

// hostAddresses knows the addresses of the host's interfaces.
type hostAddresses struct {
	mu   sync.Mutex
	read time.Time
	list map[netip.Addr]bool
}

// has reports whether a is one of them. Without any knowledge it is not.
func (h *hostAddresses) has(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.read) > hostAddressesAge {
		if list, err := net.InterfaceAddrs(); err == nil {
			h.list = map[netip.Addr]bool{}
			for _, i := range list {
				if n, ok := i.(*net.IPNet); ok {
					if ip, ok := netip.AddrFromSlice(n.IP); ok {
						h.list[ip.Unmap()] = true
					}
				}
			}
		}
		h.read = time.Now()
	}
	return h.list[a]
}
