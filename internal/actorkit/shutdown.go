package actorkit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// ErrLeftBehind is returned by Shutdown when actors overran their budget.
var ErrLeftBehind = errors.New("actors did not stop in time")

// Shutdown ends the tree, the actor spawned last first. A top actor handles
// what is queued before it stops, for at most its ShutdownBudget; then every
// actor has its own budget to stop. Shutdown then waits for the goroutines
// that actors started. It returns when all are gone, or when ctx ends, in
// which case what remains was told to stop but not waited for. Later calls
// wait for the first and return its result.
func (s *System) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.ending
	s.ending = true
	tops := slices.Clone(s.tops)
	s.mu.Unlock()
	if !first {
		select {
		case <-s.finished:
			return s.outcome
		case <-ctx.Done():
			return fmt.Errorf("wait for shutdown: %w", ctx.Err())
		}
	}
	slices.Reverse(tops)
	for _, c := range tops {
		s.end(ctx, c)
	}
	s.stopWatchdog()
	s.outcome = errors.Join(s.unstopped(), s.work.wait(ctx))
	s.lib.Shutdown()
	close(s.finished)
	return s.outcome
}

// end drains and stops one top actor.
func (s *System) end(ctx context.Context, c *cell) {
	drain := time.NewTimer(c.kind.spec.ShutdownBudget)
	defer drain.Stop()
	// A suspended actor would never reach a poison pill, nor one that is stuck.
	if p := c.phase(); p != phaseFailed && p != phaseStuck {
		c.mailbox.PostUserMessage(&actor.PoisonPill{})
		select {
		case <-c.life.over:
			return
		case <-drain.C:
		case <-ctx.Done():
		}
	}
	c.mailbox.PostSystemMessage(&actor.Stop{})
	select {
	case <-c.life.over:
	case <-ctx.Done():
	}
}

func (s *System) unstopped() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []string
	for path := range s.cells {
		paths = append(paths, path)
	}
	if len(paths) == 0 && len(s.left) == 0 {
		return nil
	}
	// One that was left behind by this shutdown and has ended since still
	// broke its promise.
	paths = append(paths, s.left...)
	slices.Sort(paths)
	return fmt.Errorf("%w: %s", ErrLeftBehind, strings.Join(slices.Compact(paths), ", "))
}
