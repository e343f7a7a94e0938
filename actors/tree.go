package actors

import (
	"context"
	"fmt"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// Tree is a running tree of actors.
type Tree struct {
	system *actorkit.System
	root   actorkit.PID
	ended  chan end
}

type end struct {
	code  int
	cause error
}

// Start starts the tree on p.
func Start(p *Plane, log *slog.Logger, tracer trace.Tracer) (*Tree, error) {
	return start(p, actorkit.Config{Logger: log, Tracer: tracer, Table: Table})
}

func start(p *Plane, cfg actorkit.Config) (*Tree, error) {
	t := &Tree{ended: make(chan end, 1)}
	t.system = actorkit.NewSystem(cfg)
	root, err := t.system.Spawn(KindGateway, "gateway", func() actorkit.Actor { return newGateway(p, t.end) })
	if err != nil {
		return nil, fmt.Errorf("start actors: %w", err)
	}
	t.root = root
	return t, nil
}

func (t *Tree) end(code int, cause error) {
	select {
	case t.ended <- end{code, cause}:
	default: // the first end counts
	}
}

// Wait returns when the tree decided to end the process, with its exit code and
// the reason of a failure. When ctx ends, it first asks for an orderly end:
// goodbye to all clients and a Close to the portal.
func (t *Tree) Wait(ctx context.Context) (code int, cause error) {
	done := ctx.Done()
	for {
		select {
		case <-done:
			done = nil
			t.system.Send(t.root, messages.Shutdown{})
		case r := <-t.system.ExitRequests():
			return r.Code, fmt.Errorf("%s: %w", r.Path, r.Reason)
		case e := <-t.ended:
			return e.code, e.cause
		}
	}
}

// Stop stops all actors and waits for them.
func (t *Tree) Stop(ctx context.Context) error { return t.system.Shutdown(ctx) }
