package ice

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	stunlib "github.com/pion/stun/v3"
)

// punchGaps are the waits between the checks of one address: at 0, 0.25, 0.75,
// 1.75 and 3.25 s and then every 1.5 s, twelve in all (transport §2.7, T-17).
var punchGaps = [...]time.Duration{
	250 * time.Millisecond, 500 * time.Millisecond, time.Second, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond,
	1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond,
}

const idleTimer = time.Hour

// punch is the schedule of checks towards one address of the client.
//
// The library checks nothing but its selected pair once it has one, so an
// address that becomes known later, or that was slower than a relay, would
// never be opened from our side. These checks open it; their answers are of no
// interest.
type punch struct {
	remote netip.AddrPort
	sent   int
	next   time.Time
}

func (a *agent) schedulePunch(remote netip.AddrPort, now time.Time) {
	a.punches = slices.DeleteFunc(a.punches, func(p punch) bool { return p.remote == remote })
	a.punches = append(a.punches, punch{remote: remote, next: now})
}

// punch sends the checks that are due and returns how long the next one has.
// As long as nothing is selected the library checks every pair itself.
func (a *agent) punch(now time.Time) time.Duration {
	wait := idleTimer
	selected := a.selected.Load()
	a.punches = slices.DeleteFunc(a.punches, func(p punch) bool { return p.sent > len(punchGaps) || !a.knows(p.remote) })
	for i := range a.punches {
		p := &a.punches[i]
		if !now.Before(p.next) {
			if selected != nil && selected.remote != p.remote {
				a.check(p.remote)
			}
			if p.sent < len(punchGaps) {
				p.next = now.Add(punchGaps[p.sent])
			}
			p.sent++
		}
		if p.sent <= len(punchGaps) {
			wait = min(wait, max(p.next.Sub(now), 0))
		}
	}
	return wait
}

func (a *agent) knows(remote netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.remotes.hasAddr(remote)
}

// check sends one Binding request to remote from every local address of its
// family (transport §2.2).
func (a *agent) check(remote netip.AddrPort) {
	a.mu.Lock()
	locals := a.locals
	a.mu.Unlock()
	for _, local := range locals {
		if is4(local) != is4(remote) {
			continue
		}
		m := stunlib.New()
		var id [stunlib.TransactionIDSize]byte
		_, _ = rand.Read(id[:])
		m.Type, m.TransactionID = stunlib.BindingRequest, id
		m.WriteHeader()
		m.Add(stunlib.AttrUsername, []byte(a.cfg.RemoteUfrag+":"+a.cfg.LocalUfrag))
		m.Add(stunlib.AttrICEControlled, a.tie[:])
		m.Add(stunlib.AttrPriority, binary.BigEndian.AppendUint32(nil, priority(prflxType, prflxLocal+b2u(!is4(local)))))
		if stunlib.NewShortTermIntegrity(a.cfg.RemotePwd).AddTo(m) != nil || stunlib.Fingerprint.AddTo(m) != nil {
			continue
		}
		a.view.write(m.Raw, local, remote, nil)
	}
}

func (a *agent) drawTie() { _, _ = rand.Read(a.tie[:]) }
