package actors

import (
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

func (p *peer) addCandidates(ctx actorkit.Context, m messages.AddCandidates) {
	if p.conn == nil {
		dropped(ctx, p.Drops, drop.ClientUnknown, 1)
		return
	}
	p.state.Remote = p.conn.addRemote(p.state.Remote, m.Candidates)
	p.arrivals.candidates(p.id, "received", len(m.Candidates))
	if len(p.state.Remote) > 0 {
		p.timers.Cancel(candidateTimer)
	}
	p.bindChannels(ctx)
}

func (p *peer) removeCandidates(ctx actorkit.Context, m messages.RemoveCandidates) {
	if p.conn == nil {
		dropped(ctx, p.Drops, drop.ClientUnknown, 1)
		return
	}
	p.state.Remote = p.conn.removeRemote(p.state.Remote, m.Candidates)
}

func (p *peer) armCandidateTimer(ctx actorkit.Context) {
	if p.conn != nil && len(p.state.Remote) == 0 {
		p.timers.After(ctx, candidateTimer, candidateTimeout, candidatesMissed{})
	}
}

func (p *peer) candidatesMissed(ctx actorkit.Context) {
	ctx.Logger().Info("connection dropped, the client sent no candidate", "client_id", p.id)
	p.disconnect()
}

func (p *peer) repeatCandidates(ctx actorkit.Context) {
	if p.conn != nil && !p.conn.heard() {
		p.signal(ctx, p.nextOffer(true))
	}
}

func (p *peer) relaysChanged(ctx actorkit.Context, m messages.RelaysChanged) {
	if m.Version <= p.relays.Version {
		return // the start saw it, or a later one
	}
	p.relays = m
	if p.conn != nil {
		p.signal(ctx, p.nextOffer(false))
	}
}

// nextOffer brings what the client knows of us up to date in the state: all
// local candidates after an authorization, else what changed since (transport
// §2.5). A connection whose relay is gone takes another one (T-53).
func (p *peer) nextOffer(all bool) offer {
	if !usableRelay(p.relays, p.state.RelayID) {
		p.state.RelayID, _ = pickRelay(p.relays, p.id)
	}
	o := newOffer(p.state.Signalled, localCandidates(p.relays, p.state.RelayID), all)
	p.state.Signalled = o.known
	return o
}

// signal carries out what nextOffer decided.
func (p *peer) signal(ctx actorkit.Context, o offer) {
	if p.conn == nil {
		return
	}
	p.conn.agent.SetLocals(o.known)
	p.bindChannels(ctx)
	ufrag := p.state.GatewayICE.Username
	if len(o.gone) > 0 {
		ctx.Send(p.portal, messages.SendToPortal{Message: portal.BroadcastInvalidatedICECandidates{
			ClientIDs: []string{p.id}, Candidates: marshal(o.gone, ufrag)}})
	}
	if len(o.fresh) > 0 {
		p.arrivals.candidates(p.id, "sent", len(o.fresh))
		ctx.Send(p.portal, messages.SendToPortal{Message: portal.BroadcastICECandidates{
			ClientIDs: []string{p.id}, Candidates: marshal(o.fresh, ufrag)}})
	}
}

// bindChannels asks for the channels of the connection; those that exist stay.
func (p *peer) bindChannels(ctx actorkit.Context) {
	if peers := channelPeers(p.state.Remote); p.state.RelayID != "" && len(peers) > 0 {
		ctx.Send(p.transport, messages.BindChannels{RelayID: p.state.RelayID, Peers: peers})
	}
}

// callbacks run on the packet path: they only pass messages on, a bounded number
// of them.
func (p *peer) callbacks(ctx actorkit.Context) tunnel.Callbacks {
	self, system, key := ctx.Self(), ctx.System(), p.state.Client.PublicKey
	control, rate, changes, plane := p.control, p.rate, p.changes, p.Plane
	arrivals, id := p.arrivals, p.id
	changed := func() { changes.TrySend(system, self, messages.ClientChanged{}) }
	return tunnel.Callbacks{
		Control: func(pkt []byte) bool {
			if !rate.take(time.Now().UnixNano()) {
				plane.controlLimited(key)
				return true
			}
			return control.TrySend(system, self, messages.ControlReceived{Key: key, Packet: append([]byte(nil), pkt...)})
		},
		Session: func(s tunnel.Session) { arrivals.changed(id, s); changed() },
		Path:    func(path *transport.Path) { arrivals.heard(id, path); changed() },
	}
}

// controlLimited counts a control packet that comes too fast.
func (p *Plane) controlLimited(key portal.PublicKey) {
	if client, ok := p.Tunnel.Lookup(key); ok {
		client.Drops().Add(drop.ControlLimited, 1)
	}
}

// clientChanged drops a connection that is dead: the keys of its session were
// wiped after nine minutes without a handshake, or its agent heard nothing for
// longer than that and there is no session either (transport §6 rows 13 and 19).
// The grants stay (T-61).
func (p *peer) clientChanged(ctx actorkit.Context) {
	if p.conn == nil {
		return
	}
	client, session := p.conn.client, p.conn.client.Session()
	ctx.Logger().Debug("client changed", "client_id", p.id, "session", session, "path", client.Path())
	failed := p.conn.failed.Load()
	switch {
	case session == tunnel.SessionNone && client.Counters().LastHandshake.Load() != 0, failed && session != tunnel.SessionEstablished:
		ctx.Logger().Info("connection dropped, the client is gone", "client_id", p.id)
		p.disconnect()
	}
}

// controlReceived handles one in-tunnel control packet (dataplane §3.1).
func (p *peer) controlReceived(ctx actorkit.Context, m messages.ControlReceived) {
	kind, body, ok := packet.ParseControl(m.Packet)
	if !ok || p.conn == nil || m.Key != p.state.Client.PublicKey {
		p.Drops.Add(drop.ControlUnknown, 1)
		return
	}
	switch kind {
	case packet.Goodbye:
		p.goodbyeReceived(ctx)
	case packet.AssignedIPs:
		p.arrivals.follow(ctx, p.id)
		p.assignedIPs(ctx, body)
	default:
		p.Drops.Add(drop.ControlUnknown, 1)
	}
}

// goodbyeReceived drops connection and grants without an answer (T-60).
func (p *peer) goodbyeReceived(ctx actorkit.Context) {
	ctx.Logger().Info("client said goodbye", "client_id", p.id)
	p.timers.CancelAll()
	p.disconnect()
	p.dropNAT(ctx)
	p.state = clientState{}
	p.reportIfEmpty(ctx, 0)
}
