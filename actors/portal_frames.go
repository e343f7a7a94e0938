package actors

import (
	"context"
	"errors"
	"fmt"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// pump waits for the next frames of the connection, as many as are there.
func (a *portalActor) pump(ctx actorkit.Context) {
	conn := a.conn
	actorkit.Go(ctx, func(work context.Context) any {
		m := framesReceived{from: conn}
		select {
		case f, open := <-conn.Frames():
			m.add(f, open)
		case <-work.Done():
			return nil
		}
		for !m.closed && len(m.frames) < frameBatch {
			select {
			case f, open := <-conn.Frames():
				m.add(f, open)
			default:
				return m
			}
		}
		return m
	})
}

func (m *framesReceived) add(frame []byte, open bool) {
	if open {
		m.frames = append(m.frames, frame)
	}
	m.closed = !open
}

func (a *portalActor) received(ctx actorkit.Context, m framesReceived) {
	if m.from != a.conn {
		return
	}
	now := time.Now()
	for _, f := range m.frames {
		a.session.Receive(f, now)
		a.settle(ctx)
		if m.from != a.conn {
			return
		}
	}
	a.arm(ctx)
	switch {
	case m.closed:
		a.lost(ctx, fmt.Errorf("connection to portal: %w", a.conn.Err()))
	case a.awaiting:
		a.unread = true
	default:
		a.pump(ctx)
	}
}

func (a *portalActor) tick(ctx actorkit.Context) {
	if a.session != nil {
		a.session.Tick(time.Now())
		a.step(ctx)
	}
}

func (a *portalActor) step(ctx actorkit.Context) {
	a.settle(ctx)
	a.arm(ctx)
}

func (a *portalActor) arm(ctx actorkit.Context) {
	if a.session != nil {
		a.timers.After(ctx, sessionTimer, max(0, time.Until(a.session.NextTimeout())), sessionTick{})
	}
}

// settle handles what the session reports and writes what it wants written.
func (a *portalActor) settle(ctx actorkit.Context) {
	conn := a.conn
	for {
		e, ok := a.session.PollEvent()
		if !ok {
			break
		}
		a.event(ctx, e)
		if a.conn != conn {
			return // the event ended this connection
		}
	}
	a.write(ctx)
}

func (a *portalActor) event(ctx actorkit.Context, e portal.Event) {
	switch e := e.(type) {
	case portal.Joined:
		ctx.Logger().Info("joined the portal", "route", a.conn.Route())
		a.memory.backoff.Success()
		a.memory.trace.joined(ctx, a.conn.Route().String(), a.number)
		a.plane.link.store(portalLink{a.conn.Route(), time.Now()})
		a.plane.joined.Store(true)
	case portal.Received:
		e.Skipped.AddTo(a.plane.Drops)
		ctx.System().SendContext(a.plane.arrivals.of(e.Message), ctx.Self(), pushed{e.Message, a.number, a.epoch})
	case portal.Refused:
		ctx.Logger().Debug("portal refused a message", "event", e.Event, "reason", e.Reason)
		if e.Reason == portal.ReasonUnknownMessage && e.Event == (portal.NoRelays{}).Event() {
			a.lost(ctx, errors.New("portal hands out relays on re-connect only"))
		}
	case portal.Dropped:
		a.plane.Drops.Add(e.Reason, 1)
		ctx.Logger().Warn("portal message dropped", "reason", e.Reason, "error", e.Err)
	case portal.Ended:
		a.ended(ctx, e)
	}
}

// pushed passes a message of the portal on, in the order of arrival.
func (a *portalActor) pushed(ctx actorkit.Context, m pushed) {
	if a.awaiting {
		if !a.waiting.Push(ctx) {
			dropped(ctx, a.plane.Drops, drop.MailboxFull, 1)
		}
		return
	}
	switch msg := m.message.(type) {
	case portal.Init:
		a.plane.addresses.store(messages.TunnelAddresses{V4: msg.IPv4, V6: msg.IPv6})
		ctx.Send(a.siblings.TUN, messages.ConfigureTUN{})
		a.updateRelays(ctx, messages.UpdateRelays{All: true, Connected: portal.MergeRelays(msg.Relays)})
		a.passOn(ctx, m)
	case portal.RelaysPresence:
		a.updateRelays(ctx, messages.UpdateRelays{
			Disconnected: msg.DisconnectedIDs, Connected: portal.MergeRelays(msg.Connected)})
	case portal.Unknown:
		dropped(ctx, a.plane.Drops, drop.EventUnknown, 1)
		ctx.Logger().Debug("portal event is not in the protocol", "event", msg.Event)
	case portal.Disconnect:
		ctx.Logger().Info("portal announces the end of the connection", "reason", msg.Reason)
	default:
		a.passOn(ctx, m)
	}
}

func (a *portalActor) passOn(ctx actorkit.Context, m pushed) {
	ctx.Send(a.siblings.Peers, messages.FromPortal{Message: m.message, Connection: m.connection, Epoch: m.epoch})
}

func (a *portalActor) updateRelays(ctx actorkit.Context, m messages.UpdateRelays) {
	a.updates++
	m.Number = a.updates
	ctx.Request(a.siblings.Transport, m)
	a.awaiting = true
	a.timers.After(ctx, relaysTimer, relaysPatience, relaysLate{})
}

// relaysUpdated ends the wait for the transport, unless it answers an earlier
// update whose wait was given up.
func (a *portalActor) relaysUpdated(ctx actorkit.Context, m messages.RelaysUpdated) {
	if m.Number == a.updates {
		a.resume(ctx)
	}
}

// resume goes on with what the portal said after it named relays. More is read
// when all of that was handled, or waits again: the bound of what waits depends
// on it.
func (a *portalActor) resume(ctx actorkit.Context) {
	if !a.awaiting {
		return
	}
	a.awaiting = false
	a.timers.Cancel(relaysTimer)
	a.waiting.Release(ctx)
	if a.unread {
		ctx.Send(ctx.Self(), readOn{from: a.conn})
	}
}

func (a *portalActor) readOn(ctx actorkit.Context, m readOn) {
	if m.from == a.conn && a.unread && !a.awaiting {
		a.unread = false
		a.pump(ctx)
	}
}
