package relay

import "sync/atomic"

// Stats counts what a relay has done. Bytes are payload.
type Stats struct {
	Allocations   int64  // open
	Allocated     uint64 // ever
	Unauthorized  uint64 // requests with NONCE whose credentials were refused
	Malformed     uint64 // datagrams that were neither ChannelData nor sound STUN
	Misframed     uint64 // ChannelData whose length or channel number cannot be
	Indications   uint64 // dropped, because the relay is strict
	Unbound       uint64 // datagrams of either side for which there was no channel
	Faults        uint64 // requests that Faults.Answers concerned
	Silenced      uint64 // datagrams that Faults.Silent concerned
	ToPeers       Traffic
	FromPeers     Traffic // forwarded to clients, or given to pion where there is no channel
	SendsRejected uint64  // datagrams that the kernel refused to send
}

// Traffic is an amount of datagrams.
type Traffic struct {
	Packets, Bytes uint64
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	c := &s.stats
	return Stats{
		Allocations:   c.open.Load(),
		Allocated:     c.allocated.Load(),
		Unauthorized:  c.unauthorized.Load(),
		Malformed:     c.malformed.Load(),
		Misframed:     c.misframed.Load(),
		Indications:   c.indications.Load(),
		Unbound:       c.unbound.Load(),
		Faults:        c.faults.Load(),
		Silenced:      c.silenced.Load(),
		ToPeers:       c.toPeers.load(),
		FromPeers:     c.fromPeers.load(),
		SendsRejected: c.rejected.Load(),
	}
}

type counters struct {
	open                               atomic.Int64
	allocated, unauthorized, malformed atomic.Uint64
	misframed, indications, unbound    atomic.Uint64
	faults, silenced                   atomic.Uint64
	rejected                           count
	toPeers, fromPeers                 traffic
}

type count struct{ atomic.Uint64 }

func (c *count) add(n int) { c.Add(uint64(n)) }

type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(packets, bytes int) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
}

func (t *traffic) load() Traffic { return Traffic{t.packets.Load(), t.bytes.Load()} }
