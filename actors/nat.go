package actors

import (
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// sweepInterval is how often sessions are looked at for their end (dataplane
// §3.6).
const sweepInterval = time.Second

type (
	sweepTimer struct{}
	sweepTick  struct{}
)

// Untraced: housekeeping is not worth a span.
func (sweepTick) Untraced() {}

// natActor writes the table by which the packet path translates one client's DNS
// resources: it maps proxy addresses, opens sessions for packets that begin one,
// and ends sessions whose time is up.
//
// Supervisor: peer. The table lives in the peer's state; packets of running
// sessions pass while the actor restarts, and first packets wait.
type natActor struct {
	plane    *Plane
	nat      *tunnel.NAT
	timers   actorkit.Timers
	waiting  *actorkit.Gate
	sweeping bool
}

func newNAT(p *Plane, n *tunnel.NAT) *natActor {
	return &natActor{plane: p, nat: n, waiting: actorkit.NewGate(changesLimit)}
}

// Receive handles one message.
func (a *natActor) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		a.start(ctx)
	case messages.PacketsWait:
		a.open(ctx)
	case messages.AssignDomain:
		a.assign(ctx, m)
	case messages.EndSessions:
		a.nat.Table().Invalidate(m.ResourceID)
	case sweepTick:
		a.nat.Table().Sweep(time.Now().UnixNano())
		a.sweeping = false
		a.sweepLater(ctx)
	}
}

// start takes the table over, as far as it fits together, with the packets that
// came while nobody opened sessions.
func (a *natActor) start(ctx actorkit.Context) {
	if r := a.nat.Table().Repair(); r != (nat.Repaired{}) {
		a.plane.discarded(ctx.Logger(), []string{"address translation"}, "mappings", r.Mappings, "sessions", r.Sessions)
		if r.Mappings > 0 {
			ctx.Send(ctx.Parent(), messages.DomainsLost{NAT: ctx.Self()})
		}
	}
	self, system, waiting := ctx.Self(), ctx.System(), a.waiting
	a.nat.Adopt(func() { waiting.TrySend(system, self, messages.PacketsWait{}) })
	a.open(ctx)
}

func (a *natActor) open(ctx actorkit.Context) {
	a.plane.Tunnel.Open(a.nat, time.Now().UnixNano())
	a.sweepLater(ctx)
}

// sweepLater lets a client without sessions cost nothing.
func (a *natActor) sweepLater(ctx actorkit.Context) {
	if a.sweeping || a.nat.Table().Stats().Sessions == 0 {
		return
	}
	a.sweeping = true
	a.timers.After(ctx, sweepTimer{}, sweepInterval, sweepTick{})
}

func (a *natActor) assign(ctx actorkit.Context, m messages.AssignDomain) {
	s := m.Setup
	assigned, err := a.nat.Table().Assign(assignment(m))
	switch {
	case err != nil:
		ctx.Logger().Info("domain not set up", "domain", s.Domain, "resource_id", s.ResourceID, "error", err)
	case assigned.Reset:
		ctx.Logger().Info("client numbers its proxy addresses anew, NAT sessions ended", "domain", s.Domain)
	}
	ctx.Respond(messages.DomainAssigned{Setup: s, Err: err})
}
