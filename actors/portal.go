package actors

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/portal/ws"
	"firezone-gateway/messages"
)

const (
	// closeTimeout bounds the closing handshake with the portal.
	closeTimeout = 500 * time.Millisecond
	// minRetryDelay keeps a portal that asks for a retry at once from being flooded.
	minRetryDelay = 200 * time.Millisecond
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
		conn *ws.Conn
		// keep ends the connection's bond to the incarnation that dialled it.
		keep func() bool
		err  error
	}
	framesReceived struct {
		from   *ws.Conn
		frames [][]byte
		closed bool
	}
	// pushed is one message of the portal, on its way to whom it concerns. The
	// actor sends it to itself, which begins a trace per message of the portal.
	pushed struct {
		message    portal.Message
		connection messages.Connection
	}
)

// Untraced keeps frames from opening spans; the messages in them do.
func (framesReceived) Untraced() {}

// portalMemory is what the portal actor leaves to its next incarnation. Only one
// incarnation at a time touches it.
type portalMemory struct {
	backoff     *portal.Backoff
	backlog     portal.Backlog
	connections messages.Connection // opened by this process
}

// portalActor owns the channel: login, join, heartbeats, back-off, and the order
// of what goes in and out.
//
//	idle --Siblings--> dialling --ok--> open (joining, joined) --end--> waiting --back-off--> dialling
//
// Supervisor: gateway. A restart dials again with the key of the plane; grants
// are not its business, and the portal repeats init after each join. Back-off
// and held-back candidates are kept in the plane.
type portalActor struct {
	plane    *Plane
	memory   *portalMemory
	siblings messages.Siblings
	timers   actorkit.Timers

	route    portal.Route
	dialling bool
	conn     *ws.Conn
	session  *portal.Session
	number   messages.Connection
	ending   bool

	// While the transport actor takes new relays, what the portal said after
	// them waits: an authorization must find the relays that came before it.
	awaiting bool
	waiting  *actorkit.Stash
	unread   bool // frames are left with the connection meanwhile
}

func newPortal(p *Plane) *portalActor {
	// One batch of frames is read before, and one while the actor begins to wait.
	return &portalActor{plane: p, memory: &p.memory, waiting: actorkit.NewStash(2 * frameBatch)}
}

// Receive handles one message.
func (a *portalActor) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		a.begin(ctx, a.plane.siblings.load())
	case messages.Siblings:
		a.begin(ctx, m)
	case dial:
		a.dial(ctx)
	case dialed:
		a.dialed(ctx, m)
	case framesReceived:
		a.received(ctx, m)
	case pushed:
		a.pushed(ctx, m)
	case messages.RelaysUpdated, relaysLate:
		a.resume(ctx)
	case sessionTick:
		a.tick(ctx)
	case messages.SendToPortal:
		a.send(ctx, m)
	case messages.ClosePortal:
		a.close(ctx)
	case *actorkit.Stopping, *actorkit.Restarting:
		a.abort()
	}
}

func (a *portalActor) begin(ctx actorkit.Context, m messages.Siblings) {
	a.siblings = m
	if m != (messages.Siblings{}) {
		a.dial(ctx)
	}
}

func (a *portalActor) dial(ctx actorkit.Context) {
	if a.dialling || a.conn != nil || a.ending {
		return
	}
	a.dialling = true
	a.timers.Cancel(dialTimer)
	cfg := ws.DialConfig{
		Endpoint: a.plane.Login.Connect(portal.PublicKey(a.plane.PublicKey)), Preferred: a.route,
		Control: a.plane.markSocket, Drops: a.plane.Drops,
	}
	actorkit.Go(ctx, func(work context.Context) any {
		conn, err := ws.Dial(work, cfg)
		if err != nil {
			return dialed{err: err}
		}
		// An incarnation that ends before it takes the connection leaves none behind.
		return dialed{conn: conn, keep: context.AfterFunc(work, conn.Abort)}
	})
}

func (a *portalActor) dialed(ctx actorkit.Context, m dialed) {
	a.dialling = false
	if m.err != nil {
		a.retry(ctx, ws.FailureOf(m.err), m.err)
		return
	}
	m.keep()
	if a.ending {
		m.conn.Abort()
		return
	}
	a.conn, a.route = m.conn, m.conn.Route()
	a.session = portal.NewSession(time.Now())
	a.memory.connections++
	a.number = a.memory.connections
	ctx.Logger().Debug("portal connection open", "route", a.route)
	a.pump(ctx)
	a.step(ctx)
}

// send hands a message to the session. While no connection is joined only the
// net change of candidates is kept (portal rule 40); an acknowledgement never
// leaves on another connection than the one of its request.
func (a *portalActor) send(ctx actorkit.Context, m messages.SendToPortal) {
	if m.Connection != 0 && (a.session == nil || m.Connection != a.number) {
		ctx.Logger().Debug("message outlived its portal connection", "event", m.Message.Event())
		return
	}
	if a.session == nil || !a.session.Joined() {
		if a.holdBack(m.Message) || a.session == nil {
			return
		}
	}
	a.submit(ctx, m.Message)
	a.step(ctx)
}

// holdBack keeps changes of candidates for the next join.
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
		a.plane.Drops.Add(drop.MailboxFull, 1)
		ctx.Logger().Warn("message to portal dropped", "event", m.Event(), "error", err)
	}
}

func (a *portalActor) ended(ctx actorkit.Context, e portal.Ended) {
	err := fmt.Errorf("portal ended the session: %s %s", e.Cause, e.Detail)
	if e.Cause.Fatal() {
		a.abort()
		a.giveUp(ctx, err)
		return
	}
	a.lost(ctx, err)
}

// lost drops the connection and arranges the next one.
func (a *portalActor) lost(ctx actorkit.Context, cause error) {
	a.abort()
	a.retry(ctx, portal.Failure{}, cause)
}

func (a *portalActor) retry(ctx actorkit.Context, f portal.Failure, cause error) {
	if a.ending {
		return
	}
	delay, ok := a.memory.backoff.Next(f, rand.Float64())
	if !ok {
		a.giveUp(ctx, cause)
		return
	}
	delay = max(delay, minRetryDelay)
	ctx.Logger().Warn("no portal, trying again", "error", cause, "delay", delay)
	a.timers.After(ctx, dialTimer, delay, dial{})
}

func (a *portalActor) giveUp(ctx actorkit.Context, cause error) {
	a.ending = true
	ctx.Send(ctx.Parent(), messages.PortalGaveUp{Cause: cause})
}

func (a *portalActor) abort() {
	a.plane.joined.Store(false)
	if a.conn != nil {
		a.conn.Abort()
		a.conn, a.session = nil, nil
	}
	a.unread = false
	a.timers.Cancel(sessionTimer)
}

// close ends the channel in an orderly way and answers when that is done.
func (a *portalActor) close(ctx actorkit.Context) {
	a.ending = true
	a.timers.CancelAll()
	a.plane.joined.Store(false)
	conn, asked, system := a.conn, ctx.Sender(), ctx.System()
	a.conn, a.session = nil, nil
	actorkit.Go(ctx, func(work context.Context) any {
		if conn != nil {
			defer context.AfterFunc(work, conn.Abort)()
			conn.Close(ws.CloseNormal, closeTimeout)
		}
		system.Send(asked, messages.PortalClosed{})
		return nil
	})
}
