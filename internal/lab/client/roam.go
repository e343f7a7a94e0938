package client

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/device"
)

// Roam takes the client to another network: other addresses, other ports, another
// connection to the portal. All that it had access to it asks for again, and
// returns when traffic can flow.
//
// The original's client takes a new key when that happens, so that everything
// about its connections is new (transport §2.9). With keepKey it is the client
// that lost its sockets only: keys and credentials are the same, and so is the
// WireGuard session.
func (c *Client) Roam(ctx context.Context, addresses []netip.Addr, keepKey bool) error {
	_ = c.logout() // from an address that is no more
	c.mu.Lock()
	gateways := slices.Collect(maps.Values(c.gateways))
	resources := maps.Clone(c.routes)
	maps.DeleteFunc(resources, func(id string, _ []netip.Prefix) bool { return c.granted[id] == nil })
	if !keepKey {
		clear(c.gateways)
		clear(c.granted)
	}
	c.mu.Unlock()
	for _, n := range gateways {
		if err := n.stop(); err != nil {
			return err
		}
		if !keepKey {
			c.wg.removePeer(n.auth.GatewayPublicKey)
		}
	}
	c.addrs.Store(&addresses)
	if !keepKey {
		if err := c.renewKey(); err != nil {
			return err
		}
	}
	if err := c.wg.rebind(); err != nil {
		return err
	}
	if err := c.login(ctx); err != nil {
		return err
	}
	if keepKey {
		for _, n := range gateways {
			if _, err := n.restart(); err != nil {
				return err
			}
			c.mu.Lock()
			c.announce(n, c.relays)
			c.mu.Unlock()
		}
	}
	granted := make(chan error, len(resources))
	for id, prefixes := range resources {
		c.wait.Go(func() { granted <- c.Access(ctx, id, prefixes...) })
	}
	var errs []error
	for range resources {
		errs = append(errs, <-granted)
	}
	return errors.Join(errs...)
}

func (c *Client) renewKey() error {
	private, err := newKey([32]byte{})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.key = [32]byte(private.PublicKey().Bytes())
	c.mu.Unlock()
	return c.wg.dev.SetPrivateKey(device.NoisePrivateKey(private.Bytes()))
}
