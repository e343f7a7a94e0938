package actors

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/internal/transport/turn"
	"firezone-gateway/messages"
)

// receivedInterval is how often channels are looked at for incoming data, which
// decides about their renewal (transport T-43: due after five of ten minutes).
const receivedInterval = 30 * time.Second

type relayTimer uint8

const (
	machineTimer relayTimer = iota
	receivedTimer
)

type (
	machineTick  struct{}
	receivedTick struct{}
)

// Untraced: retransmissions and keepalives are not worth a span.
func (machineTick) Untraced() {}

// Untraced: see machineTick.
func (receivedTick) Untraced() {}

// relay owns one TURN allocation, shared by all clients: it feeds the machine
// with datagrams and time, and publishes its channels to the packet path.
//
// Supervisor: transport. A restart allocates again; the server answers that with
// 437, which the machine knows how to resolve.
type relay struct {
	plane  *Plane
	cfg    portal.DualStackRelay
	timers actorkit.Timers

	machine *turn.Client
	wire    *transport.Relay
	gate    *actorkit.Gate
	state   messages.RelayChanged
	legs    []*relayLeg
	bound   map[uint16]netip.AddrPort
}

func newRelay(p *Plane, cfg portal.DualStackRelay) *relay {
	return &relay{
		plane: p, cfg: cfg, gate: actorkit.NewGate(relayLimit),
		bound: map[uint16]netip.AddrPort{},
	}
}

// Receive handles one message.
func (r *relay) Receive(ctx actorkit.Context) {
	now := time.Now()
	switch m := ctx.Message().(type) {
	case *actorkit.Started:
		r.start(ctx, now)
	case messages.FromRelay:
		r.machine.HandleDatagram(m.From, m.Local.Addr(), m.Local.Port(), m.Datagram, now)
	case messages.BindChannels:
		for _, peer := range m.Peers {
			r.machine.BindChannel(peer, now)
		}
	case messages.ProbeRelay:
		r.machine.Probe(now)
	case machineTick:
		r.machine.HandleTimeout(now)
	case receivedTick:
		r.markReceived(now)
	case *actorkit.Stopping, *actorkit.Restarting:
		r.release()
		return
	default:
		return
	}
	r.step(ctx, now)
}

func (r *relay) start(ctx actorkit.Context, now time.Time) {
	var servers []netip.AddrPort
	sockets := r.plane.Bind.Sockets()
	// A family that we have no socket for would only time out.
	if r.cfg.V4.IsValid() && sockets.HasV4() {
		servers = append(servers, r.cfg.V4)
	} else {
		r.cfg.V4 = netip.AddrPort{}
	}
	if r.cfg.V6.IsValid() && sockets.HasV6() {
		servers = append(servers, r.cfg.V6)
	} else {
		r.cfg.V6 = netip.AddrPort{}
	}
	r.machine = turn.New(turn.Config{
		ID: r.cfg.ID, V4: r.cfg.V4, V6: r.cfg.V6, Username: r.cfg.Username, Password: r.cfg.Password,
		Software: "firezone-gateway", Random: func(b []byte) { _, _ = rand.Read(b) },
	}, now)
	r.state = messages.RelayChanged{RelayID: r.cfg.ID, Reporter: ctx.Self(), Usable: len(servers) > 0}
	if len(servers) > 0 {
		r.wire = sockets.AddRelay(servers[0], servers[1:]...)
		r.plane.sinks.relays.Store(r.wire, &relaySink{system: ctx.System(), pid: ctx.Self(), gate: r.gate})
	}
	r.timers.Every(ctx, receivedTimer, receivedInterval, receivedTick{})
	r.publish(ctx)
}

// release takes everything of this incarnation off the packet path.
func (r *relay) release() {
	r.dropLegs()
	if r.wire != nil {
		r.plane.sinks.relays.Delete(r.wire)
		r.plane.Bind.Sockets().RemoveRelay(r.wire)
		r.wire = nil
	}
}

// step sends what the machine wants sent and handles what it reports.
func (r *relay) step(ctx actorkit.Context, now time.Time) {
	sockets := r.plane.Bind.Sockets()
	for {
		t, ok := r.machine.PollTransmit()
		if !ok {
			break
		}
		if err := sockets.SendToServer(t.Data, t.To); err != nil {
			ctx.Logger().Debug("send to relay", "relay_id", r.cfg.ID, "error", err)
		}
	}
	changed := false
	for {
		e, ok := r.machine.PollEvent()
		if !ok {
			break
		}
		changed = r.event(ctx, e) || changed
	}
	if changed {
		r.publish(ctx)
	}
	if at, ok := r.machine.NextTimeout(); ok {
		r.timers.After(ctx, machineTimer, max(0, at.Sub(now)), machineTick{})
	} else {
		r.timers.Cancel(machineTimer)
	}
}

// event applies e and reports whether it changes what the relay offers.
func (r *relay) event(ctx actorkit.Context, e turn.Event) (changed bool) {
	log := ctx.Logger().With("relay_id", r.cfg.ID)
	switch e := e.(type) {
	case turn.ServerSelected:
		r.wire.UseServer(e.Addr)
		r.state.Server = e.Addr
		return true
	case turn.HostCandidate:
		return r.share(ice.Candidate{Type: ice.Host, Addr: e.Addr, Base: e.Addr})
	case turn.ServerReflexive:
		return r.share(ice.Candidate{Type: ice.ServerReflexive, Addr: e.Addr, Base: e.Base})
	case turn.Allocated:
		r.state.Usable = true
		r.setRelayed(e.V4, e.V6)
		log.Info("relay allocated", "relayed", r.state.Relayed, "lifetime", e.Lifetime)
		return true
	case turn.AllocationLost:
		log.Warn("relay allocation lost", "reason", e.Reason)
		r.dropLegs()
		return true
	case turn.ChannelBound:
		r.channelBound(e)
	case turn.ChannelLost:
		r.channelLost(e)
	case turn.Suspended:
		log.Warn("relay refuses an allocation", "code", e.Code)
		r.state.Usable = false
		return true
	case turn.Failed:
		log.Warn("relay given up", "reason", e.Reason)
		r.state.Usable = false
		return true
	}
	return false
}

// share offers c instead of what was offered of its type and family.
func (r *relay) share(c ice.Candidate) bool {
	if slices.ContainsFunc(r.state.Shared, func(s ice.Candidate) bool { return s.Key() == c.Key() }) {
		return false
	}
	kept := slices.DeleteFunc(slices.Clone(r.state.Shared), func(s ice.Candidate) bool {
		return s.Type == c.Type && s.Addr.Addr().Is4() == c.Addr.Addr().Is4()
	})
	r.state.Shared = append(kept, c)
	return true
}

func (r *relay) setRelayed(addrs ...netip.AddrPort) {
	r.dropLegs()
	for _, a := range addrs {
		if a.IsValid() {
			leg := &relayLeg{relayed: a}
			r.legs = append(r.legs, leg)
			r.state.Relayed = append(r.state.Relayed, a)
			r.plane.sinks.legs.Store(a, leg)
		}
	}
}

// dropLegs forgets the allocation with its channels.
func (r *relay) dropLegs() {
	for number := range r.bound {
		r.wire.ClearChannel(number)
	}
	clear(r.bound)
	for _, leg := range r.legs {
		// The address may be that of another relay's new allocation already.
		r.plane.sinks.legs.CompareAndDelete(leg.relayed, leg)
	}
	r.legs, r.state.Relayed = nil, nil
}

func (r *relay) channelBound(e turn.ChannelBound) {
	path := r.wire.SetChannel(e.Number, e.Peer, e.Relayed)
	r.bound[e.Number] = e.Peer
	if leg := r.leg(e.Peer); leg != nil && path != nil {
		leg.paths.Store(e.Peer, path)
	}
}

func (r *relay) channelLost(e turn.ChannelLost) {
	r.wire.ClearChannel(e.Number)
	delete(r.bound, e.Number)
	if leg := r.leg(e.Peer); leg != nil {
		leg.paths.Delete(e.Peer)
	}
}

// leg returns the relayed address that peer is reached from, which is that of
// its family.
func (r *relay) leg(peer netip.AddrPort) *relayLeg {
	for _, leg := range r.legs {
		if leg.relayed.Addr().Is4() == peer.Addr().Is4() {
			return leg
		}
	}
	return nil
}

func (r *relay) markReceived(now time.Time) {
	for number := range r.bound {
		if p := r.wire.Path(number); p != nil && p.TakeReceived() {
			r.machine.MarkReceived(number, now)
		}
	}
}

func (r *relay) publish(ctx actorkit.Context) { ctx.Send(ctx.Parent(), r.state) }
