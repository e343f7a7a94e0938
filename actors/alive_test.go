package actors

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	labportal "firezone-gateway/internal/lab/portal"
)

func TestATreeIsAlive(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	pulse := r.tree.Pulse()
	var askers sync.WaitGroup
	for range 8 {
		askers.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if err := pulse.Alive(ctx); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	askers.Wait()
	for _, k := range r.tree.system.Stats().Kinds {
		if k.Kind == KindGateway && (k.Handled == 0 || k.Refused != 0) {
			t.Errorf("the root handled %d pulses, and %d found no place", k.Handled, k.Refused)
		}
	}
	if n := r.tree.system.Stats().DeadLetters; n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// A root that hangs shows, is not buried in pulses, and is alive again afterwards.
func TestATreeThatIsStuckIsNotAlive(t *testing.T) {
	p := newTestPlane(t, "")
	system := actorkit.NewSystem(actorkit.Config{Logger: p.log.logger(t), Table: quick(Table)})
	t.Cleanup(func() { stopSystem(t, system) })
	release, hangs := make(chan struct{}), make(chan struct{})
	root, err := system.Spawn(KindGateway, "gateway", func() actorkit.Actor {
		return actorkit.ActorFunc(func(ctx actorkit.Context) {
			if _, hang := ctx.Message().(act); hang {
				close(hangs)
				<-release
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	tree := &Tree{system: system, plane: p.Plane, root: root}
	pulse := tree.Pulse()
	system.Send(root, act(nil))
	await(t, hangs, "the beginning")
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := pulse.Alive(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "gateway does not handle messages") {
			t.Fatalf("error %v", err)
		}
	}
	if n := system.Stats().Actors[0].Pending; n != 1 {
		t.Errorf("%d messages wait", n)
	}
	close(release)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := pulse.Alive(ctx); err != nil {
		t.Error(err)
	}
}

// Whoever asks a tree that has ended is not kept waiting.
func TestATreeThatHasEndedHoldsNobody(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	pulse := r.tree.Pulse()
	stopTree(t, r.tree)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := pulse.Alive(ctx); err != nil {
		t.Error(err)
	}
}
