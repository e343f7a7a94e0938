package tun

import "sync/atomic"

// Stats counts what the reader of a device did since it was opened.
type Stats struct {
	Batches      uint64 // calls of Read that returned packets
	Packets      uint64 // packets returned, segments counted one by one
	SuperPackets uint64 // packets that the kernel left to be split
}

type counters struct {
	batches, packets, superPackets atomic.Uint64
}

func (c *counters) add(packets int) {
	if packets > 0 {
		c.batches.Add(1)
		c.packets.Add(uint64(packets))
	}
}

func (c *counters) load() Stats {
	return Stats{Batches: c.batches.Load(), Packets: c.packets.Load(), SuperPackets: c.superPackets.Load()}
}
