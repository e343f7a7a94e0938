package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// lookEvery is how often the daemon is asked how its actors are.
const lookEvery = 100 * time.Millisecond

// tracker follows the restarts of all actors through the daemon's status. An
// actor whose parent is restarted comes back as a new one that counts from zero,
// so that the sums are kept here.
type tracker struct {
	w *world

	mu       sync.Mutex
	last     map[string]actor // guarded by mu
	restarts map[string]int   // by kind; guarded by mu
	byPath   map[string]int   // guarded by mu
}

func newTracker(ctx context.Context, w *world) (*tracker, error) {
	t := &tracker{w: w, last: map[string]actor{}, restarts: map[string]int{}, byPath: map[string]int{}}
	s, err := w.status(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range s.Actors {
		t.last[a.Path] = a
	}
	return t, nil
}

// watch looks again and again until ctx ends.
func (t *tracker) watch(ctx context.Context) {
	for ctx.Err() == nil {
		_, _ = t.look(ctx)
		_ = pause(ctx, lookEvery)
	}
}

// look asks once and counts what is new.
func (t *tracker) look(ctx context.Context) (status, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := t.w.status(ctx)
	if err == nil {
		t.count(s)
	}
	return s, err
}

// count adds what has happened since the status before. The caller holds mu.
func (t *tracker) count(s status) {
	seen := make(map[string]actor, len(s.Actors))
	for _, a := range s.Actors {
		before := t.last[a.Path].Restarts
		if a.Restarts < before {
			before = 0 // another one of the same name
		}
		if n := int(a.Restarts - before); n > 0 {
			t.restarts[a.Kind] += n
			t.byPath[a.Path] += n
		}
		seen[a.Path] = a
	}
	t.last = seen
}

// counted returns the restarts of each kind so far.
func (t *tracker) counted() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.restarts)
}

// except returns the restarts of all actors but the one at path and those below.
func (t *tracker) except(path string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, restarts := range t.byPath {
		if p != path && !strings.HasPrefix(p, path+"/") {
			n += restarts
		}
	}
	return n
}

var errNotBack = errors.New("not back")

// awaitRestart waits until the actor at path has been restarted since before, or
// its parent has.
func (t *tracker) awaitRestart(ctx context.Context, path string, before actor) error {
	for {
		s, err := t.look(ctx)
		if err == nil {
			after, there := s.find(path)
			if there && after.State == running && after.Restarts != before.Restarts {
				return nil
			}
			if !there && !slices.ContainsFunc(s.Actors, func(a actor) bool { return strings.HasPrefix(path, a.Path+"/") && a.State != running }) {
				return nil
			}
		}
		if perr := pause(ctx, 5*time.Millisecond); perr != nil {
			if err == nil {
				err = errNotBack
			}
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// words writes counts by kind in the order of Kinds.
func words(counts map[string]int) string {
	var parts []string
	for _, k := range Kinds {
		if n := counts[k]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", k, n))
		}
	}
	return strings.Join(parts, ", ")
}
