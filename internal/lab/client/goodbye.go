package client

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"
)

// retryInterval is how often a persistent client asks again for a resource that
// no gateway serves at the moment.
const retryInterval = 100 * time.Millisecond

// goodbye forgets a gateway that is done with us. It is called on the engine's
// receiving goroutine, which must not wait for itself.
func (c *Client) goodbye() { c.wait.Go(c.departed) }

func (c *Client) departed() {
	c.mu.Lock()
	gone := slices.Collect(maps.Values(c.gateways))
	c.mu.Unlock()
	for _, n := range gone {
		c.lost(n)
	}
}

// lost forgets a gateway whose connection is over. A persistent client asks
// again for what it had there.
func (c *Client) lost(n *connection) {
	c.mu.Lock()
	if c.gateways[n.auth.GatewayID] != n { // nil after Close
		c.mu.Unlock()
		return
	}
	delete(c.gateways, n.auth.GatewayID)
	var resources []string
	for id, via := range c.granted {
		if via == n {
			resources = append(resources, id)
			delete(c.granted, id)
		}
	}
	c.mu.Unlock()
	c.log.Debug("connection is over", "gateway_id", n.auth.GatewayID)
	if err := n.stop(); err != nil {
		c.log.Debug("end of a connection", "error", err)
	}
	c.wg.removePeer(n.auth.GatewayPublicKey)
	if !c.cfg.Persistent {
		return
	}
	for _, id := range resources {
		c.wait.Go(func() { c.askAgain(id) })
	}
}

// askAgain repeats the request for a resource until it is served.
func (c *Client) askAgain(resourceID string) {
	for {
		c.mu.Lock()
		prefixes := c.routes[resourceID]
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
		err := c.Access(ctx, resourceID, prefixes...)
		cancel()
		var refused *RefusedError
		switch {
		case err == nil, c.ctx.Err() != nil:
			return
		case errors.As(err, &refused) && refused.Reason == "forbidden":
			return
		}
		select {
		case <-time.After(retryInterval):
		case <-c.ctx.Done():
			return
		}
	}
}
