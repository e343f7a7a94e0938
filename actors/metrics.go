package actors

import (
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
)

// Observe gives the metrics of the gateway, whose process began at the given time,
// to the exporters of p until the function returned is called. All of them are read
// when an exporter asks, from counters that exist anyway, and no actor is asked.
func (t *Tree) Observe(p *telemetry.Providers, began time.Time) (stop func() error, err error) {
	return p.Observe(newMeter(t, p.Histograms, began).collect)
}

// meter collects the metrics.
type meter struct {
	tree       *Tree
	plane      *Plane
	histograms *telemetry.Histograms
	began      time.Time

	mu      sync.Mutex // one collection at a time
	tables  *ledger[*nat.Table]
	sockets *ledger[*transport.Sockets]
	states  []clientState // of the last collection, kept for its memory
}

func newMeter(t *Tree, h *telemetry.Histograms, began time.Time) *meter {
	return &meter{
		tree: t, plane: t.plane, histograms: h, began: began,
		tables:  newLedger(1, func(t *nat.Table, into []uint64) { into[0] += t.Stats().Opened }),
		sockets: newLedger(socketColumns, readSockets),
	}
}

func (m *meter) collect(o telemetry.Observation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	telemetry.ObserveProcess(o, m.began)
	actors := m.collectActors(o)
	m.collectSockets(o)
	m.collectClients(o, time.Now())
	m.collectRelays(o)
	m.collectPortal(o)
	m.histograms.Publish(append(actors, m.collectNames(o)...))
}

var handlerBounds = inSeconds(actorkit.DurationBounds[:])

// collectActors mentions every kind of the table, also those that never lived.
func (m *meter) collectActors(o telemetry.Observation) (durations []telemetry.Distribution) {
	stats := m.tree.system.Stats()
	kinds := make(map[string]actorkit.KindStats, len(Table))
	for kind := range Table {
		kinds[kind] = actorkit.KindStats{}
	}
	for _, k := range stats.Kinds {
		kinds[k.Kind] = k
	}
	for name, k := range kinds {
		kind := telemetry.AttrActorKind.String(name)
		o.Count(telemetry.ActorCount, uint64(k.Live), kind)
		o.Count(telemetry.ActorDepth, uint64(max(0, k.Pending)), kind)
		o.Count(telemetry.ActorMaxDepth, uint64(k.MaxPending), kind)
		o.Seconds(telemetry.ActorWait, k.Waited.Seconds(), kind)
		o.Seconds(telemetry.ActorMaxWait, k.MaxWait.Seconds(), kind)
		o.Count(telemetry.ActorFailures, k.Failures, kind)
		o.Count(telemetry.ActorRestarts, k.Restarts, kind)
		o.Count(telemetry.ActorStuck, k.Stuck, kind)
		o.Count(telemetry.ActorInjected, k.Injected, kind)
		o.Count(telemetry.ActorSuppressed, k.Suppressed, kind)
		o.Count(telemetry.ActorRefused, k.Refused, kind)
		durations = append(durations, telemetry.Distribution{
			Metric: telemetry.ActorDuration, Attributes: attribute.NewSet(kind),
			Bounds: handlerBounds, Counts: k.Durations[:], Sum: k.Busy.Seconds(),
		})
	}
	o.Count(telemetry.ActorDeadLetters, stats.DeadLetters)
	o.Count(telemetry.ActorGoroutines, uint64(stats.Goroutines))
	return durations
}

func (m *meter) collectRelays(o telemetry.Observation) {
	states := map[string]uint64{"allocated": 0, "usable": 0, "unusable": 0}
	for _, r := range m.plane.offers.load().Relays {
		switch {
		case len(r.Relayed) > 0:
			states["allocated"]++
		case r.Usable:
			states["usable"]++
		default:
			states["unusable"]++
		}
	}
	for state, n := range states {
		o.Count(telemetry.Relays, n, telemetry.AttrRelayState.String(state))
	}
	var addresses, channels uint64
	for _, leg := range m.plane.sinks.legs.Range {
		addresses++
		for range leg.(*relayLeg).paths.Range {
			channels++
		}
	}
	o.Count(telemetry.RelayedAddress, addresses)
	o.Count(telemetry.RelayChannels, channels)
}

func (m *meter) collectPortal(o telemetry.Observation) {
	joins, losses, apart := m.plane.link.history(time.Now())
	var joined uint64
	if m.plane.joined.Load() {
		joined = 1
	}
	o.Count(telemetry.PortalUp, joined)
	o.Count(telemetry.PortalJoins, joins)
	o.Count(telemetry.PortalHiccups, losses)
	o.Seconds(telemetry.PortalPartition, apart.Seconds())
}

var lookupBounds = inSeconds(dns.DurationBounds())

func (m *meter) collectNames(o telemetry.Observation) (durations []telemetry.Distribution) {
	figures := m.plane.DNS.Figures()
	for _, q := range figures.Queries {
		o.Count(telemetry.DNSQueries, q.Count, telemetry.AttrQuestion.String(q.Type), telemetry.AttrResponse.String(q.Code))
	}
	o.Count(telemetry.QueueLength, uint64(m.plane.DNS.Counts().UnderWay), telemetry.AttrQueueItem.String("dns_query"))
	add := func(metric telemetry.Metric, h *dns.Histogram, failure string, attributes ...attribute.KeyValue) {
		if failure != "" {
			attributes = append(attributes, telemetry.AttrError.String(failure))
		}
		durations = append(durations, telemetry.Distribution{
			Metric: metric, Attributes: attribute.NewSet(attributes...),
			Bounds: lookupBounds, Counts: h.Counts[:], Sum: h.Sum.Seconds(),
		})
	}
	for i := range figures.Attempts {
		a := &figures.Attempts[i]
		add(telemetry.DNSUpstream, &a.Durations, a.Failure, telemetry.AttrTransport.String(string(a.Network)))
	}
	for i := range figures.Lookups {
		l := &figures.Lookups[i]
		add(telemetry.DNSLookup, &l.Durations, lookupFailure(l.Outcome))
	}
	return durations
}

// lookupFailure is how an outcome is called as an error; "" for success.
func lookupFailure(o dns.Outcome) string {
	switch o {
	case dns.Found:
		return ""
	case dns.NoSuchName:
		return "no_such_name"
	case dns.NoData:
		return "no_data"
	case dns.TimedOut:
		return "timeout"
	}
	return "failed"
}

// collectDrops takes what was discarded in the tunnel of clients, by reason.
func (m *meter) collectDrops(o telemetry.Observation, ofClients *[drop.Count]uint64) {
	for r := drop.None + 1; r < drop.Count; r++ {
		n := m.plane.Drops.Load(r) + m.plane.Tunnel.Drops().Load(r) + ofClients[r]
		attributes := []attribute.KeyValue{telemetry.AttrError.String(r.String())}
		if d := directionOf(r); d != "" {
			attributes = append(attributes, telemetry.AttrDirection.String(d))
		}
		o.Count(telemetry.Dropped, n, attributes...)
	}
}

// directionOf tells the direction of what is discarded for r, "" if it has none or
// may have either. It follows the groups of the list, to which reasons are added.
func directionOf(r drop.Reason) string {
	switch {
	case r == drop.NoPath, r == drop.SendFailed:
		return telemetry.Transmit
	case r == drop.ThirdPartyPanic:
		return ""
	case r < drop.NotAPeer: // client to resource
		return telemetry.Receive
	case r < drop.DatagramOversize: // resource to client
		return telemetry.Transmit
	case r < drop.FrameMalformed: // datagrams on the sockets
		return telemetry.Receive
	case r == drop.InjectOverflow:
		return telemetry.Transmit
	case r == drop.TUNWrite:
		return telemetry.Receive
	}
	return ""
}

func inSeconds(bounds []time.Duration) []float64 {
	out := make([]float64, len(bounds))
	for i, b := range bounds {
		out[i] = b.Seconds()
	}
	return out
}
