package telemetry

import (
	"slices"

	"go.opentelemetry.io/otel/attribute"
)

// MeterName and TracerName are the scopes of all instruments and spans. The
// meter's is the one existing dashboards know (dataplane §8.7).
const (
	MeterName  = "connlib"
	TracerName = "firezone-gateway"
)

// Attributes of spans and metrics. Values of a metric's attribute come from a
// closed set, except for AttrActorPath and the identifiers, which are for
// spans only.
const (
	AttrActorKind   = attribute.Key("actor.kind")             // row of the supervision table
	AttrActorPath   = attribute.Key("actor.path")             // path in the tree
	AttrMessageType = attribute.Key("messaging.message.type") // short type name

	AttrClientID   = attribute.Key("client.id")   // spans only
	AttrResourceID = attribute.Key("resource.id") // spans only
	AttrRelayID    = attribute.Key("relay.id")    // spans only

	AttrDirection  = attribute.Key("network.io.direction")     // receive, transmit
	AttrNetwork    = attribute.Key("network.type")             // ipv4, ipv6
	AttrTransport  = attribute.Key("network.transport")        // udp
	AttrProtocol   = attribute.Key("network.protocol.name")    // stun, wireguard, unknown; -over-turn
	AttrError      = attribute.Key("error.type")               // a drop reason, or a short error name
	AttrErrorCode  = attribute.Key("error.code")               // errno
	AttrDevice     = attribute.Key("system.device")            // tun
	AttrQueueItem  = attribute.Key("queue.item")               // what the queue holds
	AttrSocketPair = attribute.Key("connection.socket")        // PeerToPeer, PeerToRelay
	AttrQuestion   = attribute.Key("dns.question.type")        // A, AAAA, …
	AttrResponse   = attribute.Key("dns.response.code")        // NOERROR, …
	AttrBufferPool = attribute.Key("system.buffer.pool.name")  // which pool
	AttrPhase      = attribute.Key("portal.connection.status") // connecting, joined, waiting
)

// Kind is the kind of instrument of a Metric.
type Kind uint8

// The kinds.
const (
	Counter Kind = iota + 1
	Gauge
	Histogram
)

// Metric is the name of an instrument with what is needed to create it. Units
// are UCUM codes.
type Metric struct {
	Name, Unit, Description string
	Kind                    Kind
	Buckets                 []float64 // upper bounds of a histogram, in Unit
}

// Actors; all by AttrActorKind but the last.
var (
	ActorMessages    = counter("actor.messages", "{message}", "Messages handled by actors.")
	ActorBusy        = counter("actor.busy", "s", "Time actors spent in their handlers.")
	ActorWaited      = counter("actor.waited", "s", "Time handled messages had spent in mailboxes.")
	ActorFailures    = counter("actor.failures", "{failure}", "Panics of actors.")
	ActorRestarts    = counter("actor.restarts", "{restart}", "Restarts of actors.")
	ActorCount       = gauge("actor.count", "{actor}", "Actors that live.")
	ActorPending     = gauge("actor.pending", "{message}", "Messages that wait in mailboxes.")
	ActorDeadLetters = counter("actor.dead_letters", "{message}", "Messages that had no receiver.")
)

// Packets and datagrams, by AttrDirection.
var (
	Packets     = counter("connlib.network.packets", "{packet}", "Packets and datagrams that passed.")
	Bytes       = counter("connlib.network.io", "By", "Bytes of the packets and datagrams that passed.")
	Dropped     = counter("connlib.network.dropped", "{packet}", "What was discarded, by AttrError, a reason of package drop.")
	Errors      = counter("connlib.network.errors", "{error}", "Errors of sockets and devices, by AttrError and AttrErrorCode.")
	QueueLength = gauge("connlib.queue.length", "{item}", "Items in a queue, by AttrQueueItem.")
	BatchSize   = histogram("connlib.network.packets.batch_count", "{packet}", "Packets moved by one system call.",
		1, 2, 4, 8, 16, 32, 64, 128)
)

// Sessions.
var (
	Connections = gauge("tunnel.connection.count", "{connection}", "Clients with a WireGuard session, by AttrSocketPair.")
	Peers       = gauge("tunnel.peer.count", "{peer}", "Clients with at least one grant.")
	Grants      = gauge("tunnel.grant.count", "{grant}", "Resources granted to clients.")
	NATSessions = gauge("tunnel.nat.session.count", "{session}", "Entries of the NAT tables.")
	Relays      = gauge("tunnel.relay.count", "{relay}", "Relays with an allocation.")
)

// Portal and names.
var (
	PortalHiccups = counter("portal.connection.hiccup", "{hiccup}", "Losses of the connection to the portal.")
	PortalUp      = gauge("portal.connection.joined", "{connection}", "1 while the portal's channel is joined.")
	DNSQueries    = counter("dns.query.count", "{query}", "Queries that clients sent to the gateway, by AttrResponse.")
	DNSLookup     = histogram("dns.lookup.duration", "s", "Look-ups of DNS resources, by AttrQuestion and AttrResponse.",
		.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)
)

// Metrics lists every Metric, in order of declaration.
func Metrics() []Metric { return slices.Clone(declared) }

var declared []Metric

func counter(name, unit, description string) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: Counter})
}

func gauge(name, unit, description string) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: Gauge})
}

func histogram(name, unit, description string, buckets ...float64) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: Histogram, Buckets: buckets})
}

func declare(m Metric) Metric {
	declared = append(declared, m)
	return m
}
