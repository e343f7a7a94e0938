package turn

import "time"

// Release returns the request that ends the allocation, a REFRESH with lifetime 0
// (RFC 8656 §7.2, transport §4.4), and false if there is none. Nobody waits for the
// answer: a request that gets lost leaves the allocation to its lifetime. The Client
// must not be used afterwards.
func (c *Client) Release(now time.Time) (Transmit, bool) {
	if c.state != StateAllocated {
		return Transmit{}, false
	}
	c.transmits = nil
	c.transmit(&transaction{kind: deallocate, to: c.server}, now)
	return c.PollTransmit()
}
