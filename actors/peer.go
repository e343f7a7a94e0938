package actors

import (
	"errors"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

const (
	// candidateTimeout ends a connection whose client never sent a candidate
	// (transport §6 row 8).
	candidateTimeout = 10 * time.Second
	// repeatAfter is when a client that was not heard is told our candidates
	// once more: a portal that runs on many machines may have handed it the
	// first ones before the connection they belong to (transport §7.7 step 6).
	repeatAfter = 2 * time.Second
	// controlLimit bounds the control packets of one client that wait for its
	// actor.
	controlLimit = 64
	// controlBurst and controlInterval bound how fast they come: a client that
	// reconnects sets up all its domains at once, each of which costs look-ups, and
	// repeats what is not answered.
	controlBurst    = 100
	controlInterval = time.Second / 20
	// changesLimit is enough to lose no change: one message is being handled
	// and may have looked at the client already, the other will look later.
	changesLimit = 2
)

type timerKey uint8

const (
	expiryTimer timerKey = iota
	candidateTimer
	repeatTimer
)

// errReplaced ends an incarnation that is not the one in charge any more.
var errReplaced = errors.New("replaced by another incarnation, or given up")

type (
	grantExpired     struct{}
	candidatesMissed struct{}
	repeatCandidates struct{}
	farewellDone     struct{ err error }
)

// peerEnv is what a peer is made with; it never changes.
type peerEnv struct {
	*Plane
	id                     string
	portal, transport, dns actorkit.PID
}

// peer owns one client: its grants and their expiry, its ICE agent and its
// entry in the packet path.
//
//	empty --authorize--> connected --transport failed--> granted, not connected
//	  ^                     |                                     |
//	  +-- last grant ended, goodbye said (leaving), or goodbye received
//
// Supervisor: peers. Its state is a value in the store; WireGuard session,
// policy and path live in the packet path, which carries on while the actor
// restarts. Its NAT restarts with it. The ICE agent is made again with the same
// credentials, which the client does not notice.
type peer struct {
	peerEnv
	timers  actorkit.Timers
	state   clientState
	lease   lease // to write it
	relays  messages.RelaysChanged
	conn    *connection     // nil unless state.Connected
	leaving bool            // goodbye is on its way
	stash   *actorkit.Stash // what arrives meanwhile
	control *actorkit.Gate
	rate    *bucket // of control packets
	changes *actorkit.Gate

	nat       actorkit.PID // nil until a domain was set up
	natNumber int          // of the names of its incarnations
	resolving lookups
}

func newPeer(env peerEnv) *peer {
	return &peer{
		peerEnv: env, stash: actorkit.NewStash(pendingLimit),
		control: actorkit.NewGate(controlLimit), rate: newBucket(controlBurst, controlInterval), changes: actorkit.NewGate(changesLimit),
	}
}

// Receive handles one message and then puts the new state into the store.
func (p *peer) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		p.start(ctx)
	case *actorkit.Stopping, *actorkit.Restarting:
		p.release()
		return
	case *actorkit.Stopped:
		p.store.release(p.id, p.lease)
		return
	default:
		if concernsGrants(m) {
			p.inbox.begin(p.id)
		}
		p.handle(ctx, m)
	}
	p.save()
}

// save puts the state into the store, for what follows to take effect.
func (p *peer) save() {
	if !p.store.keep(p.id, p.lease, p.state) {
		panic(errReplaced)
	}
}

func (p *peer) handle(ctx actorkit.Context, msg any) {
	if p.leaving && concernsGrants(msg) {
		p.hold(ctx)
		return
	}
	switch m := msg.(type) {
	case messages.Authorize:
		p.authorize(ctx, m)
	case messages.RequestConnection:
		p.requestConnection(ctx, m)
	case messages.AllowAccess:
		p.allowAccess(ctx, m)
	case messages.AddCandidates:
		p.addCandidates(ctx, m)
	case messages.RemoveCandidates:
		p.removeCandidates(ctx, m)
	case messages.Revoke:
		p.setGrants(ctx, p.state.Grants.Revoke(m.ResourceID), "revoked")
	case messages.RetainGrants:
		p.retain(ctx, m)
	case messages.ExtendGrant:
		p.setGrants(ctx, p.state.Grants.Extend(m.ResourceID, m.ExpiresAt), "")
	case messages.UpdateResource:
		p.setGrants(ctx, p.state.Grants.UpdateFilters(policyResource(m.Resource)), "")
	case messages.RelaysChanged:
		p.relaysChanged(ctx, m)
	case messages.ControlReceived:
		p.controlReceived(ctx, m)
	case messages.Resolved:
		p.resolved(ctx, m)
	case messages.DomainAssigned:
		p.domainAssigned(m)
	case *actorkit.ChildGaveUp:
		p.natLost(ctx, m.PID, "its NAT kept failing")
	case messages.DomainsLost:
		p.natLost(ctx, m.NAT, "its NAT had faults")
	case messages.ClientChanged:
		p.clientChanged(ctx)
	case messages.ConfirmEmpty:
		p.reportIfEmpty(ctx, m.Last)
	case grantExpired:
		p.expire(ctx)
	case candidatesMissed:
		p.candidatesMissed(ctx)
	case repeatCandidates:
		p.repeatCandidates(ctx)
	case farewellDone:
		p.farewellDone(ctx, m)
	}
}

// start takes over what the store and the packet path hold, as far as it fits
// together.
func (p *peer) start(ctx actorkit.Context) {
	left, lease, failed := p.store.take(p.id)
	state, wrong := left.check(p.id)
	if state.Connected && p.store.rivalled(p.id, state) {
		state, wrong = state.disconnected(), append(wrong, "connection with the key or address of another client")
	}
	p.state, p.lease, p.relays = state, lease, p.offers.load()
	p.discarded(ctx.Logger(), wrong, "client_id", p.id)
	if failed || left.Connected && !p.state.Connected {
		p.save()
		p.disown(ctx.Logger())
	}
	if p.state.NAT != nil {
		p.ensureNAT(ctx)
		// What ended the sessions of a grant may have gone with the last incarnation.
		for _, id := range p.state.ungranted() {
			ctx.Send(p.nat, messages.EndSessions{ResourceID: id})
		}
	}
	if p.state.Connected {
		o := p.nextOffer(false)
		conn, err := openConnection(p.Plane, ctx.Logger(), p.state, p.callbacks(ctx), true)
		if err != nil {
			ctx.Logger().Warn("connection not taken over", "client_id", p.id, "error", err)
			p.disconnect()
		}
		p.conn = conn
		p.armCandidateTimer(ctx)
		p.signal(ctx, o)
	}
	// What the last incarnation had set aside goes on from here.
	for _, msg := range p.inbox.lost(p.id) {
		p.handle(ctx, msg)
	}
	if p.conn != nil && p.state.Grants.Len() == 0 {
		p.sendAway(ctx)
		return
	}
	p.armExpiry(ctx)
	p.reportIfEmpty(ctx, 0)
}

func (p *peer) release() {
	if p.conn != nil {
		p.conn.close()
		p.conn = nil
	}
}

func (p *peer) hold(ctx actorkit.Context) {
	if !p.stash.Push(ctx) {
		dropped(ctx, p.Drops, drop.MailboxFull, 1)
		return
	}
	p.inbox.hold(p.id, ctx.Message())
}

// authorize grants a resource. A connection that has just the parameters of the
// authorization is kept (portal §3.2 step 1).
func (p *peer) authorize(ctx actorkit.Context, m messages.Authorize) {
	keep := p.conn != nil && p.state.serves(m.Authorization)
	p.admit(ctx, m, keep, m.Authorization.Acknowledge())
}

// admit follows portal §3.2: connection, grant, answer, candidates, in this
// order.
func (p *peer) admit(ctx actorkit.Context, m messages.Authorize, keep bool, answer portal.Outgoing) {
	a := m.Authorization
	relay, ok := p.state.RelayID, usableRelay(p.relays, p.state.RelayID)
	if !ok {
		relay, ok = pickRelay(p.relays, p.id)
	}
	if !ok {
		ctx.Logger().Warn("no usable relay, authorization not answered", "client_id", p.id)
		actorkit.SetError(ctx, "authorization not answered: no usable relay")
		ctx.Send(p.transport, messages.WantRelays{})
		p.reportIfEmpty(ctx, 0)
		return
	}
	p.state.Gateway = m.Gateway
	if keep {
		p.arrivals.begin(ctx, p.id, a.Resource.ID, true)
	} else {
		if err := p.connect(ctx, a, relay); err != nil {
			ctx.Logger().Warn("authorization not answered", "client_id", p.id, "error", err)
			actorkit.SetError(ctx, "authorization not answered: "+err.Error())
			p.disconnect()
			p.reportIfEmpty(ctx, 0)
			return
		}
	}
	p.arrivals.await(p.id, p.conn.client)
	grants := p.state.Grants.Upsert(policy.Grant{Resource: policyResource(a.Resource), ExpiresAt: a.ExpiresAt})
	p.setGrants(ctx, grants, "")
	ctx.Logger().Info("access granted", "client_id", p.id, "resource_id", a.Resource.ID, "expires_at", a.ExpiresAt)
	p.warnOfSkipped(ctx, a.Resource.ID)
	ctx.Send(p.portal, messages.SendToPortal{Message: answer, Connection: m.Connection})
	p.signal(ctx, p.nextOffer(true))
}

// warnOfSkipped says that a grant admits nothing, because of what the resource
// is.
func (p *peer) warnOfSkipped(ctx actorkit.Context, resourceID string) {
	for _, s := range p.conn.client.Policy().Skipped() {
		if s.ID == resourceID {
			ctx.Logger().Warn("resource cannot be reached", "resource_id", s.ID, "error", s.Err)
		}
	}
}

// connect makes the connection that a asks for, in place of the old one, which
// is dropped without goodbye (transport §5.5).
func (p *peer) connect(ctx actorkit.Context, a portal.Authorize, relayID string) error {
	p.disconnect()
	p.arrivals.begin(ctx, p.id, a.Resource.ID, false)
	if a.Client.IPv4 != p.state.Client.IPv4 || a.Client.IPv6 != p.state.Client.IPv6 {
		p.state.Grants = policy.Grants{} // another tunnel address is another peer (dataplane rule 43)
		p.dropNAT(ctx)
	}
	p.state.Client, p.state.ClientICE, p.state.GatewayICE = a.Client, a.ClientICE, a.GatewayICE
	p.state.RelayID, p.state.Connected = relayID, true
	p.nextOffer(true) // the agent starts with these addresses
	p.save()
	conn, err := openConnection(p.Plane, ctx.Logger(), p.state, p.callbacks(ctx), false)
	if err != nil {
		return err
	}
	p.conn = conn
	p.armCandidateTimer(ctx)
	p.timers.After(ctx, repeatTimer, repeatAfter, repeatCandidates{})
	return nil
}

// disconnect drops the transport, without goodbye, and keeps the grants (T-61).
func (p *peer) disconnect() {
	p.timers.Cancel(candidateTimer)
	p.timers.Cancel(repeatTimer)
	if p.conn != nil {
		p.conn.forget()
		p.conn = nil
		p.arrivals.end(p.id, "connection ended")
	}
	p.state = p.state.disconnected()
}

func (p *peer) reportIfEmpty(ctx actorkit.Context, last uint64) {
	if p.state.empty() && !p.leaving {
		ctx.Send(ctx.Parent(), messages.PeerEmpty{ClientID: p.id, Last: last})
	}
}
