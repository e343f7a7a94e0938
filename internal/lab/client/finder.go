package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v2"
)

// original is the agent of this package as a finder.
type original struct{ *agent }

func (n *connection) startAgent() finder {
	return original{newAgent(agentConfig{
		local: n.auth.ClientICE, remote: n.auth.GatewayICE, legs: n.legs,
		lastPacket: n.client.wg.tun.lastPacket,
		nominated:  n.selected,
		failed:     func() { n.client.wait.Go(func() { n.client.lost(n) }) },
	})}
}

func (o original) add(lines []string) {
	var candidates []remoteCandidate
	for _, line := range lines {
		if c, ok := parseCandidate(line); ok {
			candidates = append(candidates, c)
		}
	}
	o.agent.add(candidates)
}

func (o original) remove(lines []string) {
	var addrs []netip.AddrPort
	for _, line := range lines {
		if c, ok := parseCandidate(line); ok {
			addrs = append(addrs, c.addr)
		}
	}
	o.agent.remove(addrs)
}

func (o original) stop() error {
	o.agent.stop()
	return nil
}

// library is pion's agent as a finder. It selects one pair for good and knows no
// removal.
type library struct {
	agent  *ice.Agent
	muxes  []*ice.UDPMuxDefault
	dialed sync.WaitGroup
	reject func(error)
}

func (n *connection) startPion(ctx context.Context, legs []*stunConn) (finder, error) {
	l := &library{reject: func(err error) { n.client.log.Debug("remote candidate", "error", err) }}
	var muxes []ice.UDPMux
	for _, leg := range legs {
		mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: leg})
		l.muxes = append(l.muxes, mux)
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
		return nil, errors.Join(fmt.Errorf("ICE agent: %w", err), l.closeMuxes())
	}
	l.agent = agent
	if err := agent.OnSelectedCandidatePairChange(func(_, remote ice.Candidate) {
		if ip, err := netip.ParseAddr(remote.Address()); err == nil {
			n.selected(nil, netip.AddrPortFrom(ip, uint16(remote.Port())))
		}
	}); err != nil {
		return nil, errors.Join(err, l.stop())
	}
	gathered := make(chan struct{})
	if err := agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(gathered)
		}
	}); err != nil {
		return nil, errors.Join(err, l.stop())
	}
	if err := agent.GatherCandidates(); err != nil {
		return nil, errors.Join(fmt.Errorf("gather: %w", err), l.stop())
	}
	<-gathered
	l.dialed.Go(func() {
		if _, err := agent.Dial(ctx, n.auth.GatewayICE.Username, n.auth.GatewayICE.Password); err != nil && ctx.Err() == nil {
			n.client.log.Debug("ICE dial", "error", err)
		}
	})
	return l, nil
}

func (l *library) add(lines []string) {
	for _, line := range lines {
		if err := addRemote(l.agent, line); err != nil {
			l.reject(err)
		}
	}
}

func (*library) remove([]string) {}

func (l *library) stop() error {
	err := errors.Join(l.agent.Close(), l.closeMuxes())
	l.dialed.Wait()
	return err
}

func (l *library) closeMuxes() (err error) {
	for _, m := range l.muxes {
		err = errors.Join(err, m.Close())
	}
	return err
}

func addRemote(agent *ice.Agent, line string) error {
	line, ok := strings.CutPrefix(line, "candidate:")
	if !ok {
		return errors.New("candidate without prefix")
	}
	c, err := ice.UnmarshalCandidate(line)
	if err != nil {
		return err
	}
	return agent.AddRemoteCandidate(c)
}
