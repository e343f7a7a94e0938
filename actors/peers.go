package actors

import (
	"context"
	"path"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// peers owns the set of clients: it creates a peer for whatever grants a client
// something first, routes the portal's messages to it and forgets it when it
// holds nothing any more.
//
// It owns the gateway's key pair, which a reset replaces.
//
// Supervisor: gateway. A restart starts every peer again from the store, or
// begins the reset again that was under way.
type peers struct {
	plane    *Plane
	siblings messages.Siblings
	gateway  messages.TunnelAddresses
	children map[string]*peerChild // by client id

	timers    actorkit.Timers
	resetting *resetting // nil unless a reset is under way
}

type peerChild struct {
	pid actorkit.PID
	// last numbers the last message that was sent to the peer. It ends when it
	// says that it is empty after that one.
	last uint64
	// ending is set once the peer was told to stop. Its successor starts when
	// it has ended, with the messages that arrived meanwhile.
	ending  bool
	pending []any
}

// pendingLimit bounds the messages kept for a client whose peer is ending.
const pendingLimit = 64

func newPeers(p *Plane) *peers { return &peers{plane: p, children: map[string]*peerChild{}} }

// Receive handles one message.
func (p *peers) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		p.begin(ctx, p.plane.siblings.load())
	case messages.Siblings:
		p.begin(ctx, m)
	case messages.FromPortal:
		p.fromPortal(ctx, m)
	case messages.RelaysChanged:
		p.broadcast(ctx, m)
	case messages.PeerEmpty:
		p.peerEmpty(ctx, m)
	case *actorkit.Terminated:
		p.terminated(ctx, m)
	case *actorkit.ChildGaveUp:
		p.gaveUp(ctx, m)
	case messages.GoodbyeAll:
		p.goodbyeAll(ctx)
	case messages.Reset:
		p.reset(ctx, m)
	case messages.Disconnected:
		p.disconnected(ctx)
	case peersLate:
		p.part(ctx)
	case keysRotated:
		p.finishReset(ctx, m)
	}
}

// begin learns the other actors and brings back every client of the store.
func (p *peers) begin(ctx actorkit.Context, m messages.Siblings) {
	if p.siblings != (messages.Siblings{}) || m == (messages.Siblings{}) {
		return
	}
	p.siblings, p.gateway = m, p.plane.addresses.load()
	if p.plane.resetting.Load() {
		p.startReset(ctx)
		return
	}
	for _, id := range p.plane.store.ids() {
		p.ensure(ctx, id)
	}
}

func (p *peers) fromPortal(ctx actorkit.Context, m messages.FromPortal) {
	if p.resetting != nil || m.Epoch != p.plane.keys.load().epoch {
		p.plane.Drops.Add(drop.KeyReplaced, 1)
		return
	}
	switch msg := m.Message.(type) {
	case portal.Init:
		p.init(ctx, msg)
	case portal.Authorize:
		p.send(ctx, p.ensure(ctx, msg.Client.ID), messages.Authorize{Authorization: msg, Gateway: p.gateway, Connection: m.Connection})
	case portal.RequestConnection:
		p.send(ctx, p.ensure(ctx, msg.Client.ID), messages.RequestConnection{Request: msg, Gateway: p.gateway, Connection: m.Connection})
	case portal.AllowAccess:
		p.send(ctx, p.ensure(ctx, msg.ClientID), messages.AllowAccess{Access: msg, Gateway: p.gateway})
	case portal.RejectAccess:
		p.route(ctx, msg.ClientID, messages.Revoke{ResourceID: msg.ResourceID})
	case portal.ICECandidates:
		p.route(ctx, msg.ClientID, messages.AddCandidates{Candidates: msg.Candidates})
	case portal.InvalidateICECandidates:
		p.route(ctx, msg.ClientID, messages.RemoveCandidates{Candidates: msg.Candidates})
	case portal.ExpiryUpdated:
		p.route(ctx, msg.ClientID, messages.ExtendGrant{ResourceID: msg.ResourceID, ExpiresAt: msg.ExpiresAt})
	case portal.ResourceUpdated:
		p.broadcast(ctx, messages.UpdateResource{Resource: msg.Resource})
	default:
		p.plane.Drops.Add(drop.EventUnknown, 1)
	}
}

// init tells every client what it may keep; a client that is not listed keeps
// nothing (portal rule 25).
func (p *peers) init(ctx actorkit.Context, m portal.Init) {
	p.gateway = messages.TunnelAddresses{V4: m.IPv4, V6: m.IPv6}
	listed := map[string]map[string]time.Time{}
	for _, a := range m.Authorizations {
		if listed[a.ClientID] == nil {
			listed[a.ClientID] = map[string]time.Time{}
		}
		listed[a.ClientID][a.ResourceID] = a.ExpiresAt
	}
	for id, c := range p.children {
		p.send(ctx, c, messages.RetainGrants{ExpiresAt: listed[id], Gateway: p.gateway})
	}
}

// route passes msg on to the peer of a client; messages for clients that are not
// connected are dropped (transport T-31).
func (p *peers) route(ctx actorkit.Context, clientID string, msg any) {
	c, ok := p.children[clientID]
	if !ok || !p.send(ctx, c, msg) {
		p.plane.Drops.Add(drop.ClientUnknown, 1)
	}
}

func (p *peers) broadcast(ctx actorkit.Context, msg any) {
	for _, c := range p.children {
		p.send(ctx, c, msg)
	}
}

// send reports false when the client has nothing that msg could concern.
func (p *peers) send(ctx actorkit.Context, c *peerChild, msg any) bool {
	if !c.ending {
		c.last = p.plane.peerMessages.Add(1)
		ctx.Send(c.pid, msg)
		return true
	}
	if !givesAccess(msg) && len(c.pending) == 0 {
		return false
	}
	if len(c.pending) == pendingLimit {
		p.plane.Drops.Add(drop.MailboxFull, 1)
		return true
	}
	c.pending = append(c.pending, msg)
	return true
}

// givesAccess reports whether msg can give something to a client that has nothing.
func givesAccess(msg any) bool {
	switch msg.(type) {
	case messages.Authorize, messages.RequestConnection, messages.AllowAccess:
		return true
	}
	return false
}

func (p *peers) ensure(ctx actorkit.Context, id string) *peerChild {
	if c, ok := p.children[id]; ok {
		return c
	}
	c := &peerChild{last: p.plane.peerMessages.Add(1)}
	p.children[id] = c
	p.spawn(ctx, id, c)
	return c
}

func (p *peers) spawn(ctx actorkit.Context, id string, c *peerChild) {
	env := peerEnv{Plane: p.plane, id: id, portal: p.siblings.Portal, transport: p.siblings.Transport, dns: p.siblings.DNS}
	pid, err := actorkit.SpawnChild(ctx, KindPeer, id, func() actorkit.Actor { return env.players.peer(env) })
	if err != nil {
		panic(err) // names are unique per client: only a bug gets here
	}
	c.pid = pid
}

// peerEmpty ends a peer without grants, unless something for it is on its way.
func (p *peers) peerEmpty(ctx actorkit.Context, m messages.PeerEmpty) {
	c, ok := p.children[m.ClientID]
	if !ok || c.ending {
		return
	}
	if m.Last != c.last {
		ctx.Send(c.pid, messages.ConfirmEmpty{Last: c.last})
		return
	}
	c.ending = true
	ctx.Poison(c.pid)
}

// gaveUp drops a peer that cannot be kept alive; its client authorises again.
func (p *peers) gaveUp(ctx actorkit.Context, m *actorkit.ChildGaveUp) {
	ctx.Logger().Error("client dropped, its actor kept failing", "client_id", m.Name, "error", m.Fault)
	if c, ok := p.children[m.Name]; ok {
		c.ending = true
	}
	client, ok := p.plane.Tunnel.Lookup(p.plane.store.get(m.Name).Client.PublicKey)
	p.plane.store.delete(m.Name)
	if !ok {
		return
	}
	tunnel := p.plane.Tunnel
	actorkit.Go(ctx, func(work context.Context) any {
		// Best effort: the client finds out by itself if this gets lost.
		_ = tunnel.Goodbye(work, client)
		tunnel.Remove(client)
		return nil
	})
}

// terminated starts the successor of a peer if somebody waits for it.
func (p *peers) terminated(ctx actorkit.Context, m *actorkit.Terminated) {
	id := path.Base(actorkit.Path(m.Who))
	c, ok := p.children[id]
	if !ok || !actorkit.Same(c.pid, m.Who) {
		return
	}
	delete(p.children, id)
	p.partIfAlone(ctx)
	if len(c.pending) == 0 {
		return
	}
	next := p.ensure(ctx, id)
	for _, msg := range c.pending {
		p.send(ctx, next, msg)
	}
}

// goodbyeAll tells all clients at once and answers when they know.
func (p *peers) goodbyeAll(ctx actorkit.Context) {
	asked, system, tunnel := ctx.Sender(), ctx.System(), p.plane.Tunnel
	actorkit.Go(ctx, func(work context.Context) any {
		system.Send(asked, messages.GoodbyeDone{Err: tunnel.GoodbyeAll(work)})
		return nil
	})
}
