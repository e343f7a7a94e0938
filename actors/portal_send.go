package actors

import (
	"context"
	"fmt"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/portal/ws"
	"firezone-gateway/messages"
)

// drained says that a connection that was full takes frames again.
type drained struct{ from *ws.Conn }

// Untraced: it belongs to no message in particular.
func (drained) Untraced() {}

// send hands a message to the session. Candidates, which are many at once when a
// relay is replaced, are kept back while there is no joined connection (portal
// rule 40) and while it does not keep up; of these only the net change leaves.
// An acknowledgement never leaves on another connection than the one of its
// request.
func (a *portalActor) send(ctx actorkit.Context, m messages.SendToPortal) {
	if m.Connection != 0 && (a.session == nil || m.Connection != a.number) {
		ctx.Logger().Debug("message outlived its portal connection", "event", m.Message.Event())
		return
	}
	congested := a.session == nil || !a.session.Joined() || a.conn.Room() == 0 || !a.memory.backlog.Empty()
	if congested && a.holdBack(m.Message) || a.session == nil {
		return
	}
	a.submit(ctx, m.Message)
	a.step(ctx)
}

// holdBack keeps changes of candidates until they can be written.
func (a *portalActor) holdBack(m portal.Outgoing) bool {
	var clients, candidates []string
	keep := a.memory.backlog.Announce
	switch c := m.(type) {
	case portal.BroadcastICECandidates:
		clients, candidates = c.ClientIDs, c.Candidates
	case portal.BroadcastInvalidatedICECandidates:
		keep, clients, candidates = a.memory.backlog.Withdraw, c.ClientIDs, c.Candidates
	default:
		return false
	}
	for _, id := range clients {
		a.plane.Drops.Add(drop.MailboxFull, uint64(keep(id, candidates)))
	}
	return true
}

func (a *portalActor) submit(ctx actorkit.Context, m portal.Outgoing) {
	if err := a.session.Send(m); err != nil {
		dropped(ctx, a.plane.Drops, drop.MailboxFull, 1)
		ctx.Logger().Warn("message to portal dropped", "event", m.Event(), "error", err)
	}
}

// write writes as much as the connection takes: first what the session has, then
// what was kept back. A connection that takes nothing for too long ends itself.
func (a *portalActor) write(ctx actorkit.Context) {
	for {
		for {
			if a.conn.Room() == 0 {
				a.awaitRoom(ctx)
				return
			}
			f, ok := a.session.PollFrame()
			if !ok {
				break
			}
			if err := a.conn.Write(f); err != nil {
				a.lost(ctx, fmt.Errorf("connection to portal: %w", err))
				return
			}
		}
		if !a.session.Joined() || a.memory.backlog.Empty() {
			return
		}
		for _, m := range a.memory.backlog.Next() {
			a.submit(ctx, m)
		}
	}
}

func (a *portalActor) awaitRoom(ctx actorkit.Context) {
	if a.full {
		return
	}
	a.full = true
	conn := a.conn
	actorkit.Go(ctx, func(work context.Context) any {
		select {
		case <-conn.Drained():
			return drained{conn}
		case <-work.Done():
			return nil
		}
	})
}

func (a *portalActor) drained(ctx actorkit.Context, m drained) {
	if m.from == a.conn {
		a.full = false
		a.step(ctx)
	}
}
