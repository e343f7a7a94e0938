package tunnel

import "firezone-gateway/internal/drop"

// Totals are the counters of all clients since the start, of removed ones too.
// They only grow.
type Totals struct {
	ToResourcePackets, ToResourceBytes uint64
	ToClientPackets, ToClientBytes     uint64
	Handshakes                         uint64
	Drops                              [drop.Count]uint64
}

// Totals adds up the counters of all clients. Clients come and go after that.
func (t *Tunnel) Totals() Totals {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.gone
	t.Each(sum.add)
	return sum
}

func (t *Totals) add(c *Client) {
	n := &c.counters
	t.ToResourcePackets += n.ToResourcePackets.Load()
	t.ToResourceBytes += n.ToResourceBytes.Load()
	t.ToClientPackets += n.ToClientPackets.Load()
	t.ToClientBytes += n.ToClientBytes.Load()
	t.Handshakes += n.Handshakes.Load()
	c.drops.Each(func(r drop.Reason, n uint64) { t.Drops[r] += n })
}
