package ice

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	pion "github.com/pion/ice/v2"
	"github.com/pion/stun"
	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"

	"firezone-gateway/internal/drop"
)

// Timers of the library (transport §7.2). The client is in charge of declaring
// a connection dead; the library must only not do it first. An idle client
// checks every 25 s: our checks are no more frequent (T-35), and the state does
// not flap in between.
var (
	disconnectedTimeout = time.Minute
	failedTimeout       = 600 * time.Second
	keepaliveInterval   = 25 * time.Second
	checkInterval       = 200 * time.Millisecond
	maxBindingRequests  = uint16(75)
)

// silentSelection is how long the selected pair is without a check before
// USE-CANDIDATE on a worse one is followed. Idle clients check every 25 s.
const silentSelection = time.Minute

// guard runs a call into the library and turns a panic into an error. Panics in
// the library's own goroutines are out of reach; the checks in front of it are
// what prevents them.
func (a *agent) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.cfg.Mux.drops.Add(drop.ThirdPartyPanic, 1)
			err = fmt.Errorf("panic in the ICE library: %v", p)
		}
	}()
	return f()
}

// create makes the library's agent.
func (a *agent) create() error {
	lib, err := pion.NewAgent(&pion.AgentConfig{
		LocalUfrag: a.cfg.LocalUfrag, LocalPwd: a.cfg.LocalPwd,
		NetworkTypes:     []pion.NetworkType{pion.NetworkTypeUDP4, pion.NetworkTypeUDP6},
		CandidateTypes:   []pion.CandidateType{pion.CandidateTypeHost},
		MulticastDNSMode: pion.MulticastDNSModeDisabled,
		DisableActiveTCP: true, IncludeLoopback: true,
		UDPMux: a.view, Net: noInterfaces{}.net(),
		DisconnectedTimeout: &disconnectedTimeout, FailedTimeout: &failedTimeout,
		KeepaliveInterval: &keepaliveInterval, CheckInterval: &checkInterval,
		MaxBindingRequests: &maxBindingRequests,
		LoggerFactory:      loggers{a.log}, BindingRequestHandler: a.onRequest,
	})
	if err != nil {
		return err
	}
	a.lib = lib
	_ = lib.OnCandidate(func(c pion.Candidate) {
		if c == nil {
			select {
			case a.gathered <- struct{}{}:
			default:
			}
		}
	})
	_ = lib.OnConnectionStateChange(func(s pion.ConnectionState) {
		if state, ok := stateOf(s); ok && a.cfg.OnState != nil && a.ctx.Err() == nil {
			a.cfg.OnState(state)
		}
	})
	return lib.OnSelectedCandidatePairChange(func(l, r pion.Candidate) {
		p, ok := pairOf(l, r)
		if !ok {
			return
		}
		a.selected.Store(&p)
		a.view.settled.Store(true)
		if a.cfg.OnSelected != nil && a.ctx.Err() == nil {
			a.cfg.OnSelected(p.local, p.remote)
		}
	})
}

// onRequest decides whether an authenticated check moves the selection where
// the library would not: back to what was selected before a restart, because
// the client nominated it once already; and downwards, to a pair with
// USE-CANDIDATE, when the selected pair has been silent. Without it the library
// would fail, and stop answering, ten minutes after the restart or after the
// client left the better pair (T-15, T-19).
func (a *agent) onRequest(m *stun.Message, l, r pion.Candidate, _ *pion.CandidatePair) bool {
	selected := a.selected.Load()
	p, ok := pairOf(l, r)
	if !ok {
		return false
	}
	if selected == nil {
		a.lastSeen = time.Now()
		before := a.previous.Load()
		return before != nil && *before == p
	}
	if *selected == p {
		a.lastSeen = time.Now()
		return false
	}
	if !m.Contains(stun.AttrUseCandidate) || time.Since(a.lastSeen) < silentSelection {
		return false
	}
	a.lastSeen = time.Now()
	return true
}

func libraryCandidate(c Candidate) (pion.Candidate, error) {
	ip, port := c.Addr.Addr().String(), int(c.Addr.Port())
	const component = 1
	switch c.Type {
	case ServerReflexive:
		return pion.NewCandidateServerReflexive(&pion.CandidateServerReflexiveConfig{
			Network: "udp", Address: ip, Port: port, Component: component, Priority: c.Priority, RelAddr: "0.0.0.0",
		})
	case Relay:
		return pion.NewCandidateRelay(&pion.CandidateRelayConfig{
			Network: "udp", Address: ip, Port: port, Component: component, Priority: c.Priority, RelAddr: "0.0.0.0",
		})
	}
	return pion.NewCandidateHost(&pion.CandidateHostConfig{
		Network: "udp", Address: ip, Port: port, Component: component, Priority: c.Priority,
	})
}

func pairOf(l, r pion.Candidate) (pair, bool) {
	local, ok := addressOf(l)
	remote, ok2 := addressOf(r)
	return pair{local, remote}, ok && ok2
}

func addressOf(c pion.Candidate) (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(c.Address())
	return netip.AddrPortFrom(ip.Unmap(), uint16(c.Port())), err == nil
}

// noInterfaces keeps the library from listing the machine's interfaces: all its
// addresses come from the view, and the list would cost ten times the rest.
type noInterfaces struct{ stdnet.Net }

func (n noInterfaces) net() transport.Net { return &n }

// Interfaces returns none.
func (*noInterfaces) Interfaces() ([]*transport.Interface, error) { return nil, nil }

var _ net.PacketConn = (*conn)(nil)
