package actors

import (
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// endPatience bounds an orderly end: a second for the goodbyes, half of one for
// the portal, and the rest for an actor that happens to restart.
const endPatience = 2500 * time.Millisecond

type endOverdue struct{}

// gateway is the root: it starts the other top-level actors, tells them of each
// other, and decides what their end means for the process.
//
// Supervisor: none. It holds no state worth keeping; if it fails, the process
// ends and is started again.
type gateway struct {
	plane    *Plane
	siblings messages.Siblings
	done     func(code int, cause error)
	timers   actorkit.Timers

	ending          bool
	exit            int
	cause           error
	goodbye, closed bool
}

func newGateway(p *Plane, done func(int, error)) *gateway { return &gateway{plane: p, done: done} }

// Receive handles one message.
func (g *gateway) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		g.start(ctx)
	case messages.PortalGaveUp:
		g.end(ctx, ExitGaveUp, m.Cause)
	case messages.Shutdown:
		g.end(ctx, 0, nil)
	case messages.GoodbyeDone:
		g.goodbyeDone(ctx, m)
	case messages.PortalClosed:
		g.closed = true
		g.finish()
	case endOverdue:
		ctx.Logger().Warn("ending without waiting any longer", "goodbye", g.goodbye, "portal_closed", g.closed)
		g.done(g.exit, g.cause)
	}
}

func (g *gateway) start(ctx actorkit.Context) {
	p := g.plane
	g.siblings = messages.Siblings{
		DNS:       g.spawn(ctx, KindDNS, p.players.dns),
		Peers:     g.spawn(ctx, KindPeers, p.players.peers),
		Transport: g.spawn(ctx, KindTransport, p.players.transport),
		TUN:       g.spawn(ctx, KindTUN, p.players.tun),
		Portal:    g.spawn(ctx, KindPortal, p.players.portal),
	}
	p.siblings.store(g.siblings)
	for _, pid := range []actorkit.PID{g.siblings.Peers, g.siblings.Transport, g.siblings.TUN, g.siblings.Portal} {
		ctx.Send(pid, g.siblings)
	}
}

func (g *gateway) spawn(ctx actorkit.Context, kind string, player func(*Plane) actorkit.Actor) actorkit.PID {
	pid, err := actorkit.SpawnChild(ctx, kind, kind, func() actorkit.Actor { return player(g.plane) })
	if err != nil {
		panic(err) // the names are constants: only a bug gets here
	}
	return pid
}

// end closes the portal and says goodbye to all clients, both at once.
func (g *gateway) end(ctx actorkit.Context, code int, cause error) {
	if g.ending {
		return
	}
	g.ending, g.exit, g.cause = true, code, cause
	g.timers.After(ctx, endOverdue{}, endPatience, endOverdue{})
	ctx.Request(g.siblings.Portal, messages.ClosePortal{})
	ctx.Request(g.siblings.Peers, messages.GoodbyeAll{})
}

func (g *gateway) goodbyeDone(ctx actorkit.Context, m messages.GoodbyeDone) {
	if m.Err != nil {
		ctx.Logger().Info("not every client heard the goodbye", "error", m.Err)
	}
	g.goodbye = true
	g.finish()
}

func (g *gateway) finish() {
	if g.ending && g.goodbye && g.closed {
		g.done(g.exit, g.cause)
	}
}
