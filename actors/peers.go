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
	id  string // of the client
	pid actorkit.PID
	// last numbers the last message that was sent to the peer. It ends when it
	// says that it is empty after that one.
	last uint64
	// ending is set once the peer was told to stop. Its successor starts when
	// it has ended, with the messages that arrived meanwhile.
	ending  bool
	pending []any
	// ended is set once the peer has stopped, and parting while its client is told
	// goodbye because the peer was given up. A successor waits for both.
	ended, parting bool
}

type parted struct {
	id    string
	child *peerChild
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
	case parted:
		p.parted(ctx, m)
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
	gateway, wrong := checkAddresses(p.plane.addresses.load())
	p.siblings, p.gateway = m, gateway
	if wrong {
		p.plane.discarded(ctx.Logger(), []string{"addresses of the gateway"})
	}
	if !p.plane.keys.load().consistent() {
		p.plane.discarded(ctx.Logger(), []string{"key pair"})
		p.plane.resetting.Store(true)
	}
	if p.plane.resetting.Load() {
		p.startReset(ctx)
		return
	}
	for _, id := range p.plane.store.rivals() {
		p.plane.discarded(ctx.Logger(), []string{"connection with the key or address of another client"}, "client_id", id)
		p.plane.store.put(id, p.plane.store.get(id).disconnected())
	}
	p.plane.disown(ctx.Logger())
	for _, id := range p.plane.store.ids() {
		p.ensure(ctx, id)
	}
	for _, id := range p.plane.inbox.ids() {
		c := p.ensure(ctx, id)
		for _, msg := range p.plane.inbox.all(id) {
			p.deliver(ctx, c, msg)
		}
	}
}

func (p *peers) fromPortal(ctx actorkit.Context, m messages.FromPortal) {
	if p.resetting != nil || m.Epoch != p.plane.keys.load().epoch {
		dropped(ctx, p.plane.Drops, drop.KeyReplaced, 1)
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
		dropped(ctx, p.plane.Drops, drop.EventUnknown, 1)
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
		dropped(ctx, p.plane.Drops, drop.ClientUnknown, 1)
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
		p.note(c.id, msg)
		p.deliver(ctx, c, msg)
		return true
	}
	if !givesAccess(msg) && len(c.pending) == 0 {
		return false
	}
	if len(c.pending) == pendingLimit {
		dropped(ctx, p.plane.Drops, drop.MailboxFull, 1)
		return true
	}
	p.note(c.id, msg)
	c.pending = append(c.pending, msg)
	return true
}

// note keeps what must not be lost when this actor fails.
func (p *peers) note(id string, msg any) {
	if concernsGrants(msg) {
		p.plane.inbox.push(id, msg)
	}
}

func (p *peers) deliver(ctx actorkit.Context, c *peerChild, msg any) {
	c.last = p.plane.peerMessages.Add(1)
	ctx.Send(c.pid, msg)
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
	c := &peerChild{id: id, last: p.plane.peerMessages.Add(1)}
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

// gaveUp drops a peer that cannot be kept alive; its client authorises again. The
// portal is not told: to it nothing has changed.
func (p *peers) gaveUp(ctx actorkit.Context, m *actorkit.ChildGaveUp) {
	c, ok := p.children[m.Name]
	if !ok || !actorkit.Same(c.pid, m.PID) {
		return
	}
	ctx.Logger().Error("client dropped, its actor kept failing", "client_id", m.Name, "error", m.Fault)
	c.ending = true
	client, ok := p.plane.Tunnel.Lookup(p.plane.store.get(m.Name).Client.PublicKey)
	p.plane.store.delete(m.Name)
	p.plane.inbox.delete(m.Name)
	if !ok {
		return
	}
	c.parting = true
	tunnel := p.plane.Tunnel
	actorkit.Go(ctx, func(work context.Context) any {
		// Best effort: the client finds out by itself if this gets lost.
		_ = tunnel.Goodbye(work, client)
		tunnel.Remove(client)
		return parted{m.Name, c}
	})
}

func (p *peers) terminated(ctx actorkit.Context, m *actorkit.Terminated) {
	id := path.Base(actorkit.Path(m.Who))
	c, ok := p.children[id]
	if !ok || !actorkit.Same(c.pid, m.Who) {
		return
	}
	c.ended = true
	p.succeed(ctx, id, c)
}

func (p *peers) parted(ctx actorkit.Context, m parted) {
	m.child.parting = false
	p.succeed(ctx, m.id, m.child)
}

// succeed starts the successor of a peer that is gone if somebody waits for it.
func (p *peers) succeed(ctx actorkit.Context, id string, c *peerChild) {
	if !c.ended || c.parting || p.children[id] != c {
		return
	}
	delete(p.children, id)
	p.partIfAlone(ctx)
	if len(c.pending) == 0 {
		return
	}
	next := p.ensure(ctx, id)
	for _, msg := range c.pending {
		p.deliver(ctx, next, msg)
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
