package actors

import (
	"context"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// partingPatience bounds the wait for peers to end in a reset, and for the portal.
// A peer that hangs loses its client nevertheless.
const partingPatience = time.Second

type (
	peersTimer  struct{}
	peersLate   struct{}
	keysRotated struct{ err error }
)

// resetting is a reset under way.
//
//	peers end, portal is left → goodbye to all clients → new key pair → sockets, portal
//
// The portal is left first, because a client that is told goodbye asks it again at
// once, and the portal must not ask the gateway that is on its way out.
//
// Until it is over peers refuses what the portal says, and afterwards what it
// says about the old key pair: a client is never admitted to one key with the
// parameters of another.
type resetting struct {
	asked   []actorkit.PID
	left    bool // the portal
	parting bool // the peers have ended
}

// reset gives the gateway a new identity. One that comes while another is under
// way is part of it, because keys and sockets are replaced at the end.
func (p *peers) reset(ctx actorkit.Context, m messages.Reset) {
	p.begin(ctx, p.plane.siblings.load())
	if p.resetting == nil {
		ctx.Logger().Info("reset: new key pair, clients are sent away", "cause", m.Cause, "clients", len(p.children))
		p.startReset(ctx)
	}
	if asked := ctx.Sender(); asked != nil {
		p.resetting.asked = append(p.resetting.asked, asked)
	}
}

func (p *peers) startReset(ctx actorkit.Context) {
	p.resetting = &resetting{}
	p.plane.resetting.Store(true)
	p.plane.inbox.clear()
	for _, c := range p.children {
		c.ending, c.pending = true, nil
		ctx.Stop(c.pid)
	}
	p.timers.After(ctx, peersTimer{}, partingPatience, peersLate{})
	ctx.Request(p.siblings.Portal, messages.Disconnect{})
}

func (p *peers) disconnected(ctx actorkit.Context) {
	if p.resetting != nil {
		p.resetting.left = true
		p.partIfAlone(ctx)
	}
}

// partIfAlone goes on when no peer can admit a client any more and the portal
// sends none.
func (p *peers) partIfAlone(ctx actorkit.Context) {
	if p.resetting != nil && p.resetting.left && len(p.children) == 0 {
		p.part(ctx)
	}
}

func (p *peers) part(ctx actorkit.Context) {
	if p.resetting == nil || p.resetting.parting {
		return
	}
	p.resetting.parting = true
	p.timers.Cancel(peersTimer{})
	plane, log := p.plane, ctx.Logger()
	actorkit.Go(ctx, func(work context.Context) any {
		if err := plane.Tunnel.GoodbyeAll(work); err != nil {
			log.Info("not every client heard the goodbye", "error", err)
		}
		return keysRotated{plane.rotateKeys(work)}
	})
}

// finishReset has the others begin anew. Transport hears of it before portal, so
// that relays named by the next connection meet the new sockets.
func (p *peers) finishReset(ctx actorkit.Context, m keysRotated) {
	if m.err != nil {
		panic(m.err) // the next incarnation tries again
	}
	p.plane.store.clear()
	p.plane.resetting.Store(false)
	ctx.Send(p.siblings.Transport, messages.Rebind{})
	ctx.Send(p.siblings.Portal, messages.Reconnect{})
	for _, asked := range p.resetting.asked {
		ctx.Send(asked, messages.ResetDone{})
	}
	p.resetting = nil
}
