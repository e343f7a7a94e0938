package actors

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// maxRelays bounds the relays known at a time; portals name two (portal §3.1).
const maxRelays = 64

// rebindDelay is the time between attempts to bind the sockets.
const rebindDelay = time.Second

// The portal is asked for relays at once when the last one is lost, and from then
// on after these times, doubled from one to the other, until there is an
// allocation: it may have nothing to offer but what has failed just before.
const (
	firstAskGap   = time.Second
	longestAskGap = time.Minute
)

type (
	rebindTimer struct{}
	rebindAgain struct{}
	askTimer    struct{}
	askAgain    struct{}
)

// transportActor owns the set of relays: one relay actor each, replaced when the
// portal changes its credentials or addresses (transport T-51). It tells peers
// what all of them offer.
//
// Supervisor: gateway. The sockets live in the plane; a restart starts the known
// relays again, which adopt their allocations, and binds the sockets that were
// being replaced.
type transportActor struct {
	plane    *Plane
	siblings messages.Siblings
	relays   []*relayEntry // in the order of their first appearance
	spawned  int
	timers   actorkit.Timers

	asked  time.Time     // when the portal was asked for relays last
	askGap time.Duration // until it may be asked again
}

type relayEntry struct {
	cfg    portal.DualStackRelay
	pid    actorkit.PID
	offer  messages.RelayChanged
	demand demandBudget
}

func newTransport(p *Plane) *transportActor { return &transportActor{plane: p} }

// Receive handles one message.
func (a *transportActor) Receive(ctx actorkit.Context) {
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		a.begin(ctx, a.plane.siblings.load())
	case messages.Siblings:
		a.begin(ctx, m)
	case messages.UpdateRelays:
		a.update(ctx, m)
	case messages.RelayChanged:
		a.changed(ctx, m)
	case messages.Rebind, rebindAgain:
		a.rebind(ctx)
	case messages.BindChannels:
		a.bind(ctx, m)
	case channelWanted:
		a.wanted(ctx, m, time.Now())
	case askAgain, messages.WantRelays:
		a.askIfNone(ctx)
	case *actorkit.ChildGaveUp:
		a.gaveUp(ctx, m)
	case *actorkit.Terminated:
		a.plane.allocations.retain(a.plane, a.known())
	}
}

func (a *transportActor) begin(ctx actorkit.Context, m messages.Siblings) {
	if a.siblings != (messages.Siblings{}) || m == (messages.Siblings{}) {
		return
	}
	a.siblings = m
	a.plane.sinks.demand.Store(newChannelDemand(ctx))
	known, wrong := checkRelays(a.plane.relays.load())
	if wrong {
		a.plane.discarded(ctx.Logger(), []string{"relay"})
	}
	offered := a.plane.offers.load()
	a.plane.allocations.retain(a.plane, known)
	for _, cfg := range known {
		a.add(ctx, cfg)
		a.expect(offered)
	}
	if a.plane.rebinding.Load() {
		a.rebind(ctx)
	} else if len(a.relays) > 0 {
		a.publish(ctx)
	}
}

// rebind replaces the sockets. The old ones go first, for the new ones to get
// the same ports; relays ask for new allocations on these.
func (a *transportActor) rebind(ctx actorkit.Context) {
	p := a.plane
	p.rebinding.Store(true)
	if err := p.Bind.Sockets().Close(); err != nil {
		ctx.Logger().Info("close sockets", "error", err)
	}
	sockets, err := p.host.sockets(p.sockets)
	if err != nil {
		ctx.Logger().Warn("no sockets, trying again", "error", err, "delay", rebindDelay)
		a.timers.After(ctx, rebindTimer{}, rebindDelay, rebindAgain{})
		return
	}
	p.Bind.Swap(sockets)
	p.rebinding.Store(false)
	a.timers.Cancel(rebindTimer{})
	known := a.relays
	a.relays = nil
	for _, r := range known {
		ctx.Stop(r.pid)
		a.add(ctx, r.cfg)
	}
	a.publish(ctx)
}

// update follows transport §4.6: forget, add or replace, probe the others. A
// relay that was replaced while the portal was away is never named again, so one
// that does not work is forgotten with the next full list, or when it takes the
// place of another.
func (a *transportActor) update(ctx actorkit.Context, m messages.UpdateRelays) {
	named := map[string]bool{}
	for _, cfg := range m.Connected {
		named[cfg.ID] = true
	}
	broken := func(r *relayEntry) bool { return !r.offer.Usable && !named[r.cfg.ID] }
	for _, id := range m.Disconnected {
		a.remove(ctx, id)
	}
	for _, r := range slices.Clone(a.relays) {
		if m.All && broken(r) {
			a.remove(ctx, r.cfg.ID)
		}
	}
	for _, cfg := range m.Connected {
		old := a.find(cfg.ID)
		if old != nil && old.cfg == cfg && old.offer.Usable {
			continue
		}
		a.remove(ctx, cfg.ID)
		// What comes from an address is for one relay only: another id at the same
		// address is that relay, started again.
		for _, r := range slices.Clone(a.relays) {
			if !named[r.cfg.ID] && (sameServer(r.cfg.V4, cfg.V4) || sameServer(r.cfg.V6, cfg.V6)) {
				a.remove(ctx, r.cfg.ID)
			}
		}
		if i := slices.IndexFunc(a.relays, broken); i >= 0 && len(a.relays) == maxRelays {
			a.remove(ctx, a.relays[i].cfg.ID)
		}
		if len(a.relays) == maxRelays {
			ctx.Logger().Warn("relay not used, there are too many", "relay_id", cfg.ID, "relays", len(a.relays))
			a.plane.Drops.Add(drop.ElementMalformed, 1)
			continue
		}
		a.add(ctx, cfg)
	}
	for _, r := range a.relays {
		if !named[r.cfg.ID] {
			ctx.Send(r.pid, messages.ProbeRelay{})
		}
	}
	a.remember()
	a.publish(ctx)
	ctx.Respond(messages.RelaysUpdated{Number: m.Number})
}

func sameServer(a, b netip.AddrPort) bool { return a.IsValid() && a == b }

func (a *transportActor) add(ctx actorkit.Context, cfg portal.DualStackRelay) {
	plane := a.plane
	a.spawned++
	// The name of a relay that is being replaced is taken until it has ended.
	name := fmt.Sprintf("%s.%d", cfg.ID, a.spawned)
	pid, err := actorkit.SpawnChild(ctx, KindRelay, name, func() actorkit.Actor { return plane.players.relay(plane, cfg) })
	if err != nil {
		panic(err) // the number makes the name unique: only a bug gets here
	}
	a.relays = append(a.relays, &relayEntry{cfg: cfg, pid: pid, offer: messages.RelayChanged{RelayID: cfg.ID, Usable: true}})
}

// expect takes what the relay that was added last offered before the restart of
// this actor, which is what it will report if it adopts its allocation: clients are
// not told meanwhile that it has none.
func (a *transportActor) expect(offered messages.RelaysChanged) {
	r := a.relays[len(a.relays)-1]
	for _, o := range offered.Relays {
		if o.RelayID == r.cfg.ID {
			r.offer = o
		}
	}
}

func (a *transportActor) remove(ctx actorkit.Context, id string) {
	if r := a.find(id); r != nil {
		a.plane.allocations.bar(r.cfg)
		ctx.Stop(r.pid)
		a.relays = slices.DeleteFunc(a.relays, func(o *relayEntry) bool { return o == r })
	}
}

// changed takes a relay's report; one of a relay that was replaced is late.
func (a *transportActor) changed(ctx actorkit.Context, m messages.RelayChanged) {
	r := a.find(m.RelayID)
	if r == nil || !actorkit.Same(m.Reporter, r.pid) {
		return
	}
	lost := r.offer.Usable && !m.Usable
	r.offer = m
	if len(m.Relayed) > 0 {
		a.askGap = firstAskGap
	}
	a.publish(ctx)
	if lost {
		a.askIfNone(ctx)
	}
}

func (a *transportActor) bind(ctx actorkit.Context, m messages.BindChannels) {
	if r := a.find(m.RelayID); r != nil {
		ctx.Send(r.pid, m)
	}
}

// gaveUp goes on without a relay whose actor cannot be kept alive.
func (a *transportActor) gaveUp(ctx actorkit.Context, m *actorkit.ChildGaveUp) {
	n := len(a.relays)
	a.relays = slices.DeleteFunc(a.relays, func(o *relayEntry) bool { return actorkit.Same(o.pid, m.PID) })
	if len(a.relays) == n {
		return // it was replaced before
	}
	a.remember()
	a.publish(ctx)
	a.askIfNone(ctx)
}

// askIfNone asks the portal for relays after the last usable one was lost
// (portal §4.4), or as soon as it may be asked again.
func (a *transportActor) askIfNone(ctx actorkit.Context) {
	if slices.ContainsFunc(a.relays, func(r *relayEntry) bool { return r.offer.Usable }) {
		return
	}
	now := time.Now()
	if wait := a.askGap - now.Sub(a.asked); wait > 0 {
		a.timers.After(ctx, askTimer{}, wait, askAgain{})
		return
	}
	a.asked, a.askGap = now, min(max(2*a.askGap, firstAskGap), longestAskGap)
	ctx.Logger().Warn("no relay left, asking the portal")
	ctx.Send(a.siblings.Portal, messages.SendToPortal{Message: portal.NoRelays{}})
}

func (a *transportActor) find(id string) *relayEntry {
	i := slices.IndexFunc(a.relays, func(r *relayEntry) bool { return r.cfg.ID == id })
	if i < 0 {
		return nil
	}
	return a.relays[i]
}

// publish tells all peers what the relays offer, those that start later too.
func (a *transportActor) publish(ctx actorkit.Context) {
	m := messages.RelaysChanged{
		Version: a.plane.offers.load().Version + 1,
		Relays:  make([]messages.RelayChanged, len(a.relays)),
	}
	up := false
	for i, r := range a.relays {
		m.Relays[i] = r.offer
		up = up || len(r.offer.Relayed) > 0
	}
	a.plane.offers.store(m)
	a.plane.relayUp.Store(up)
	ctx.Send(a.siblings.Peers, m)
}

func (a *transportActor) remember() { a.plane.relays.store(a.known()) }

func (a *transportActor) known() []portal.DualStackRelay {
	cfgs := make([]portal.DualStackRelay, len(a.relays))
	for i, r := range a.relays {
		cfgs[i] = r.cfg
	}
	return cfgs
}
