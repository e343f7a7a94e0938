package actors

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// pulse is what the root is sent to show that it still handles messages. It means
// nothing to it.
type pulse struct{}

// Untraced: a pulse is not worth a span.
func (pulse) Untraced() {}

// How often the root is looked at that has not handled its pulse.
const (
	firstLook   = 100 * time.Microsecond
	longestLook = 20 * time.Millisecond
)

// Pulse asks whether the tree is alive. One is made for everybody who asks.
type Pulse struct {
	tree *Tree
	gate *actorkit.Gate
	send sync.Mutex
}

// Pulse returns what asks whether t is alive.
func (t *Tree) Pulse() *Pulse { return &Pulse{tree: t, gate: actorkit.NewGate(1)} }

// Alive returns nil as soon as the root has handled a message that this call or
// another one sent, and an error if ctx ends before that. It may be called at any
// time from any goroutine, and leaves one message at most with a root that is stuck.
func (p *Pulse) Alive(ctx context.Context) error {
	began, root := time.Now(), p.tree.root
	p.send.Lock()
	if p.gate.Pending() == 0 { // else there is one on its way
		p.gate.TrySend(p.tree.system, root, pulse{})
	}
	p.send.Unlock()
	look := time.NewTimer(firstLook)
	defer look.Stop()
	for wait := firstLook; p.gate.Pending() > 0; wait = min(2*wait, longestLook) {
		look.Reset(wait)
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not handle messages, waited for %v", actorkit.Path(root), time.Since(began).Round(time.Millisecond))
		}
	}
	return nil
}

// Clients is the number of clients that are known.
func (t *Tree) Clients() int { return t.plane.store.size() }

// hostPath reports whether clients can be let in without an allocation: a usable
// relay has shown an address of the gateway, which is offered to them.
func hostPath(relays messages.RelaysChanged) bool {
	return slices.ContainsFunc(relays.Relays, func(r messages.RelayChanged) bool { return r.Usable && len(r.Shared) > 0 })
}

func (s *store) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.m)
}
