package actors

import (
	"crypto/rand"
	"net/netip"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/portal"
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
// Supervisor: transport. A restart adopts the allocation. Where that is not
// possible it allocates again; the server answers that with 437, which the machine
// knows how to resolve.
type relay struct {
	plane  *Plane
	cfg    portal.DualStackRelay
	timers actorkit.Timers
	gate   *actorkit.Gate

	*allocation // from Started to the end
}

func newRelay(p *Plane, cfg portal.DualStackRelay) *relay {
	return &relay{plane: p, cfg: cfg, gate: actorkit.NewGate(relayLimit)}
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
			if r.machine.BindChannel(peer, now) && !r.reaches(peer) {
				r.binding.begin(ctx, r.cfg.ID, peer, now)
			}
		}
	case messages.ProbeRelay:
		r.machine.Probe(now)
	case machineTick:
		r.machine.HandleTimeout(now)
	case receivedTick:
		r.markReceived(now)
	case *actorkit.Stopping, *actorkit.Restarting:
		if r.allocation != nil {
			r.plane.allocations.park(r.plane, r.allocation)
			r.allocation = nil
		}
		return
	default:
		return
	}
	r.step(ctx, now)
}

func (r *relay) start(ctx actorkit.Context, now time.Time) {
	r.allocation = r.plane.allocations.adopt(r.plane, r.cfg)
	if r.allocation == nil {
		r.allocation = r.begin(now)
	} else {
		ctx.Logger().Info("relay allocation adopted", "relay_id", r.cfg.ID, "relayed", r.state.Relayed, "channels", len(r.bound))
	}
	r.state.Reporter = ctx.Self()
	if r.wire != nil {
		r.plane.sinks.relays.Store(r.wire, &relaySink{system: ctx.System(), pid: ctx.Self(), gate: r.gate})
	}
	r.timers.Every(ctx, receivedTimer, receivedInterval, receivedTick{})
	r.publish(ctx)
}

// begin makes an allocation that asks the server for one.
func (r *relay) begin(now time.Time) *allocation {
	a := &allocation{cfg: r.cfg, sockets: r.plane.Bind.Sockets(), bound: map[uint16]netip.AddrPort{}}
	v4, v6 := r.cfg.V4, r.cfg.V6
	var servers []netip.AddrPort
	// A family that we have no socket for would only time out.
	if v4.IsValid() && a.sockets.HasV4() {
		servers = append(servers, v4)
	} else {
		v4 = netip.AddrPort{}
	}
	if v6.IsValid() && a.sockets.HasV6() {
		servers = append(servers, v6)
	} else {
		v6 = netip.AddrPort{}
	}
	a.machine = turn.New(turn.Config{
		ID: r.cfg.ID, V4: v4, V6: v6, Username: r.cfg.Username, Password: r.cfg.Password,
		Software: "firezone-gateway", Random: func(b []byte) { _, _ = rand.Read(b) },
	}, now)
	a.state = messages.RelayChanged{RelayID: r.cfg.ID, Usable: len(servers) > 0}
	if len(servers) > 0 {
		a.wire = a.sockets.AddRelay(servers[0], servers[1:]...)
	}
	return a
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
		r.setRelayed(r.plane, e.V4, e.V6)
		log.Info("relay allocated", "relayed", r.state.Relayed, "lifetime", e.Lifetime)
		return true
	case turn.AllocationLost:
		log.Warn("relay allocation lost", "reason", e.Reason)
		r.binding.drop("allocation lost")
		r.dropLegs(r.plane)
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

func (r *relay) markReceived(now time.Time) {
	for number := range r.bound {
		if p := r.wire.Path(number); p != nil && p.TakeReceived() {
			r.machine.MarkReceived(number, now)
		}
	}
}

func (r *relay) publish(ctx actorkit.Context) { ctx.Send(ctx.Parent(), r.state) }
