package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// connection is the way to one gateway: a finder of paths and a WireGuard peer
// that uses what it found.
type connection struct {
	client *Client
	auth   authorization

	mu      sync.Mutex
	finder  finder // nil when stopped
	legs    []*stunConn
	remotes []string
	ctx     context.Context // ends with the finder
	cancel  context.CancelFunc
	allowed []netip.Prefix
	path    netip.AddrPort
	relayed bool
	shaken  time.Time     // when a handshake was last asked for
	up      chan struct{} // closed with the first path
	upOnce  sync.Once
}

func newConnection(c *Client, auth authorization) *connection {
	return &connection{client: c, auth: auth, up: make(chan struct{})}
}

// finder looks for paths with one set of credentials and says which to take.
type finder interface {
	add(lines []string)
	remove(lines []string)
	// stop ends it and waits for it, without the lock of the connection.
	stop() error
}

// start begins to look for a path. It is used again to find another one with the
// same credentials.
//
// The caller holds no lock, or that of the client with its allocations.
func (n *connection) start(allocations []*allocation) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.legs = nil
	for _, a := range n.client.addresses() {
		n.legs = append(n.legs, n.client.wg.bind.leg(a))
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	var err error
	if n.client.cfg.Original {
		for _, a := range allocations {
			n.legs = append(n.legs, a.leg())
		}
		n.finder = n.startAgent()
	} else {
		n.finder, err = n.startPion(n.ctx, n.legs)
	}
	if err != nil {
		n.cancel()
		n.dropLegs()
		return err
	}
	n.finder.add(n.remotes)
	return nil
}

// stop ends the search; the WireGuard peer stays.
func (n *connection) stop() error {
	n.mu.Lock()
	f, cancel := n.finder, n.cancel
	n.finder = nil
	n.mu.Unlock()
	if f == nil {
		return nil
	}
	cancel()
	err := f.stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropLegs()
	return err
}

// restart looks for a path anew.
func (n *connection) restart() (up <-chan struct{}, err error) {
	if err := n.stop(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.up, n.upOnce, n.shaken = make(chan struct{}), sync.Once{}, time.Time{}
	up = n.up
	n.mu.Unlock()
	return up, n.start(n.client.currentAllocations())
}

func (n *connection) dropLegs() {
	for _, l := range n.legs {
		n.client.wg.bind.drop(l)
	}
	n.legs = nil
}

func (n *connection) addCandidates(lines []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remotes = append(n.remotes, lines...)
	if n.finder != nil {
		n.finder.add(lines)
	}
}

func (n *connection) removeCandidates(lines []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remotes = slices.DeleteFunc(n.remotes, func(known string) bool {
		k, _ := parseCandidate(known)
		return slices.ContainsFunc(lines, func(line string) bool {
			c, ok := parseCandidate(line)
			return ok && c.addr == k.addr
		})
	})
	if n.finder != nil {
		n.finder.remove(lines)
	}
}

// selected moves the traffic to another address of the gateway.
// leg is that of ours, nil for the socket.
func (n *connection) selected(leg *stunConn, to netip.AddrPort) {
	relayed := n.client.isRelay(to.Addr())
	if leg != nil {
		n.client.wg.bind.lead(to, leg.via)
		relayed = relayed || leg.via != nil
	}
	n.mu.Lock()
	n.path, n.relayed = to, relayed
	shake := time.Since(n.shaken) >= n.client.cfg.handshakeGap()
	if shake {
		n.shaken = time.Now()
	}
	n.mu.Unlock()
	n.client.log.Debug("path", "to", to, "relayed", relayed, "handshake", shake)
	if err := n.apply(); err != nil {
		n.client.log.Warn("add WireGuard peer", "error", err)
		return
	}
	if err := n.client.wg.setEndpoint(n.auth.GatewayPublicKey, to, shake); err != nil {
		n.client.log.Warn("set endpoint", "error", err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.upOnce.Do(func() { close(n.up) })
}

// permit replaces the prefixes that go to this gateway.
func (n *connection) permit(prefixes []netip.Prefix) error {
	n.mu.Lock()
	n.allowed = prefixes
	n.mu.Unlock()
	return n.apply()
}

// apply tells the engine about the gateway once there is a path. Earlier the
// engine would try a handshake into the void and not repeat it for five seconds.
func (n *connection) apply() error {
	n.mu.Lock()
	allowed, path := n.allowed, n.path
	n.mu.Unlock()
	if !path.IsValid() {
		return nil
	}
	return n.client.wg.setPeer(n.auth.GatewayPublicKey, n.auth.PresharedKey, path, allowed)
}

// announcement returns the strings that announce our own addresses, and how long
// that is of use.
func (n *connection) announcement() (context.Context, []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, leg := range n.legs {
		prio, kind := leg.priority(), "host"
		if leg.via != nil {
			kind = "relay raddr " + unspecified(leg.local.Addr()) + " rport 0"
		}
		out = append(out, fmt.Sprintf("candidate:%x 1 udp %d %s %d typ %s", prio, prio, leg.local.Addr(), leg.local.Port(), kind))
	}
	return n.ctx, out
}

func reflexiveCandidate(mapped netip.AddrPort) string {
	prio := uint32(100)<<24 | 65534<<8 | 255
	if mapped.Addr().Is6() {
		prio += 1 << 8
	}
	return fmt.Sprintf("candidate:%x 1 udp %d %s %d typ srflx raddr %s rport 0", prio, prio, mapped.Addr(), mapped.Port(), unspecified(mapped.Addr()))
}

func unspecified(of netip.Addr) string {
	if of.Is4() {
		return "0.0.0.0"
	}
	return "::"
}

func (b *sharedBind) drop(leg *stunConn) {
	_ = leg.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	var rest []*stunConn
	for _, l := range b.legs {
		if l != leg {
			rest = append(rest, l)
		}
	}
	b.legs = rest
}

func encodeKey(k [32]byte) string { return base64.StdEncoding.EncodeToString(k[:]) }
