package actors

import (
	"context"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/policy"
	"firezone-gateway/messages"
)

// concernsGrants reports whether msg has to wait while a client is sent away: a
// new authorization must find no traces of the old ones, and what follows it
// must not overtake it.
func concernsGrants(msg any) bool {
	switch msg.(type) {
	case messages.Authorize, messages.RequestConnection, messages.AllowAccess,
		messages.AddCandidates, messages.RemoveCandidates, messages.Revoke,
		messages.RetainGrants, messages.ExtendGrant, messages.UpdateResource:
		return true
	}
	return false
}

func (p *peer) retain(ctx actorkit.Context, m messages.RetainGrants) {
	p.state.Gateway = m.Gateway
	p.setGrants(ctx, p.state.Grants.Retain(m.ExpiresAt), "not listed")
}

func (p *peer) expire(ctx actorkit.Context) {
	grants, _ := p.state.Grants.Expire(time.Now())
	p.setGrants(ctx, grants, "expired")
}

// setGrants makes grants the ones in force: the next packet is judged by them.
// Without any the client is sent away. why is the reason of those that are
// missing.
func (p *peer) setGrants(ctx actorkit.Context, grants policy.Grants, why string) {
	before := p.state.Grants
	p.state.Grants = grants
	p.save() // no crash brings back what has ended
	if p.conn != nil {
		p.conn.client.SetPolicy(p.compile(p.state))
	}
	for _, old := range before.List() {
		if !grants.Has(old.Resource.ID) {
			ctx.Logger().Info("access ended", "client_id", p.id, "resource_id", old.Resource.ID, "reason", why)
			if p.nat != nil {
				ctx.Send(p.nat, messages.EndSessions{ResourceID: old.Resource.ID})
			}
		}
	}
	p.armExpiry(ctx)
	if grants.Len() == 0 {
		p.sendAway(ctx)
	}
}

func (p *peer) armExpiry(ctx actorkit.Context) {
	next, ok := p.state.Grants.NextExpiry()
	if !ok {
		p.timers.Cancel(expiryTimer)
		return
	}
	p.timers.After(ctx, expiryTimer, max(0, time.Until(next)), grantExpired{})
}

// sendAway says goodbye to a client that may not use anything any more.
func (p *peer) sendAway(ctx actorkit.Context) {
	p.dropNAT(ctx)
	conn := p.conn
	if conn == nil {
		p.reportIfEmpty(ctx, 0)
		return
	}
	p.timers.CancelAll()
	// From here on the connection belongs to the goroutine, also if this
	// incarnation ends, and its successor shall not look for it.
	p.conn, p.leaving = nil, true
	p.disconnect()
	p.save()
	actorkit.Go(ctx, func(work context.Context) any {
		defer conn.forget()
		return farewellDone{conn.plane.Tunnel.Goodbye(work, conn.client)}
	})
}

func (p *peer) farewellDone(ctx actorkit.Context, m farewellDone) {
	if m.err != nil {
		ctx.Logger().Debug("goodbye", "client_id", p.id, "error", m.err)
	}
	p.leaving = false
	p.state = clientState{}
	p.inbox.release(p.id)
	p.stash.Release(ctx)
	p.reportIfEmpty(ctx, 0)
}
