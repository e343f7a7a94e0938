package client

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v2"
)

// connection is the way to one gateway: an ICE agent that finds a path and a
// WireGuard peer that uses it.
type connection struct {
	client *Client
	auth   authorization

	mu      sync.Mutex
	agent   *ice.Agent
	muxes   []*ice.UDPMuxDefault
	legs    []*stunConn
	remotes []string
	ctx     context.Context // ends the agent's dialling
	cancel  context.CancelFunc
	allowed []netip.Prefix
	path    netip.AddrPort
	relayed bool
	up      chan struct{} // closed with the first path
	upOnce  sync.Once
}

func newConnection(c *Client, auth authorization) *connection {
	return &connection{client: c, auth: auth, up: make(chan struct{})}
}

// start creates the agent and begins to dial. It is used again to find another
// path with the same credentials.
func (n *connection) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var muxes []ice.UDPMux
	n.muxes, n.legs = nil, nil
	for _, a := range n.client.cfg.Addresses {
		leg := n.client.wg.bind.leg(a)
		mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: leg})
		n.legs = append(n.legs, leg)
		n.muxes = append(n.muxes, mux)
		muxes = append(muxes, mux)
	}
	// A real client nominates with the first answer; pion does so at its next
	// tick, so that has to be short.
	short, interval := 300*time.Millisecond, 10*time.Millisecond
	zero := time.Duration(0)
	lost, failed, keepalive := 3*time.Second, 6*time.Second, time.Second
	checks := uint16(3000)
	agent, err := ice.NewAgent(&ice.AgentConfig{
		LocalUfrag: n.auth.ClientICE.Username, LocalPwd: n.auth.ClientICE.Password,
		UDPMux:                ice.NewMultiUDPMuxDefault(muxes...),
		CandidateTypes:        []ice.CandidateType{ice.CandidateTypeHost},
		NetworkTypes:          []ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6},
		MulticastDNSMode:      ice.MulticastDNSModeDisabled,
		CheckInterval:         &interval,
		MaxBindingRequests:    &checks,
		HostAcceptanceMinWait: &zero, SrflxAcceptanceMinWait: &zero, PrflxAcceptanceMinWait: &zero,
		RelayAcceptanceMinWait: &short,
		DisconnectedTimeout:    &lost, FailedTimeout: &failed, KeepaliveInterval: &keepalive,
		IncludeLoopback: true,
	})
	if err != nil {
		return fmt.Errorf("ICE agent: %w", err)
	}
	n.agent = agent
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := agent.OnSelectedCandidatePairChange(func(_, remote ice.Candidate) { n.selected(remote) }); err != nil {
		return err
	}
	gathered := make(chan struct{})
	if err := agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(gathered)
		}
	}); err != nil {
		return err
	}
	if err := agent.GatherCandidates(); err != nil {
		return fmt.Errorf("gather: %w", err)
	}
	<-gathered
	for _, r := range n.remotes {
		if err := addRemote(agent, r); err != nil {
			n.client.log.Debug("remote candidate", "error", err)
		}
	}
	ctx := n.ctx
	n.client.wait.Go(func() {
		if _, err := agent.Dial(ctx, n.auth.GatewayICE.Username, n.auth.GatewayICE.Password); err != nil && ctx.Err() == nil {
			n.client.log.Debug("ICE dial", "error", err)
		}
	})
	return nil
}

// stop ends the agent; the WireGuard peer stays.
func (n *connection) stop() error {
	n.mu.Lock()
	agent, muxes, legs, cancel := n.agent, n.muxes, n.legs, n.cancel
	n.agent = nil
	n.mu.Unlock()
	if agent == nil {
		return nil
	}
	cancel()
	err := agent.Close()
	for _, m := range muxes {
		err = errors.Join(err, m.Close())
	}
	for _, l := range legs {
		n.client.wg.bind.drop(l)
	}
	return err
}

func (n *connection) addCandidates(lines []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remotes = append(n.remotes, lines...)
	for _, line := range lines {
		if n.agent == nil {
			return
		}
		if err := addRemote(n.agent, line); err != nil {
			n.client.log.Debug("remote candidate", "error", err)
		}
	}
}

func (n *connection) selected(remote ice.Candidate) {
	ip, err := netip.ParseAddr(remote.Address())
	if err != nil {
		return
	}
	to := netip.AddrPortFrom(ip, uint16(remote.Port()))
	relayed := n.client.isRelay(ip)
	n.mu.Lock()
	n.path, n.relayed = to, relayed
	n.mu.Unlock()
	if err := n.apply(); err != nil {
		n.client.log.Warn("add WireGuard peer", "error", err)
		return
	}
	if err := n.client.wg.setEndpoint(n.auth.GatewayPublicKey, to); err != nil {
		n.client.log.Warn("set endpoint", "error", err)
		return
	}
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
	allowed, ready := n.allowed, n.path.IsValid()
	n.mu.Unlock()
	if !ready {
		return nil
	}
	return n.client.wg.setPeer(n.auth.GatewayPublicKey, n.auth.PresharedKey, allowed)
}

// hostCandidates are the strings that announce our own addresses.
func (n *connection) hostCandidates() []string {
	var out []string
	for _, leg := range n.legs {
		prio := uint32(126)<<24 | 65534<<8 | 255
		if leg.local.Addr().Is6() {
			prio += 1 << 8
		}
		out = append(out, fmt.Sprintf("candidate:%x 1 udp %d %s %d typ host", prio, prio, leg.local.Addr(), leg.local.Port()))
	}
	return out
}

func reflexiveCandidate(mapped netip.AddrPort) string {
	prio := uint32(100)<<24 | 65534<<8 | 255
	any := "0.0.0.0"
	if mapped.Addr().Is6() {
		prio, any = prio+1<<8, "::"
	}
	return fmt.Sprintf("candidate:%x 1 udp %d %s %d typ srflx raddr %s rport 0", prio, prio, mapped.Addr(), mapped.Port(), any)
}

func addRemote(agent *ice.Agent, line string) error {
	line, ok := strings.CutPrefix(line, "candidate:")
	if !ok {
		return fmt.Errorf("candidate without prefix")
	}
	c, err := ice.UnmarshalCandidate(line)
	if err != nil {
		return err
	}
	return agent.AddRemoteCandidate(c)
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

var _ net.Addr = (*net.UDPAddr)(nil)
