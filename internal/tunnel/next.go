package tunnel

import "time"

// OnNextPacket has f called once, with the next inner packet that passes, in
// either direction. A later call replaces f, and nil cancels it. f runs on the
// packet path with the time of the packet's batch and must not block.
func (c *Client) OnNextPacket(f func(at time.Time)) {
	if f == nil {
		c.next.Store(nil)
		return
	}
	c.next.Store(&f)
}

// passed tells of packets that passed in the batch of now.
func (c *Client) passed(now int64) {
	c.counters.LastActive.Store(now)
	if f := c.next.Load(); f != nil && c.next.CompareAndSwap(f, nil) {
		(*f)(time.Unix(0, now))
	}
}
