package actors

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// Bounds of channels that are bound on demand, for each relay. The channels of
// all candidates are asked for as they arrive; what is left is what the relay
// refused then, or has let expire. An agent also tries pairs that nobody ever
// asked a channel for, and a relay has 4096 numbers that stay taken for a quarter
// of an hour, so these must not eat them up.
const (
	demandBurst    = 64
	demandInterval = time.Second // for each one after the burst
	// demandDelay is how long a channel has to be missing: that of a candidate
	// which has just arrived is on its way.
	demandDelay = time.Second
	// demandRepeat is the time between two requests for the same peer; a refused
	// one is not tried earlier anyway.
	demandRepeat = 5 * time.Second
	// demandPeers bounds the peers that are remembered; those above it are asked
	// for when others are not wanted any more.
	demandPeers = 256
	// demandLimit bounds the demands that wait for the transport actor, those of
	// all relays together.
	demandLimit = 64
)

// channelWanted says that a datagram from a relayed address to peer was dropped
// because there is no channel (transport §4.3).
type channelWanted struct{ relayed, peer netip.AddrPort }

// Untraced: checks are not worth a span.
func (channelWanted) Untraced() {}

// channelDemand is the way from senders to the transport actor.
type channelDemand struct {
	system *actorkit.System
	pid    actorkit.PID
	gate   *actorkit.Gate
}

func newChannelDemand(ctx actorkit.Context) *channelDemand {
	return &channelDemand{ctx.System(), ctx.Self(), actorkit.NewGate(demandLimit)}
}

// ask never waits. What finds no place is asked for with a later datagram; the
// sender has counted this one already. d may be nil.
func (d *channelDemand) ask(relayed, peer netip.AddrPort) {
	if d != nil {
		d.gate.TrySend(d.system, d.pid, channelWanted{relayed, peer})
	}
}

func (a *transportActor) wanted(ctx actorkit.Context, m channelWanted, now time.Time) {
	i := slices.IndexFunc(a.relays, func(r *relayEntry) bool { return slices.Contains(r.offer.Relayed, m.relayed) })
	if i < 0 || !a.relays[i].demand.admit(m.peer, now) {
		return
	}
	r := a.relays[i]
	ctx.Send(r.pid, messages.BindChannels{RelayID: r.cfg.ID, Peers: []netip.AddrPort{m.peer}})
}

// demandBudget limits the demands of one relay. The zero value is full.
type demandBudget struct {
	spent  int                          // of the burst
	since  time.Time                    // when spent was right
	due    map[netip.AddrPort]time.Time // from when on a peer may be asked for
	tidied time.Time                    // when due was cleared of old entries
}

// admit reports whether peer, which is wanted now, is to be asked for, and if so
// counts it.
func (b *demandBudget) admit(peer netip.AddrPort, now time.Time) bool {
	switch due, known := b.due[peer]; {
	case !known:
		b.note(peer, now)
		return false
	case now.Before(due):
		return false
	}
	regained := int(now.Sub(b.since) / demandInterval)
	if b.spent = max(0, b.spent-regained); b.spent == 0 {
		b.since = now
	} else {
		b.since = b.since.Add(time.Duration(regained) * demandInterval)
	}
	if b.spent == demandBurst {
		return false
	}
	b.spent++
	b.due[peer] = now.Add(demandRepeat)
	return true
}

// note remembers a peer that is wanted for the first time.
func (b *demandBudget) note(peer netip.AddrPort, now time.Time) {
	if b.due == nil {
		b.due = make(map[netip.AddrPort]time.Time)
	}
	if len(b.due) == demandPeers && now.Sub(b.tidied) >= demandDelay {
		b.tidied = now
		maps.DeleteFunc(b.due, func(_ netip.AddrPort, due time.Time) bool { return now.Sub(due) >= demandRepeat })
	}
	if len(b.due) < demandPeers {
		b.due[peer] = now.Add(demandDelay)
	}
}
