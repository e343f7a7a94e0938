package actors

import (
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
)

// What is added up about the sockets, for each family.
const (
	datagramsIn = iota
	bytesIn
	batchesIn
	datagramsOut
	bytesOut
	batchesOut
	familyColumns
	socketColumns = 2 * familyColumns
)

func readSockets(s *transport.Sockets, into []uint64) {
	for f, n := range s.Stats() {
		row := into[f*familyColumns:]
		row[datagramsIn] += n.DatagramsIn
		row[bytesIn] += n.BytesIn
		row[batchesIn] += n.BatchesIn
		row[datagramsOut] += n.DatagramsOut
		row[bytesOut] += n.BytesOut
		row[batchesOut] += n.BatchesOut
	}
}

// collectSockets adds up over the sockets that a reset has closed.
func (m *meter) collectSockets(o telemetry.Observation) {
	sockets := m.plane.Bind.Sockets()
	sum := m.sockets.total(func(yield func(*transport.Sockets)) { yield(sockets) })
	udp := telemetry.AttrTransport.String("udp")
	present := [...]bool{transport.IPv4: sockets.HasV4(), transport.IPv6: sockets.HasV6()}
	for f, s := range sockets.Stats() {
		family := telemetry.AttrNetwork.String([...]string{transport.IPv4: "ipv4", transport.IPv6: "ipv6"}[f])
		row := sum[f*familyColumns:]
		o.Count(telemetry.Packets, row[datagramsIn], receiving, udp, family)
		o.Count(telemetry.Packets, row[datagramsOut], sending, udp, family)
		o.Count(telemetry.Bytes, row[bytesIn], receiving, udp, family)
		o.Count(telemetry.Bytes, row[bytesOut], sending, udp, family)
		o.Count(telemetry.Batches, row[batchesIn], receiving, udp, family)
		o.Count(telemetry.Batches, row[batchesOut], sending, udp, family)
		o.Count(telemetry.Sockets, oneIf(present[f]), udp, family)
		o.Count(telemetry.SocketOffload, oneIf(s.GRO), receiving, udp, family)
		o.Count(telemetry.SocketOffload, oneIf(s.GSO), sending, udp, family)
	}
}

func oneIf(yes bool) uint64 {
	if yes {
		return 1
	}
	return 0
}
