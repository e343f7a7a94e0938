package client

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Client is one connected client. Its methods may be called concurrently.
type Client struct {
	cfg Config
	log *slog.Logger
	key [32]byte // public

	wg     *wireguard
	portal *portalConn
	wait   sync.WaitGroup // goroutines of connections
	ctx    context.Context
	cancel context.CancelFunc

	ready     chan struct{} // closed with the first init
	readyOnce sync.Once

	mu        sync.Mutex
	iface     Interface
	resources []Resource
	relays    []netip.AddrPort
	gateways  map[string]*connection // by gateway id
	granted   map[string]*connection // by resource id
	refused   map[string]string      // reason by resource id
	routes    map[string][]netip.Prefix
	changed   chan struct{} // closed and replaced on every change of the maps
}

// Connect starts a client: key, TUN device, portal, first init.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.TUNName == "" {
		cfg.TUNName = "tun-client"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, log: cfg.Logger, key: [32]byte(private.PublicKey().Bytes()),
		ready: make(chan struct{}), changed: make(chan struct{}),
		gateways: map[string]*connection{}, granted: map[string]*connection{},
		refused: map[string]string{}, routes: map[string][]netip.Prefix{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg, err = newWireguard(cfg.Namespace, cfg.TUNName, device.NoisePrivateKey(private.Bytes()), c.goodbye, func(format string, args ...any) {
		c.log.Debug(fmt.Sprintf("WireGuard: "+format, args...))
	})
	if err != nil {
		c.cancel()
		return nil, err
	}
	c.portal, err = dialPortal(ctx, cfg, c.key, c.receive)
	if err != nil {
		c.cancel()
		c.wg.close()
		return nil, err
	}
	select {
	case <-c.ready:
		return c, nil
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("no init from portal: %w", ctx.Err()), c.Close())
	}
}

// Close ends everything and waits for it.
func (c *Client) Close() error {
	c.cancel()
	err := c.portal.close()
	c.mu.Lock()
	gateways := c.gateways
	c.gateways = nil
	c.mu.Unlock()
	for _, n := range gateways {
		err = errors.Join(err, n.stop())
	}
	c.wg.close()
	c.wait.Wait()
	return err
}

// PublicKey returns the client's WireGuard key in base64.
func (c *Client) PublicKey() string { return encodeKey(c.key) }

// Interface returns the tunnel addresses.
func (c *Client) Interface() Interface {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.iface
}

// Resources returns what the portal offers.
func (c *Client) Resources() []Resource {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.resources)
}

// Goodbyes counts the goodbye packets that gateways sent.
func (c *Client) Goodbyes() int64 { return c.wg.tun.goodbyes.Load() }

// RefusedError says that the portal refused a resource, and why.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "portal refused access: " + e.Reason }

// Access asks for a resource and returns once traffic can flow to prefixes,
// which are routed into the tunnel. Asking again renews the authorization.
func (c *Client) Access(ctx context.Context, resourceID string, prefixes ...netip.Prefix) error {
	c.mu.Lock()
	delete(c.granted, resourceID)
	delete(c.refused, resourceID)
	c.routes[resourceID] = prefixes
	connected := make([]string, 0, len(c.gateways))
	for id := range c.gateways {
		connected = append(connected, id)
	}
	c.mu.Unlock()
	if err := c.wg.route(prefixes); err != nil {
		return err
	}
	event := "request_authorization"
	if c.cfg.V1 {
		event = "create_flow"
	}
	request := map[string]any{"resource_id": resourceID, "connected_gateway_ids": connected}
	if err := c.portal.send(event, request); err != nil {
		return fmt.Errorf("%s: %w", event, err)
	}
	for {
		c.mu.Lock()
		n, reason, changed := c.granted[resourceID], c.refused[resourceID], c.changed
		c.mu.Unlock()
		switch {
		case reason != "":
			return &RefusedError{reason}
		case n != nil:
			select {
			case <-n.up:
				return nil
			case <-ctx.Done():
				return fmt.Errorf("no path to the gateway: %w", ctx.Err())
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no answer to the access request: %w", ctx.Err())
		}
	}
}

// Route steers prefixes into the tunnel without asking for access.
func (c *Client) Route(prefixes ...netip.Prefix) error { return c.wg.route(prefixes) }

// Path returns where the traffic to the gateway goes and whether that is a relay.
func (c *Client) Path() (to netip.AddrPort, relayed, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.gateways {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.path, n.relayed, n.path.IsValid()
	}
	return netip.AddrPort{}, false, false
}

// Reconnect forgets the paths to all gateways and looks for new ones with the
// same keys and credentials, as a client does whose network changed.
func (c *Client) Reconnect(ctx context.Context) error {
	c.mu.Lock()
	all := make([]*connection, 0, len(c.gateways))
	for _, n := range c.gateways {
		all = append(all, n)
	}
	c.mu.Unlock()
	for _, n := range all {
		if err := n.stop(); err != nil {
			return err
		}
		n.mu.Lock()
		n.up, n.upOnce = make(chan struct{}), sync.Once{}
		up := n.up
		n.mu.Unlock()
		if err := n.start(); err != nil {
			return err
		}
		select {
		case <-up:
		case <-ctx.Done():
			return fmt.Errorf("no path to the gateway: %w", ctx.Err())
		}
	}
	return nil
}

func (c *Client) receive(event string, payload json.RawMessage) {
	var err error
	switch event {
	case "init":
		err = decode(payload, c.init)
	case "flow_created", "authorization_created":
		err = decode(payload, c.authorized)
	case "flow_creation_failed", "authorization_creation_failed":
		err = decode(payload, c.refuse)
	case "ice_candidates", "gateway_ice_candidates":
		err = decode(payload, c.candidates)
	case "relays_presence", "invalidate_ice_candidates", "invalidate_gateway_ice_candidates",
		"resource_created_or_updated", "resource_deleted", "config_changed":
		// Nothing to do: paths are followed, not predicted.
	default:
		c.log.Debug("portal event ignored", "event", event)
	}
	if err != nil {
		c.log.Warn("portal message", "event", event, "error", err)
	}
}

func decode[T any](payload json.RawMessage, handle func(T) error) error {
	var v T
	if err := json.Unmarshal(payload, &v); err != nil {
		return err
	}
	return handle(v)
}

func (c *Client) init(p initPayload) error {
	if err := c.wg.configure(p.Interface.IPv4, p.Interface.IPv6); err != nil {
		return err
	}
	c.mu.Lock()
	c.iface, c.resources, c.relays = p.Interface, p.Resources, nil
	for _, r := range p.Relays {
		c.relays = append(c.relays, r.Addr)
	}
	c.mu.Unlock()
	c.readyOnce.Do(func() { close(c.ready) })
	return nil
}

func (c *Client) authorized(a authorization) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gateways == nil {
		return nil
	}
	n := c.gateways[a.GatewayID]
	if n != nil && (n.auth.GatewayPublicKey != a.GatewayPublicKey || n.auth.PresharedKey != a.PresharedKey) {
		old := n
		c.wait.Go(func() { _ = old.stop() })
		c.wg.removePeer(old.auth.GatewayPublicKey)
		n = nil
	}
	fresh := n == nil
	if fresh {
		n = newConnection(c, a)
		c.gateways[a.GatewayID] = n
	}
	c.granted[a.ResourceID] = n
	allowed := []netip.Prefix{
		netip.PrefixFrom(netip.IPv6Unspecified(), 128), // control packets
		netip.PrefixFrom(a.GatewayIPv4, 32), netip.PrefixFrom(a.GatewayIPv6, 128),
	}
	for _, p := range c.routes {
		allowed = append(allowed, p...)
	}
	if err := n.permit(allowed); err != nil {
		return err
	}
	if fresh {
		if err := n.start(); err != nil {
			return err
		}
		c.announce(n)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// announce sends host candidates at once and reflexive ones as relays answer.
func (c *Client) announce(n *connection) {
	if err := c.sendCandidates(n, n.hostCandidates()); err != nil {
		c.log.Warn("send candidates", "error", err)
	}
	for _, server := range c.relays {
		for _, a := range c.cfg.Addresses {
			if a.Is4() != server.Addr().Is4() {
				continue
			}
			leg := c.wg.bind.leg(a)
			c.wait.Go(func() {
				defer c.wg.bind.drop(leg)
				ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
				defer cancel()
				mapped, err := reflexive(ctx, leg, server)
				// Signalled even where it equals a host address: relays admit
				// traffic from reflexive candidates only (transport §2.6).
				if err == nil {
					err = c.sendCandidates(n, []string{reflexiveCandidate(mapped)})
				}
				if err != nil && n.ctx.Err() == nil {
					c.log.Debug("reflexive candidate", "error", err)
				}
			})
		}
	}
}

func (c *Client) sendCandidates(n *connection, lines []string) error {
	if c.cfg.V1 {
		return c.portal.send("broadcast_ice_candidates", map[string]any{"gateway_ids": []string{n.auth.GatewayID}, "candidates": lines})
	}
	return c.portal.send("new_gateway_ice_candidates", map[string]any{"gateway_id": n.auth.GatewayID, "candidates": lines})
}

func (c *Client) refuse(r refusal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[r.ResourceID] = r.Reason
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

func (c *Client) candidates(m candidates) error {
	c.mu.Lock()
	n := c.gateways[m.GatewayID]
	c.mu.Unlock()
	if n == nil {
		return nil // spec: candidates of unknown connections are discarded
	}
	n.addCandidates(m.Candidates)
	return nil
}

func (c *Client) isRelay(ip netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.relays, func(r netip.AddrPort) bool { return r.Addr() == ip })
}
