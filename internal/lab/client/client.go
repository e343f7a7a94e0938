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
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Client is one connected client. Its methods may be called concurrently.
type Client struct {
	cfg   Config
	log   *slog.Logger
	addrs atomic.Pointer[[]netip.Addr] // own addresses on the network

	wg      *wireguard
	wait    sync.WaitGroup // goroutines of connections
	domains domains
	ctx     context.Context
	cancel  context.CancelFunc

	mu          sync.Mutex
	key         [32]byte // public
	portal      *portalConn
	ready       chan struct{} // closed and set to nil with the init of a connection to the portal
	iface       Interface
	resources   []Resource
	relays      []relay
	allocated   chan struct{} // closed when the allocations are made
	allocations []*allocation
	gateways    map[string]*connection // by gateway id
	granted     map[string]*connection // by resource id
	refused     map[string]string      // reason by resource id
	routes      map[string][]netip.Prefix
	changed     chan struct{} // closed and replaced on every change of the maps
}

// Connect starts a client: key, TUN device, portal, first init.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.TUNName == "" {
		cfg.TUNName = "tun-client"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	private, err := newKey(cfg.PrivateKey)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, log: cfg.Logger, key: [32]byte(private.PublicKey().Bytes()),
		changed:  make(chan struct{}),
		gateways: map[string]*connection{}, granted: map[string]*connection{},
		refused: map[string]string{}, routes: map[string][]netip.Prefix{},
	}
	c.addrs.Store(&cfg.Addresses)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg, err = newWireguard(cfg.Namespace, cfg.TUNName, device.NoisePrivateKey(private.Bytes()), c.goodbye, c.domains.answered, func(format string, args ...any) {
		c.log.Debug(fmt.Sprintf("WireGuard: "+format, args...))
	})
	if err != nil {
		c.cancel()
		return nil, err
	}
	if cfg.Original {
		// The original's client sends on the pair that it nominated, wherever
		// packets come from (transport §2.8).
		c.wg.dev.DisableSomeRoamingForBrokenMobileSemantics()
	}
	if err := c.login(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// newKey returns the given key, or a new one instead of the zero value.
func newKey(given [32]byte) (*ecdh.PrivateKey, error) {
	if given == [32]byte{} {
		return ecdh.X25519().GenerateKey(rand.Reader)
	}
	return ecdh.X25519().NewPrivateKey(given[:])
}

// login connects to the portal and waits for its init.
func (c *Client) login(ctx context.Context) error {
	ready := make(chan struct{})
	c.mu.Lock()
	c.ready = ready
	key := c.key
	c.mu.Unlock()
	p, err := dialPortal(ctx, c.cfg, key, c.receive)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.portal = p
	c.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no init from portal: %w", ctx.Err())
	}
}

// logout ends the connection to the portal, if there is one.
func (c *Client) logout() error {
	c.mu.Lock()
	p := c.portal
	c.portal = nil
	c.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.close()
}

// send pushes one event to the portal.
func (c *Client) send(event string, payload any) error {
	c.mu.Lock()
	p := c.portal
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%s: no portal", event)
	}
	return p.send(event, payload)
}

// Close ends everything and waits for it.
func (c *Client) Close() error {
	c.cancel()
	err := c.logout()
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
func (c *Client) PublicKey() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return encodeKey(c.key)
}

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
	if err := c.awaitAllocations(ctx); err != nil {
		return err
	}
	event := "request_authorization"
	if c.cfg.V1 {
		event = "create_flow"
	}
	request := map[string]any{"resource_id": resourceID, "connected_gateway_ids": connected}
	if err := c.send(event, request); err != nil {
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
			n.mu.Lock()
			up := n.up
			n.mu.Unlock()
			select {
			case <-up:
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

// awaitAllocations lets a path through a relay of our own be among those that
// are tried.
func (c *Client) awaitAllocations(ctx context.Context) error {
	c.mu.Lock()
	allocated := c.allocated
	c.mu.Unlock()
	if allocated == nil {
		return nil
	}
	select {
	case <-allocated:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no allocation: %w", ctx.Err())
	}
}

func (c *Client) currentAllocations() []*allocation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.allocations)
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
		up, err := n.restart()
		if err != nil {
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
	case "invalidate_ice_candidates", "invalidate_gateway_ice_candidates":
		err = decode(payload, c.invalidated)
	case "relays_presence":
		err = decode(payload, c.relaysChanged)
	case "resource_created_or_updated", "resource_deleted", "config_changed":
		// Nothing to do.
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
	defer c.mu.Unlock()
	c.iface, c.resources, c.relays = p.Interface, p.Resources, p.Relays
	if c.cfg.Allocates {
		allocated := make(chan struct{})
		c.allocations, c.allocated = nil, allocated
		c.wait.Go(func() { c.allocateAll(c.ctx, p.Relays, allocated) })
	}
	if c.ready != nil {
		close(c.ready)
		c.ready = nil
	}
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
		if err := n.start(c.allocations); err != nil {
			return err
		}
		c.announce(n, c.relays)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// announce sends host candidates at once, and reflexive ones as relays answer.
func (c *Client) announce(n *connection, relays []relay) {
	ctx, hosts := n.announcement()
	c.wait.Go(func() {
		if err := c.sendCandidates(n, hosts); err != nil {
			c.log.Warn("send candidates", "error", err)
		}
	})
	for _, r := range relays {
		server := r.Addr
		for _, a := range c.addresses() {
			if a.Is4() != server.Addr().Is4() {
				continue
			}
			leg := c.wg.bind.leg(a)
			c.wait.Go(func() {
				defer c.wg.bind.drop(leg)
				limited, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				mapped, err := reflexive(limited, leg, server)
				// Signalled even where it equals a host address: relays admit
				// traffic from reflexive candidates only (transport §2.6).
				if err == nil {
					err = c.sendCandidates(n, []string{reflexiveCandidate(mapped)})
				}
				if err != nil && ctx.Err() == nil {
					c.log.Debug("reflexive candidate", "error", err)
				}
			})
		}
	}
}

func (c *Client) sendCandidates(n *connection, lines []string) error {
	if c.cfg.V1 {
		return c.send("broadcast_ice_candidates", map[string]any{"gateway_ids": []string{n.auth.GatewayID}, "candidates": lines})
	}
	return c.send("new_gateway_ice_candidates", map[string]any{"gateway_id": n.auth.GatewayID, "candidates": lines})
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

func (c *Client) invalidated(m candidates) error {
	c.mu.Lock()
	n := c.gateways[m.GatewayID]
	c.mu.Unlock()
	if n != nil {
		n.removeCandidates(m.Candidates)
	}
	return nil
}

// relaysChanged asks the relays that are new how they see us.
func (c *Client) relaysChanged(m relaysPresence) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := func(r relay) bool {
		return slices.Contains(m.DisconnectedIDs, r.ID) || slices.ContainsFunc(m.Connected, func(o relay) bool { return o.ID == r.ID })
	}
	before := c.relays
	c.relays = append(slices.DeleteFunc(slices.Clone(c.relays), gone), m.Connected...)
	fresh := slices.DeleteFunc(slices.Clone(m.Connected), func(r relay) bool { return slices.Contains(before, r) })
	for _, n := range c.gateways {
		c.announce(n, fresh)
	}
	return nil
}

func (c *Client) isRelay(ip netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.relays, func(r relay) bool { return r.Addr.Addr() == ip })
}

func (c *Client) addresses() []netip.Addr { return *c.addrs.Load() }
