package actors

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/portal/ws"
	"firezone-gateway/messages"
)

const (
	// closeTimeout bounds the closing handshake with the portal.
	closeTimeout = 500 * time.Millisecond
	// minRetryDelay keeps a portal that asks for a retry at once from being
	// flooded; it admits one login a second (portal §1.9).
	minRetryDelay = time.Second
	// frameBatch bounds the frames handled in one turn.
	frameBatch = 64
	// relaysPatience is how long what the portal says waits for the transport
	// actor to take new relays; a restart of that one passes in it.
	relaysPatience = 2 * time.Second
)

type portalTimer uint8

const (
	dialTimer portalTimer = iota
	sessionTimer
	relaysTimer
)

type (
	dial        struct{}
	sessionTick struct{}
	relaysLate  struct{}
	dialed      struct {
		attempt int
		epoch   messages.Epoch
		conn    *ws.Conn
		// keep ends the connection's bond to the incarnation that dialled it.
		keep func() bool
		err  error
	}
	framesReceived struct {
		from   *ws.Conn
		frames [][]byte
		closed bool
	}
	// readOn asks for more frames, after what was set aside.
	readOn struct{ from *ws.Conn }
	// pushed is one message of the portal, on its way to whom it concerns. The
	// actor sends it to itself, which begins a trace per message of the portal.
	pushed struct {
		message    portal.Message
		connection messages.Connection
		epoch      messages.Epoch
	}
)

// Untraced keeps frames from opening spans; the messages in them do.
func (framesReceived) Untraced() {}

// Untraced: see framesReceived.
func (readOn) Untraced() {}

// portalMemory is what the portal actor leaves to its next incarnation. Only one
// incarnation at a time touches it.
type portalMemory struct {
	backoff     *portal.Backoff
	backlog     portal.Backlog
	routes      portal.RouteMemory
	connections messages.Connection // opened by this process
	trace       portalTrace
}

// portalLink tells status how the channel is.
type portalLink struct {
	route portal.Route // unknown while it is not joined
	since time.Time    // zero before it was joined first
}

// portalActor owns the channel: login, join, heartbeats, back-off, and the order
// of what goes in and out.
//
//	idle --Siblings--> dialling --ok--> open (joining, joined) --end--> waiting --back-off--> dialling
//
// Supervisor: gateway. A restart dials again with the key of the plane; grants
// are not its business, and the portal repeats init after each join. Back-off,
// held-back candidates and the route that worked are kept in the plane.
type portalActor struct {
	plane    *Plane
	memory   *portalMemory
	siblings messages.Siblings
	timers   actorkit.Timers

	attempt int                // numbers the dials of this incarnation
	hangUp  context.CancelFunc // ends the dial under way, nil if there is none
	conn    *ws.Conn
	keep    func() bool // releases conn from ending with the incarnation
	session *portal.Session
	number  messages.Connection
	epoch   messages.Epoch // of the key that the connection logged in with
	ending  bool
	away    bool // not to connect until Reconnect

	// While the transport actor takes new relays, what the portal said after
	// them waits: an authorization must find the relays that came before it.
	awaiting bool
	updates  uint64 // numbers what transport is asked
	waiting  *actorkit.Stash
	unread   bool // frames are left with the connection meanwhile

	full bool // the connection takes no frame, and will tell when it does
}

func newPortal(p *Plane) *portalActor {
	// One batch of frames is read before, and one while the actor begins to wait.
	return &portalActor{plane: p, memory: &p.memory, waiting: actorkit.NewStash(2 * frameBatch)}
}

// Receive handles one message.
func (a *portalActor) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		a.detach() // a predecessor that got stuck could not say that it is gone
		a.begin(ctx, a.plane.siblings.load())
	case messages.Siblings:
		a.begin(ctx, m)
	case dial:
		a.redial(ctx)
	case dialed:
		a.dialed(ctx, m)
	case framesReceived:
		a.received(ctx, m)
	case pushed:
		a.pushed(ctx, m)
	case messages.RelaysUpdated:
		a.relaysUpdated(ctx, m)
	case relaysLate:
		a.resume(ctx)
	case readOn:
		a.readOn(ctx, m)
	case sessionTick:
		a.tick(ctx)
	case drained:
		a.drained(ctx, m)
	case messages.SendToPortal:
		a.send(ctx, m)
	case messages.Disconnect:
		a.disconnect(ctx)
	case messages.Reconnect:
		a.reconnect(ctx)
	case messages.ClosePortal:
		a.close(ctx)
	case *actorkit.Restarting:
		a.abort()
	case *actorkit.Stopping:
		a.leave()
	}
}

func (a *portalActor) begin(ctx actorkit.Context, m messages.Siblings) {
	a.siblings = m
	if m != (messages.Siblings{}) {
		a.redial(ctx)
	}
}

func (a *portalActor) redial(ctx actorkit.Context) {
	if a.hangUp == nil && a.conn == nil && !a.ending && !a.away {
		a.dial(ctx, nil)
	}
}

// dial closes old, if there is one, and connects with the key pair in use. A
// portal admits one connection for each gateway, so one follows the other.
func (a *portalActor) dial(ctx actorkit.Context, old *ws.Conn) {
	a.timers.Cancel(dialTimer)
	a.attempt++
	a.memory.trace.dialling(ctx)
	keys := a.plane.keys.load()
	m := dialed{attempt: a.attempt, epoch: keys.epoch}
	cfg := ws.DialConfig{
		Endpoint: a.plane.Login.Connect(portal.PublicKey(keys.public)), Preferred: a.memory.routes.First(time.Now()),
		Control: a.plane.markSocket, Drops: a.plane.Drops,
	}
	dialling, hangUp := context.WithCancel(context.Background())
	a.hangUp = hangUp
	actorkit.Go(ctx, func(work context.Context) any {
		defer hangUp()
		defer context.AfterFunc(work, hangUp)()
		if old != nil {
			defer context.AfterFunc(work, old.Abort)()
			old.Close(ws.CloseNormal, closeTimeout)
		}
		if m.conn, m.err = ws.Dial(dialling, cfg); m.err == nil {
			// An incarnation that ends before it takes the connection, or gets stuck with
			// it, leaves none behind: the portal admits one for each gateway.
			m.keep = context.AfterFunc(work, m.conn.Abort)
		}
		return m
	})
}

// disconnect closes the connection, or gives up the attempt at one.
func (a *portalActor) disconnect(ctx actorkit.Context) {
	a.away = true
	a.attempt++ // what an attempt under way yields comes too late
	if a.hangUp != nil {
		a.hangUp()
		a.hangUp = nil
	}
	a.timers.Cancel(dialTimer)
	conn, asked, system := a.detach(), ctx.Sender(), ctx.System()
	actorkit.Go(ctx, func(work context.Context) any {
		if conn != nil {
			defer context.AfterFunc(work, conn.Abort)()
			conn.Close(ws.CloseNormal, closeTimeout)
		}
		system.Send(asked, messages.Disconnected{})
		return nil
	})
}

// reconnect gives up the connection, or the attempt at one, for another. What
// was held back for clients of the old one concerns nobody any more.
func (a *portalActor) reconnect(ctx actorkit.Context) {
	if a.ending {
		return
	}
	if a.hangUp != nil {
		a.hangUp()
	}
	a.away = false
	a.memory.backoff.Hurry()
	a.memory.backlog = portal.Backlog{}
	a.dial(ctx, a.detach())
}

func (a *portalActor) dialed(ctx actorkit.Context, m dialed) {
	if a.ending || m.attempt != a.attempt {
		if m.conn != nil {
			m.keep()
			m.conn.Abort()
		}
		return
	}
	a.hangUp = nil
	if m.err != nil {
		a.memory.trace.over(m.err)
		if refused := new(ws.HandshakeError); errors.As(m.err, &refused) {
			a.memory.routes.Refused()
		}
		a.retry(ctx, ws.FailureOf(m.err), m.err)
		return
	}
	a.memory.routes.Worked(m.conn.Route())
	a.conn, a.keep, a.epoch = m.conn, m.keep, m.epoch
	a.session = portal.NewSession(time.Now())
	a.memory.connections++
	a.number = a.memory.connections
	ctx.Logger().Debug("portal connection open", "route", a.conn.Route())
	a.pump(ctx)
	a.step(ctx)
}

func (a *portalActor) ended(ctx actorkit.Context, e portal.Ended) {
	err := fmt.Errorf("portal ended the session: %s %s", e.Cause, e.Detail)
	if e.Cause.Fatal() {
		a.memory.trace.over(err)
		a.abort()
		a.giveUp(ctx, err)
		return
	}
	a.lost(ctx, err)
}

// lost drops the connection and arranges the next one.
func (a *portalActor) lost(ctx actorkit.Context, cause error) {
	a.memory.trace.over(cause)
	a.abort()
	a.retry(ctx, portal.Failure{}, cause)
}

func (a *portalActor) retry(ctx actorkit.Context, f portal.Failure, cause error) {
	if a.ending || a.away {
		return
	}
	delay, ok := a.memory.backoff.Next(f, rand.Float64())
	if !ok {
		a.giveUp(ctx, cause)
		return
	}
	if f.HasRetryAfter {
		delay = max(delay, minRetryDelay)
	}
	ctx.Logger().Warn("no portal, trying again", "error", cause, "delay", delay)
	a.timers.After(ctx, dialTimer, delay, dial{})
}

func (a *portalActor) giveUp(ctx actorkit.Context, cause error) {
	a.ending = true
	ctx.Send(ctx.Parent(), messages.PortalGaveUp{Cause: cause})
}

func (a *portalActor) abort() {
	if conn := a.detach(); conn != nil {
		conn.Abort()
	}
}

// leave closes a connection that nobody asked to close: the gateway ends without an
// orderly end, and this is the last that the portal hears of it. The turn may block,
// because none follows.
func (a *portalActor) leave() {
	if conn := a.detach(); conn != nil {
		conn.Close(ws.CloseNormal, closeTimeout)
	}
}

// detach forgets the connection and returns it, nil if there is none.
func (a *portalActor) detach() *ws.Conn {
	if a.plane.joined.Swap(false) {
		a.plane.link.store(portalLink{since: time.Now()})
	}
	a.timers.Cancel(sessionTimer)
	a.memory.trace.over(nil)
	conn := a.conn
	if conn != nil {
		a.keep()
	}
	a.conn, a.session, a.unread, a.full = nil, nil, false, false
	return conn
}

// close ends the channel in an orderly way and answers when that is done.
func (a *portalActor) close(ctx actorkit.Context) {
	a.ending = true
	a.timers.CancelAll()
	if a.hangUp != nil {
		a.hangUp()
	}
	conn, asked, system := a.detach(), ctx.Sender(), ctx.System()
	actorkit.Go(ctx, func(work context.Context) any {
		if conn != nil {
			defer context.AfterFunc(work, conn.Abort)()
			conn.Close(ws.CloseNormal, closeTimeout)
		}
		system.Send(asked, messages.PortalClosed{})
		return nil
	})
}
