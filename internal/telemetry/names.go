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

// Attributes of spans.
const (
	AttrActorPath   = attribute.Key("actor.path")             // path in the tree
	AttrMessageType = attribute.Key("messaging.message.type") // short type name
	AttrClientID    = attribute.Key("client.id")
	AttrResourceID  = attribute.Key("resource.id")
	AttrRelayID     = attribute.Key("relay.id")
)

// AttrActorKind is the row of the supervision table, of spans and metrics.
const AttrActorKind = attribute.Key("actor.kind")

// Attributes of metrics. Their values come from closed sets: nothing that a client
// or an operator may invent is a label.
const (
	AttrDirection    = attribute.Key("network.io.direction") // Receive, Transmit
	AttrNetwork      = attribute.Key("network.type")         // ipv4, ipv6
	AttrTransport    = attribute.Key("network.transport")    // udp, tcp
	AttrError        = attribute.Key("error.type")           // a drop reason, or a short error name
	AttrQueueItem    = attribute.Key("queue.item")           // what the queue holds
	AttrSession      = attribute.Key("tunnel.session.state") // absent, none, handshake, established, expired
	AttrSocketPair   = attribute.Key("connection.socket")    // PeerToPeer, PeerToRelay, RelayToPeer, RelayToRelay
	AttrRelayState   = attribute.Key("tunnel.relay.state")   // allocated, usable, unusable
	AttrQuestion     = attribute.Key("dns.question.type")    // A, AAAA, …, other
	AttrResponse     = attribute.Key("dns.response.code")    // NOERROR, …, OTHER
	AttrCPUMode      = attribute.Key("cpu.mode")             // user, system
	AttrGoMemoryType = attribute.Key("go.memory.type")       // stack, other
)

// Values of AttrDirection, as the gateway sees it: what comes from clients is
// received.
const (
	Receive  = "receive"
	Transmit = "transmit"
)

// Kind is the kind of instrument of a Metric.
type Kind uint8

// The kinds. Values of an UpDown add up over its attributes, those of a Gauge do
// not.
const (
	Counter Kind = iota + 1
	UpDown
	Gauge
	Histogram
)

// Metric is the name of an instrument with what is needed to create it. Units
// are UCUM codes.
type Metric struct {
	Name, Unit, Description string
	Kind                    Kind
}

// Actors; all by AttrActorKind but the last two.
var (
	ActorCount       = upDown("actor.count", "{actor}", "Actors that live.")
	ActorDuration    = histogram("actor.handler.duration", "s", "Time that handling a message took.")
	ActorDepth       = upDown("actor.mailbox.depth", "{message}", "Messages that wait in mailboxes.")
	ActorMaxDepth    = gauge("actor.mailbox.max_depth", "{message}", "Largest number of messages that ever waited in one mailbox.")
	ActorWait        = counter("actor.mailbox.wait", "s", "Time that handled messages had spent in mailboxes.")
	ActorMaxWait     = gauge("actor.mailbox.max_wait", "s", "Longest time that a message ever waited in a mailbox.")
	ActorFailures    = counter("actor.failures", "{failure}", "Failures of actors: panics, and being stuck.")
	ActorRestarts    = counter("actor.restarts", "{restart}", "Restarts of actors.")
	ActorStuck       = counter("actor.stuck", "{failure}", "Actors that were replaced because handling a message did not end.")
	ActorInjected    = counter("actor.injected", "{fault}", "Faults that were injected on demand.")
	ActorSuppressed  = counter("actor.suppressed", "{message}", "What handlers tried to send after they had been replaced.")
	ActorRefused     = counter("actor.refused", "{message}", "Messages that found no place among those that may wait for an actor.")
	ActorDeadLetters = counter("actor.dead_letters", "{message}", "Messages that had no receiver.")
	ActorGoroutines  = upDown("actor.goroutines", "{goroutine}", "Goroutines in which actors wait for something.")
)

// Datagrams of the UDP sockets, all with AttrTransport and AttrNetwork, and what
// was discarded anywhere.
var (
	Packets       = counter("connlib.network.packets", "{packet}", "Datagrams that passed the UDP sockets, by AttrDirection.")
	Bytes         = counter("connlib.network.io", "By", "Payload of the datagrams that passed the UDP sockets, by AttrDirection.")
	Batches       = counter("connlib.network.batches", "{call}", "System calls that moved datagrams, by AttrDirection.")
	Sockets       = upDown("connlib.socket.count", "{socket}", "UDP sockets.")
	SocketOffload = upDown("connlib.socket.offload", "{socket}", "UDP sockets whose datagrams the kernel splits or joins (GSO, GRO), by AttrDirection.")
	Dropped       = counter("connlib.network.dropped", "{packet}", "What was discarded, by AttrError, a reason of package drop, and where it has one AttrDirection.")
	QueueLength   = upDown("connlib.queue.length", "{item}", "Items in a queue, by AttrQueueItem.")
)

// Tunnel.
var (
	TunnelPackets  = counter("tunnel.packets", "{packet}", "Packets inside the tunnel that passed the policy, by AttrDirection.")
	TunnelBytes    = counter("tunnel.io", "By", "Bytes of the packets inside the tunnel that passed the policy, by AttrDirection.")
	Connections    = upDown("tunnel.connection.count", "{connection}", "Clients with a session and a path, by AttrSocketPair.")
	Sessions       = upDown("tunnel.session.count", "{session}", "WireGuard sessions of clients, by AttrSession.")
	Handshakes     = counter("tunnel.handshakes", "{handshake}", "WireGuard handshakes of clients that were answered.")
	HandshakeAge   = gauge("tunnel.handshake.max_age", "s", "Age of the oldest handshake that an established session goes back to.")
	Peers          = upDown("tunnel.peer.count", "{peer}", "Clients with at least one grant.")
	Grants         = upDown("tunnel.grant.count", "{grant}", "Resources granted to clients.")
	NATProxies     = upDown("tunnel.nat.proxy.count", "{address}", "Addresses that stand for domains.")
	NATSessions    = upDown("tunnel.nat.session.count", "{session}", "Entries of the NAT tables.")
	NATPorts       = upDown("tunnel.nat.port.count", "{port}", "Ports towards real addresses in use, those of ended sessions that are remembered included.")
	NATOpened      = counter("tunnel.nat.sessions", "{session}", "Entries that the NAT tables were given.")
	Relays         = upDown("tunnel.relay.count", "{relay}", "Relays, by AttrRelayState.")
	RelayedAddress = upDown("tunnel.relay.address.count", "{address}", "Relayed addresses of the allocations.")
	RelayChannels  = upDown("tunnel.relay.channel.count", "{channel}", "Channels bound at relays.")
)

// Portal.
var (
	PortalUp        = upDown("portal.connection.joined", "{connection}", "1 while the portal's channel is joined.")
	PortalJoins     = counter("portal.connection.joins", "{join}", "How often the portal's channel was joined.")
	PortalHiccups   = counter("portal.connection.hiccup", "{hiccup}", "Losses of the joined channel of the portal.")
	PortalPartition = counter("portal.partition.time", "s", "Time without the portal since its channel was joined first.")
)

// Names.
var (
	DNSQueries  = counter("dns.queries", "{query}", "Queries of clients that were answered, by AttrQuestion and AttrResponse.")
	DNSUpstream = histogram("dns.upstream.duration", "s", "Time that name servers took to answer or to fail, by AttrTransport and AttrError.")
	DNSLookup   = histogram("dns.lookup.duration", "s", "Look-ups of DNS resources, by AttrError.")
)

// The process (semantic conventions for processes and for the Go runtime).
var (
	ProcessCPU    = counter("process.cpu.time", "s", "CPU time of the process, by AttrCPUMode.")
	ProcessMemory = upDown("process.memory.usage", "By", "Resident memory of the process.")
	ProcessFiles  = upDown("process.unix.file_descriptor.count", "{file_descriptor}", "Open file descriptors of the process.")
	ProcessUptime = gauge("process.uptime", "s", "Time since the process started.")
	GoGoroutines  = upDown("go.goroutine.count", "{goroutine}", "Goroutines.")
	GoMemory      = upDown("go.memory.used", "By", "Memory that the Go runtime holds, by AttrGoMemoryType.")
	GoHeap        = upDown("go.memory.heap", "By", "Memory of objects on the heap, unreachable ones that were not swept yet included.")
	GoHeapLive    = upDown("go.memory.live", "By", "Memory of objects that the last garbage collection found reachable: what grows when something leaks.")
	GoAllocated   = counter("go.memory.allocated", "By", "Memory that was allocated on the heap.")
	GoAllocations = counter("go.memory.allocations", "{allocation}", "Allocations on the heap.")
	GoGCGoal      = upDown("go.memory.gc.goal", "By", "Size of the heap that ends the collector's present cycle.")
	GoGCCycles    = counter("go.gc.cycles", "{cycle}", "Cycles of the garbage collector.")
	GoProcessors  = upDown("go.processor.limit", "{thread}", "Threads that may run Go code at a time.")
)

// Traces that were not sampled.
var (
	TracesKept     = counter("trace.kept", "{trace}", "Traces exported although they were not sampled, because of an error in them.")
	TracesEvicted  = counter("trace.evicted", "{trace}", "Traces that were not sampled and were forgotten before their time, for want of space.")
	SpansTruncated = counter("trace.spans.truncated", "{span}", "Spans of traces that were not sampled which found no place.")
)

// Metrics lists every Metric, in order of declaration.
func Metrics() []Metric { return slices.Clone(declared) }

var declared []Metric

func counter(name, unit, description string) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: Counter})
}

func upDown(name, unit, description string) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: UpDown})
}

func gauge(name, unit, description string) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: Gauge})
}

func histogram(name, unit, description string) Metric {
	return declare(Metric{Name: name, Unit: unit, Description: description, Kind: Histogram})
}

func declare(m Metric) Metric {
	declared = append(declared, m)
	return m
}
